"""Fuyu, which has no vision tower."""

from __future__ import annotations

from lvlm_interp.families.shared.cuts import laid
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Block, Layout, Processed
from lvlm_interp.families.shared.names import Names


def _fitting(image: Processed) -> Layout:
    """The picture as it is, or made smaller to fit, padded to whole tokens to the right and below (Fuyu)."""
    most = image.settings("size")
    if most is None:
        return Layout((Block(),))  # patches alone do not tell how many stand in a row
    scale = min(1.0, most["width"] / image.size[0], most["height"] / image.size[1])
    now = (int(image.size[0] * scale), int(image.size[1] * scale))
    return Layout((laid(image, now, now),))


FAMILIES = {"fuyu": Family(prompt="{question}", layout=_fitting)}
NAMES = Names(head_by_head=("query_key_value",), projector=("vision_embed_tokens",))
