"""Random sets of patches, and what the value is on average with a patch and without it."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.engine.score import HideFrom
from lvlm_interp.errors import InputError
from lvlm_interp.heatmaps.game import Game
from lvlm_interp.heatmaps.hiding import TOKENS, Substrate
from lvlm_interp.heatmaps.method import Kind, Method
from lvlm_interp.heatmaps.regions import Regions

AT_ONCE = 64  # sets that are scored between two steps of the bar


@dataclass(frozen=True)
class RandomMasks(Method):
    """Each region is seen with the same chance, whatever the others are.

    Attributes:
        samples: how many sets are drawn, half of them the complements of the others where the chance is a half.
        seen: the chance of a region to be seen.
        regions: what is seen or hidden together (`heatmaps.regions`); every patch by default.
        substrate: what stands in the place of a patch that is not seen (`heatmaps.hiding`).
        hide_from: of tokens, as in occlusion.
        seed: of what is drawn.
    """

    kind: ClassVar[Kind] = "counterfactual"
    cost: ClassVar[str] = "samples + 2, over text rows alone where text loses sight"
    samples: int = 256
    seen: float = 0.5
    regions: Regions = None
    substrate: Substrate = TOKENS
    hide_from: HideFrom | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 2 or not 0 < self.seen < 1:
            raise InputError(
                f"random masks are 2 or more, of a chance between 0 and 1; got {self.samples}, {self.seen}"
            )

    def map(self, asked: Asked) -> PatchMap:
        game = Game(asked, self.regions, self.substrate, self.hide_from)
        sets = self._sets(game.players)
        with game.bar(len(sets)) as bar:
            values = torch.cat([self._scored(game, some, bar) for some in sets.split(AT_ONCE)], 1)
        given, without = (mean_of(values, some) for some in (sets, ~sets))
        found, error = self.estimate(values, given, without)
        told = {"samples": self.samples, "seen": self.seen, "seed": self.seed}
        return game.mapped(self.name, found, told, error, says=self.says)

    says: ClassVar[str]

    @abc.abstractmethod
    def estimate(
        self, values: Float[Tensor, "part set"], given: tuple[Tensor, Tensor], without: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "part player"], Float[Tensor, "part player"]]:
        """The numbers and their errors, from the means with each region and without it, and the errors of these."""

    def _sets(self, players: int) -> Bool[Tensor, "set player"]:
        """Drawn anew where a region would be in all of them or in none."""
        generator = torch.Generator().manual_seed(self.seed)
        count = (self.samples + 1) // 2 if self.seen == 0.5 else self.samples
        sets = torch.rand(count, players, generator=generator, dtype=torch.float64) < self.seen
        sets = torch.cat([sets, ~sets])[: self.samples] if self.seen == 0.5 else sets
        if sets.all(0).any() or not sets.any(0).all():
            raise InputError(
                f"among {self.samples} sets of a chance of {self.seen} some regions are in all or in none: draw more"
            )
        return sets

    def _scored(self, game: Game, some: Tensor, bar: object) -> Tensor:
        values = game(some)
        bar.update(len(some))  # type: ignore[attr-defined]
        return values


def mean_of(values: Float[Tensor, "part set"], sets: Bool[Tensor, "set player"]) -> tuple[Tensor, Tensor]:
    """The mean over the sets that a region is in, `[part, player]`, and its standard error."""
    inside = sets.double()
    count = inside.sum(0)
    mean = values @ inside / count
    square = values.square() @ inside / count
    return mean, ((square - mean.square()).clamp(min=0) / (count - 1).clamp(min=1)).sqrt()


@dataclass(frozen=True)
class Banzhaf(RandomMasks):
    """The mean value with a region, less that without it: the Banzhaf value, where the chance is a half."""

    name: ClassVar[str] = "banzhaf"
    says: ClassVar[str] = "added, on average"
    source: ClassVar[str] = "Banzhaf 1965; maximum sample reuse: Wang & Jia 2023"

    def estimate(self, values: Tensor, given: tuple[Tensor, Tensor], without: tuple[Tensor, Tensor]) -> tuple:
        return given[0] - without[0], (given[1].square() + without[1].square()).sqrt()


@dataclass(frozen=True)
class Rise(RandomMasks):
    """The mean value with a region, less the mean over all sets, so that it does not depend on the value's zero.

    The paper's masks are smooth and of pixels, and its value is a probability, whose zero needs no subtracting.
    """

    name: ClassVar[str] = "rise"
    says: ClassVar[str] = "above the mean, when seen"
    source: ClassVar[str] = "Petsiuk et al. 2018, on tokens"

    def estimate(self, values: Tensor, given: tuple[Tensor, Tensor], without: tuple[Tensor, Tensor]) -> tuple:
        return given[0] - values.mean(1, keepdim=True), given[1]
