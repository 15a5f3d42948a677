"""Patches that are seen or hidden together: blocks of the grid, or labels of the user's own."""

from __future__ import annotations

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
    labels = torch.as_tensor(np.asarray(regions))
    if labels.is_floating_point() or labels.is_complex() or labels.ndim != 2:
        raise InputError(f"regions are labels, whole numbers [row, column] or [height, width]; got {shown(labels)}")
    labels = labels.long()
    if labels.shape == asked.cells.shape:
        return labels.flatten()
    boxes, (width, height) = boxes_of(asked.view, asked.cells)
    if tuple(labels.shape) != (height, width):
        raise InputError(
            f"labels are of the grid, {list(asked.cells.shape)}, or of the picture, {[height, width]}; got "
            f"{list(labels.shape)}"
        )
    return torch.stack([_most(labels, box) for box in boxes.flatten(0, 1).tolist()])


def _most(labels: Int[Tensor, "height width"], box: list[float]) -> Int[Tensor, ""]:
    left, top, right, bottom = map(round, box)
    inside = labels[top : max(bottom, top + 1), left : max(right, left + 1)]
    return inside.flatten().mode().values


def spread(values: Float[Tensor, "part region"], regions: Int[Tensor, " patch"]) -> Float[Tensor, "part patch"]:
    """Each region's number in equal shares on its patches, so that sums stay; 0 where there is no region."""
    sizes = torch.bincount(regions[regions >= 0], minlength=values.shape[1])
    shares = values / sizes
    return torch.where(regions >= 0, shares[:, regions.clamp(min=0)], 0.0)
