"""Patches that are seen or hidden together: blocks of the grid, or labels of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.attribution.asked import Asked, boxes_of
from lvlm_interp.errors import InputError
from lvlm_interp.fields import shown

Regions = int | np.ndarray | Tensor | None
"""None: every patch is a region. A number n: n × n blocks of the grid. Labels, whole numbers, by patch `[row, column]`
or by pixel of the original picture `[height, width]`, where a patch is of the label that most of it has (superpixels,
segments); those below 0 are no region, and their patches are always seen."""


def regions_of(asked: Asked, regions: Regions) -> Int[Tensor, " patch"]:
    """The number of the region that each patch is in, row by row; -1 for those in none.

    Raises:
        InputError: labels of another size, or of none at all.
    """
    rows, columns = asked.cells.shape
    if regions is None:
        return torch.arange(rows * columns)
    labels = _blocks(rows, columns, regions) if isinstance(regions, int) else _labelled(asked, regions)
    if not (labels >= 0).any():
        raise InputError("no patch is in a region: every label is below 0")
    known = labels[labels >= 0].unique()
    return torch.where(labels >= 0, torch.searchsorted(known, labels), -1)


def _blocks(rows: int, columns: int, count: int) -> Int[Tensor, " patch"]:
    if isinstance(count, bool) or count < 1:
        raise InputError(f"regions={count!r}: a number of blocks along each side is 1 or more")
    across, down = min(count, columns), min(count, rows)
    row, column = torch.arange(rows) * down // rows, torch.arange(columns) * across // columns
    return (row[:, None] * across + column).flatten()


def _labelled(asked: Asked, regions: Any) -> Int[Tensor, " patch"]:
    labels = _whole(regions)
    if labels.shape == asked.cells.shape:
        return labels.flatten()
    boxes, (width, height) = boxes_of(asked.view, asked.cells)
    if tuple(labels.shape) != (height, width):
        raise InputError(
            f"labels are of the grid, {list(asked.cells.shape)}, or of the picture, {[height, width]}; got "
            f"{list(labels.shape)}"
        )
    return torch.stack(
        [labels[pixels_in(box, labels.shape)].flatten().mode().values for box in boxes.flatten(0, 1).tolist()]
    )


def _whole(regions: Any) -> Int[Tensor, "_ _"]:
    """Labels in whatever they are given.

    Raises:
        InputError: no whole numbers on two axes, some that are masked, or too large for 64 bits.
    """
    given = regions.detach().cpu() if isinstance(regions, Tensor) and not regions.is_meta else regions
    try:
        array = np.ma.asarray(given) if isinstance(given, np.ma.MaskedArray) else np.asarray(given)
        whole = array.ndim == 2 and array.dtype.kind in "biu" and not np.ma.is_masked(array)
        if whole and (not array.size or int(array.max()) < 1 << 62):
            return torch.from_numpy(np.array(array, np.int64))
    except (TypeError, ValueError, RuntimeError):
        pass
    raise InputError(
        f"regions are labels, whole numbers [row, column] or [height, width], none of them masked; got {shown(regions)}"
    )


def pixels_in(box: Sequence[float], shape: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of the pixels of a box, at least one of each: a patch may be narrower than a pixel."""
    left, top, right, bottom = map(round, box)
    height, width = shape
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))


def spread(values: Float[Tensor, "part region"], regions: Int[Tensor, " patch"]) -> Float[Tensor, "part patch"]:
    """Each region's number in equal shares on its patches, so that sums stay; 0 where there is no region."""
    sizes = torch.bincount(regions[regions >= 0], minlength=values.shape[1])
    shares = values / sizes
    return torch.where(regions >= 0, shares[:, regions.clamp(min=0)], 0.0)
