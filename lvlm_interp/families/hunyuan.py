"""HunYuan-VL."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lvlm_interp.families.shared.cuts import even, grid, merged
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Layout, Processed


def _lined(image: Processed) -> Layout:
    """The same with a token at the end of each row, one before and one behind (HunYuan-VL)."""
    return Layout((dataclasses.replace(even(*grid(image), image.size), before=1, row_end=1, after=1),))


def _positions(base: Any, given: Mapping[str, Any]) -> Tensor | None:
    """Its images are numbered in their positions; in a batch, it goes on from row to row."""
    if "image_grid_thw" not in given:
        return None
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    positions: Tensor = base.get_rope_index(**{name: given[name] for name in names if name in given})[0]
    return positions


FAMILIES = {"hunyuan_vl": Family(layout=_lined, merge=merged, positions=_positions)}
