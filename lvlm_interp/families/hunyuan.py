"""HunYuan-VL."""

from __future__ import annotations

import dataclasses

from lvlm_interp.families.shared.cuts import even, grid, merged
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Layout, Processed


def _lined(image: Processed) -> Layout:
    """The same with a token at the end of each row, one before and one behind (HunYuan-VL)."""
    return Layout((dataclasses.replace(even(*grid(image), image.size), before=1, row_end=1, after=1),))


FAMILIES = {"hunyuan_vl": Family(layout=_lined, merge=merged)}
