"""Each patch, or region, hidden in turn; of many, those of which it matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.occlusion import occlusion
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import InputError
from lvlm_interp.heatmaps.filling import TOKENS
from lvlm_interp.heatmaps.first_order import lost_to_first_order
from lvlm_interp.heatmaps.game import Game, OverSets


@dataclass(frozen=True)
class Occlusion(OverSets):
    """What the value loses when one patch is hidden; of patches and tokens, see `attribution.occlusion`.

    Of a fine grid most patches matter little, and what hiding these would take is told well enough by the value's
    derivative (`heatmaps.first_order`): so only the `exact` ones of which that is largest are hidden. The map's `exact`
    says which. All are where derivatives would cost more than that (of many parts, or few patches), where the model has
    none, where alternatives have several tokens, and where pixels are changed.

    Attributes:
        exact: how many patches or regions are hidden one by one; None hides all.
    """

    name: ClassVar[str] = "occlusion"
    cost: ClassVar[str] = (
        "N + 2, over text rows alone where text loses sight of tokens; of many patches exact + 2, and 1 forward and 1 "
        "backward of each part"
    )
    source: ClassVar[str] = "Zeiler & Fergus 2014; to first order: Kramár et al. 2024 (AtP*)"
    exact: int | None = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exact is not None and self.exact < 1:
            raise InputError(f"exact= is how many patches are hidden, 1 or more, or None for all; got {self.exact}")

    def map(self, asked: Asked) -> PatchMap:
        tokens = isinstance(self.substrate, str) and self.substrate == TOKENS
        if tokens and self.regions is None and not self._spares(asked, asked.cells.numel()):
            return occlusion(asked, self.hide_from)
        game = self.game(asked)
        near = lost_to_first_order(game) if tokens and self._spares(asked, game.players) else None
        if near is not None:
            return self._mapped(game, near)
        if tokens and self.regions is None:
            return occlusion(asked, self.hide_from)
        return game.mapped(self.name, hidden(game, torch.arange(game.players)), {})

    def _spares(self, asked: Asked, players: int) -> bool:
        """Whether derivatives cost less than hiding the rest would, in plain passes."""
        text = 1.0 if self.hide_from == "all" else float((~asked.x.where("image")).float().mean())
        return self.exact is not None and (players - self.exact) * text > 1 + 2 * len(asked.target.parts)

    def _mapped(self, game: Game, near: Float[Tensor, "part player"]) -> PatchMap:
        assert self.exact is not None
        chosen = strongest(near, self.exact)
        lost = near.index_copy(1, chosen, hidden(game, chosen))
        exact = torch.zeros(1, game.players).index_fill(1, chosen, 1.0)
        return game.mapped(self.name, lost, {"exact": len(chosen)}, exact=game.on_the_grid(exact)[0] > 0)


def hidden(game: Game, players: Int[Tensor, " some"]) -> Float[Tensor, "part some"]:
    """What is lost without each of these."""
    alone = torch.eye(game.players, dtype=torch.bool)[players]
    return game.whole[:, None] - game(~alone)


def strongest(near: Float[Tensor, "part player"], count: int) -> Int[Tensor, " some"]:
    """The players that stand highest for any part, by absolute size; each part has its turn."""
    ranks = near.abs().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return ranks.amin(0).argsort(dim=0, stable=True)[:count].sort().values
