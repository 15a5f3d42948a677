"""Occlusion of image tokens: how much a value of each part of the answer falls when one patch is hidden.

Occlusion (Zeiler & Fergus 2014) of *tokens*: a vision tower mixes patches before tokens are made, so hiding a token is
not the same as covering its pixels. Where a family shows a picture twice, as tiles and as a thumbnail, a cell of the
tiles is hidden together with the thumbnail tokens that show its centre: otherwise they would go on telling it.
"""

from __future__ import annotations

import torch

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.attribution.value import values_of
from lvlm_interp.engine.score import HideFrom
from lvlm_interp.given import explained


@explained
def occlusion(asked: Asked, hide_from: HideFrom | None = None) -> PatchMap:
    """Each token of the image's grid hidden in turn; N + 2 coalitions of N patches.

    Args:
        asked: what is mapped.
        hide_from: `text`: image tokens go on seeing the hidden one, what text reads from it is gone (fast: the image is
            computed once for all patches); `all`: nobody sees it. By default `text`, or `all` where layers carry on
            what image tokens see, masked or not (Qwen3.5's linear attention).

    Raises:
        VisibilityError: `text` in a model where only `all` is possible.
    """
    hide_from = hide_from or usual(asked)
    visible = torch.cat([asked.x.everything[None], ~asked.whole[None], ~asked.patches])
    valued = values_of(
        asked.vlm,
        asked.x,
        visible,
        asked.target,
        hide_from=hide_from,
        progress=asked.progress,
        decoder_inputs=asked.decoder_inputs,
    )
    found = valued.numbers[0]
    return asked.mapped(
        "occlusion",
        found[:, :1] - found[:, 2:],
        found[:, 0] - found[:, 1],
        {"hide_from": hide_from, "substrate": "tokens"},
        hide_from=hide_from,
        **asked.compared(valued),
    )


def usual(asked: Asked) -> HideFrom:
    """Who loses sight of a patch where nothing is said."""
    return "all" if asked.vlm.recurrent else "text"
