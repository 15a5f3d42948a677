"""Intervals by resampling whole groups (Efron 1979): used wherever examples are not independent."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

Samples = Float[Tensor, "sample example"]
"""How often each example is drawn in each sample; the first row is all ones, and gives the score itself."""
Scores = Float[Tensor, "site sample"]
"""The score, and what it is in each sample."""


def numbers() -> torch.dtype:
    """The type of statistics: torch's default, unless that is of half precision, which cannot count."""
    default = torch.get_default_dtype()
    return default if default in (torch.float32, torch.float64) else torch.float32


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
    ones = torch.ones(count, number, dtype=numbers())
    times = torch.zeros_like(ones).scatter_add_(1, drawn, ones)
    return torch.cat([torch.ones(1, len(groups), dtype=numbers()), times[:, groups]])


def interval(
    scores: Scores, confidence: float, groups: int, inflation: float = 1.0
) -> tuple[Float[Tensor, " site"], Float[Tensor, " site"]]:
    """Student's interval around a score, with the spread that the samples after the first have.

    The quantiles of the samples themselves would be too narrow by what few groups leave unknown of the spread.

    Args:
        scores: the score (first) and its samples.
        confidence: of the interval.
        groups: how many were drawn from.
        inflation: what the variance is multiplied by, where samples do not show all of it.

    Returns:
        low and high; NaN if there are no samples, or only one group.
    """
    reach = _quantile(confidence, groups) * inflation**0.5 * _spread(scores, groups)
    return scores[:, 0] - reach, scores[:, 0] + reach


def share_interval(
    scores: Scores, confidence: float, groups: int, examples: int, inflation: float = 1.0
) -> tuple[Float[Tensor, " site"], Float[Tensor, " site"]]:
    """As `interval`, for scores between 0 and 1: Wilson's (1927), which stays between them.

    It asks for a number of independent observations: as many as would give a share the spread that the samples have,
    but not more than there are examples. Where samples do not differ, each group counts as one observation.
    """
    share, variance = scores[:, 0], _spread(scores, groups).square()
    told = torch.where(variance > 0, share * (1 - share) / variance, groups).clamp(min=1e-6, max=examples)
    square = inflation * _quantile(confidence, groups) ** 2 / told
    middle, reach = share + square / 2, (square * (share * (1 - share) + square / 4)).sqrt()
    known = torch.where(variance.isnan(), torch.nan, 1 + square)
    return (middle - reach) / known, (middle + reach) / known


def _spread(scores: Scores, groups: int) -> Float[Tensor, " site"]:
    """Standard deviation of the samples, freed of what it lacks where groups are few; NaN without samples."""
    samples = scores[:, 1:]
    there = ~samples.isnan()
    count = there.sum(1).clamp(min=1)
    mean = samples.nansum(1) / count
    variance = (samples - mean[:, None]).square().nansum(1) / count
    nothing = there.sum(1) < 2 if groups > 1 else torch.full_like(count, True, dtype=torch.bool)
    return torch.where(nothing, torch.nan, (variance * groups / max(groups - 1, 1)).sqrt())


def _quantile(confidence: float, groups: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, max(groups - 1, 1)))
