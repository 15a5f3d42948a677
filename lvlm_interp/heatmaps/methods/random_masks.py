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
from lvlm_interp.errors import InputError
from lvlm_interp.given import need_seed
from lvlm_interp.heatmaps.game import OverSets


@dataclass(frozen=True)
class RandomMasks(OverSets):
    """Each region is seen with the same chance, whatever the others are.

    Attributes:
        samples: how many sets are drawn; where the chance is a half, half of them the complements of the others.
        seen: the chance of a region to be seen.
        seed: of what is drawn.
    """

    cost: ClassVar[str] = "samples + 2, over text rows alone where text loses sight"
    samples: int = 256
    seen: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        need_seed(self.seed)
        if self.samples < 4 or not 0 < self.seen < 1:
            raise InputError(
                f"random masks are 4 or more, of a chance between 0 and 1; got {self.samples}, {self.seen}"
            )

    says: ClassVar[str]

    def map(self, asked: Asked) -> PatchMap:
        game = self.game(asked)
        sets = self.sets(game.players)
        found, error = self.estimate(game.each(sets), sets)
        told = {"samples": len(sets), "seen": self.seen, "seed": self.seed}
        return game.mapped(self.name, found, told, error, says=self.says)

    @abc.abstractmethod
    def estimate(
        self, values: Float[Tensor, "part set"], sets: Bool[Tensor, "set player"]
    ) -> tuple[Float[Tensor, "part player"], Float[Tensor, "part player"]]:
        """The numbers and their standard errors."""

    def sets(self, players: int) -> Bool[Tensor, "set player"]:
        """What is drawn; where the chance is a half, the second half are the complements of the first.

        Raises:
            InputError: a region is in fewer than two sets, or out of fewer, of which no error can be told.
        """
        generator = torch.Generator().manual_seed(int(self.seed))
        count = (self.samples + 1) // 2 if self.paired else self.samples
        drawn = torch.rand(count, players, generator=generator, dtype=torch.float64) < self.seen
        sets = torch.cat([drawn, ~drawn]) if self.paired else drawn
        if (sets.sum(0) < 2).any() or ((~sets).sum(0) < 2).any():
            raise InputError(
                f"among {len(sets)} sets of a chance of {self.seen} some regions are in fewer than two, or in all but "
                "one: draw more"
            )
        return sets

    @property
    def paired(self) -> bool:
        return self.seen == 0.5

    def difference(
        self, values: Float[Tensor, "part set"], sets: Bool[Tensor, "set player"]
    ) -> tuple[Float[Tensor, "part player"], Float[Tensor, "part player"]]:
        """The mean with a region, less that without it, and its standard error.

        A set and its complement are one draw: each region is in one of them, and what tells is how they differ.
        """
        if not self.paired:
            (given, one), (without, other) = mean_of(values, sets), mean_of(values, ~sets)
            return given - without, (one.square() + other.square()).sqrt()
        first, second = values.chunk(2, 1)
        drawn = (first - second)[:, :, None] * torch.where(sets[: len(sets) // 2], 1.0, -1.0).double()
        return drawn.mean(1), drawn.std(1) / drawn.shape[1] ** 0.5


def mean_of(
    values: Float[Tensor, "part set"], sets: Bool[Tensor, "set player"]
) -> tuple[Float[Tensor, "part player"], Float[Tensor, "part player"]]:
    """The mean over the sets that a region is in, and its standard error."""
    inside = sets.double()
    count = inside.sum(0)
    mean = values @ inside / count
    square = values.square() @ inside / count
    return mean, ((square - mean.square()).clamp(min=0) / (count - 1)).sqrt()


@dataclass(frozen=True)
class Banzhaf(RandomMasks):
    """The mean value with a region, less that without it: the Banzhaf value, where the chance is a half."""

    name: ClassVar[str] = "banzhaf"
    says: ClassVar[str] = "added, on average"
    source: ClassVar[str] = "Banzhaf 1965; maximum sample reuse: Wang & Jia 2023"

    def estimate(self, values: Tensor, sets: Tensor) -> tuple[Tensor, Tensor]:
        return self.difference(values, sets)


@dataclass(frozen=True)
class Rise(RandomMasks):
    """The mean value with a region, less the mean over all sets, so that it does not depend on the value's zero.

    That is the difference of the means with it and without it, times the chance that it is not in a set. The paper's
    masks are smooth and of pixels, and its value is a probability, whose zero needs no subtracting.
    """

    name: ClassVar[str] = "rise"
    says: ClassVar[str] = "above the mean, when seen"
    source: ClassVar[str] = "Petsiuk et al. 2018, on tokens"

    def estimate(self, values: Tensor, sets: Tensor) -> tuple[Tensor, Tensor]:
        found, error = self.difference(values, sets)
        return found * (1 - self.seen), error * (1 - self.seen)
