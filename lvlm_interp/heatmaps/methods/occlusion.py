"""Each patch, or region, hidden in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.occlusion import occlusion
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.heatmaps.filling import TOKENS
from lvlm_interp.heatmaps.game import OverSets


@dataclass(frozen=True)
class Occlusion(OverSets):
    """What the value loses when one patch is hidden; of patches and tokens, see `attribution.occlusion`."""

    name: ClassVar[str] = "occlusion"
    cost: ClassVar[str] = "N + 2, over text rows alone where text loses sight of tokens"
    source: ClassVar[str] = "Zeiler & Fergus 2014"

    def map(self, asked: Asked) -> PatchMap:
        if self.regions is None and isinstance(self.substrate, str) and self.substrate == TOKENS:
            return occlusion(asked, self.hide_from)
        game = self.game(asked)
        lost = game.whole[:, None] - game(~torch.eye(game.players, dtype=torch.bool))
        return game.mapped(self.name, lost, {})
