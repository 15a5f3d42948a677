"""Each patch, or region, hidden in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.occlusion import occlusion
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.engine.score import HideFrom
from lvlm_interp.heatmaps.game import Game
from lvlm_interp.heatmaps.hiding import TOKENS, Substrate
from lvlm_interp.heatmaps.method import Kind, Method
from lvlm_interp.heatmaps.regions import Regions


@dataclass(frozen=True)
class Occlusion(Method):
    """What the value loses when one patch is hidden; of patches and tokens, see `attribution.occlusion`.

    Attributes:
        regions: what is hidden together (`heatmaps.regions`); every patch by default.
        substrate: what stands in the place of a patch that is not seen (`heatmaps.hiding`).
        hide_from: of tokens. `text`: image tokens go on seeing the hidden one; `all`: nobody sees it. By default
            `text`, or `all` where only that is possible.
    """

    name: ClassVar[str] = "occlusion"
    kind: ClassVar[Kind] = "counterfactual"
    cost: ClassVar[str] = "N + 2, over text rows alone where text loses sight of tokens"
    source: ClassVar[str] = "Zeiler & Fergus 2014"
    regions: Regions = None
    substrate: Substrate = TOKENS
    hide_from: HideFrom | None = None

    def map(self, asked: Asked) -> PatchMap:
        if self.regions is None and isinstance(self.substrate, str) and self.substrate == TOKENS:
            return occlusion(asked, self.hide_from)
        game = Game(asked, self.regions, self.substrate, self.hide_from)
        lost = game.whole[:, None] - game(~torch.eye(game.players, dtype=torch.bool))
        return game.mapped(self.name, lost, {})
