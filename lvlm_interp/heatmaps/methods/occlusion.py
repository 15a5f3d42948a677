"""Each patch hidden in turn, as tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.occlusion import occlusion
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.engine.score import HideFrom
from lvlm_interp.heatmaps.method import Kind, Method


@dataclass(frozen=True)
class Occlusion(Method):
    """What the value loses when one patch is hidden; see `attribution.occlusion`.

    Attributes:
        hide_from: `text`: image tokens go on seeing the hidden one; `all`: nobody sees it. By default `text`, or `all`
            where only that is possible.
    """

    name: ClassVar[str] = "occlusion"
    kind: ClassVar[Kind] = "counterfactual"
    cost: ClassVar[str] = "N + 2, over text rows alone where text loses sight"
    source: ClassVar[str] = "Zeiler & Fergus 2014, on tokens"
    hide_from: HideFrom | None = None

    def map(self, asked: Asked) -> PatchMap:
        return occlusion(asked, self.hide_from)
