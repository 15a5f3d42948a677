"""Intervals by resampling whole groups (Efron 1979): used wherever examples are not independent."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

Samples = Float[Tensor, "sample example"]
"""How often each example is drawn in each sample; the first row is all ones, and gives the score itself."""


def bootstrap_weights(groups: Int[Tensor, " example"], count: int, generator: torch.Generator) -> Samples:
    """How often each example is drawn: ones, then `count` samples of whole groups with replacement.

    Examples of one group, such as questions about one image, are not independent: resampling them singly would make
    intervals too narrow.

    Args:
        groups: the number of each example's group, counted from 0 without gaps.
        count: how many samples.
        generator: what draws them.
    """
    number = int(groups.max()) + 1
    drawn = torch.randint(number, (count, number), generator=generator)
    times = torch.zeros(count, number).scatter_add_(1, drawn, torch.ones(count, number))
    return torch.cat([torch.ones(1, len(groups)), times[:, groups]])


def interval(
    scores: Float[Tensor, "site sample"], confidence: float
) -> tuple[Float[Tensor, " site"], Float[Tensor, " site"]]:
    """Percentile interval of the samples after the first; NaN if there are none."""
    samples = scores[:, 1:]
    if not samples.shape[1]:
        return torch.full_like(scores[:, 0], torch.nan), torch.full_like(scores[:, 0], torch.nan)
    edge = (1 - confidence) / 2
    low, high = samples.nanquantile(torch.tensor([edge, 1 - edge], dtype=samples.dtype), 1)
    return low, high
