"""Shapley values of patches or regions: what each adds, on average over the orders in which they may come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.attribution.shapley import shapley_weights
from lvlm_interp.errors import InputError
from lvlm_interp.given import need_seed
from lvlm_interp.heatmaps.game import Game, OverSets

FEW = 8  # regions, of which all 2^8 sets are scored


@dataclass(frozen=True)
class Shapley(OverSets):
    """What a region adds to those that came before it, over drawn orders; exact up to `FEW` regions.

    Orders come in pairs, each with its reverse (antithetic sampling: Mitchell et al. 2022), so that what a region does
    early and late both count. In every order the numbers add up to the whole, so they do on average.

    Attributes:
        pairs: of orders that are drawn at most.
        precision: stop when the largest standard error is below this share of the largest number; None draws all.
        seed: of what is drawn.
    """

    name: ClassVar[str] = "shapley"
    cost: ClassVar[str] = "2 · pairs · N, over text rows alone where text loses sight; 2^regions up to 8"
    sums: ClassVar[str] = "everything seen, less no patch"
    source: ClassVar[str] = "Shapley 1953; Castro et al. 2009"
    pairs: int = 8
    precision: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        need_seed(self.seed)
        if self.pairs < 1 or (self.precision is not None and not 0 < self.precision < 1):
            raise InputError(
                f"shapley draws 1 pair of orders or more, to a precision between 0 and 1; got {self.pairs}, "
                f"{self.precision}"
            )

    def map(self, asked: Asked) -> PatchMap:
        game = self.game(asked)
        if game.players <= FEW:
            numbers = torch.arange(1 << game.players)[:, None] >> torch.arange(game.players) & 1
            values = game(numbers.bool()) @ shapley_weights(game.players).T
            return self._mapped(game, values, torch.zeros_like(values), 0)
        draws = self._draws(game)
        error = draws.std(0) / len(draws) ** 0.5 if len(draws) > 1 else None
        return self._mapped(game, draws.mean(0), error, len(draws))

    def _draws(self, game: Game) -> Float[Tensor, "pair part player"]:
        generator = torch.Generator().manual_seed(int(self.seed))
        draws: list[Tensor] = []
        with game.bar(self.pairs) as bar:
            while len(draws) < self.pairs and not self._enough(draws):
                order = torch.randperm(game.players, generator=generator)
                draws.append((added(game, order) + added(game, order.flip(0))) / 2)
                bar.update()
        return torch.stack(draws)

    def _enough(self, draws: list[Tensor]) -> bool:
        if self.precision is None or len(draws) < 2:
            return False
        found = torch.stack(draws)
        error = found.std(0) / len(draws) ** 0.5
        return bool((error.amax(1) <= self.precision * found.mean(0).abs().amax(1)).all())

    def _mapped(self, game: Game, values: Tensor, error: Tensor | None, drawn: int) -> PatchMap:
        told = {"pairs": drawn, "precision": self.precision, "seed": self.seed if drawn else None}
        residual = (game.whole - game.nothing - values.sum(1)).float()
        return game.mapped(self.name, values, told, error, says="added", residual=residual)


def added(game: Game, order: Int[Tensor, " player"]) -> Float[Tensor, "part player"]:
    """What each region adds when they come in this order."""
    seen = torch.zeros(game.players - 1, game.players, dtype=torch.bool)
    for step, player in enumerate(order[:-1].tolist()):
        seen[step:, player] = True
    ends = (game.nothing[:, None], game(seen), game.whole[:, None])
    steps = torch.cat(ends, 1).diff(dim=1)
    return torch.empty_like(steps).index_copy_(1, order, steps)
