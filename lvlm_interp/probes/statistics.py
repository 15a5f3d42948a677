"""Honest numbers about held-out predictions: weighted scores, bootstrap intervals, permutations that respect groups.

All sites are scored together. A bootstrap sample is a row of weights, so that a score over a thousand samples is a
matrix product; the first row of weights is all ones, and gives the score itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.bootstrap import Samples, Scores, interval, share_interval

INFLATION = 1.5
"""What the variance of a held-out score over samples of examples is multiplied by.

Samples draw held-out predictions anew, but not the probes that made them: those share most of what they were fitted to
(Bates, Hastie & Tibshirani 2024). How much that adds depends on the data. `benchmarks/coverage.py` measures how often
intervals hold the score on new examples; Nadeau & Bengio's (2003) factor for five folds is 2.25, which is too wide.
"""


def class_scores(
    truth: Int[Tensor, " example"],
    predicted: Int[Tensor, "site example"],
    surer: Float[Tensor, "site example class"],
    weights: Samples,
    fold: Int[Tensor, " example"],
) -> dict[str, Scores]:
    """Accuracy, balanced accuracy, AUROC and macro-F1 in every sample, as scikit-learn defines them.

    AUROC of more than two classes is the mean over classes of one against the rest; only examples of the same fold are
    compared, as the probes of two folds need not share a zero. Classes that a sample lacks are left out of its means.
    """
    classes = range(surer.shape[-1])
    correct = (predicted == truth).to(weights.dtype)
    recalls, f1s, areas = [], [], []
    for c in classes:
        is_class, said = (truth == c).to(weights.dtype), (predicted == c).to(weights.dtype)
        there, named = (weights @ is_class)[None], said @ weights.T
        found = (said * is_class) @ weights.T
        recalls.append(found / there)
        f1s.append(2 * found / (there + named))
        if c or len(classes) > 2:  # of two classes, one tells all
            areas.append(_auroc(truth == c, surer[..., c], weights, fold))
    return {
        "accuracy": correct @ weights.T / weights.sum(1),
        "balanced_accuracy": torch.stack(recalls).nanmean(0),
        "auroc": torch.stack(areas).nanmean(0),
        "macro_f1": torch.stack(f1s).nanmean(0),
    }


def _auroc(
    positive: Bool[Tensor, " example"],
    score: Float[Tensor, "site example"],
    weights: Samples,
    fold: Int[Tensor, " example"],
) -> Scores:
    """The share of pairs (positive, negative) of one fold that a score puts in the right order; equals count half."""
    right = weights.new_zeros(len(score), len(weights))
    pairs = weights.new_zeros(len(weights))
    for number in fold.unique():
        part = fold == number
        kind, drawn = positive[part].to(weights.dtype), weights[:, part]
        pairs += (drawn @ kind) * (drawn @ (1 - kind))
        for row, values in zip(right, score[:, part], strict=True):
            ordered, order = values.sort()
            negatives = torch.nn.functional.pad((drawn * (1 - kind))[:, order].cumsum(1), (1, 0))
            below, up_to = (torch.searchsorted(ordered, ordered, right=side) for side in (False, True))
            beaten = (negatives[:, below] + negatives[:, up_to]) / 2
            row += ((drawn * kind)[:, order] * beaten).sum(1)
    return right / pairs


def point_scores(
    truth: Float[Tensor, "example output"], predicted: Float[Tensor, "site example output"], weights: Samples
) -> dict[str, Scores]:
    """R² (mean over outputs) and the mean distance between truth and prediction in every sample."""
    share = weights / weights.sum(1, keepdim=True)
    missed = truth - predicted
    around = truth - truth.mean(0)  # squares of values far from 0 would leave their spread to rounding
    spread = share @ around.square() - (share @ around).square()
    squares = torch.einsum("seo,be->sbo", missed.square(), share)
    return {"r2": (1 - squares / spread).mean(-1), "pixel_error": missed.norm(dim=-1) @ share.T}


def score_intervals(
    scores: Mapping[str, Scores], confidence: float, groups: int, examples: int
) -> tuple[Float[Tensor, "metric site"], Float[Tensor, "metric site"]]:
    """Low and high of every score: Wilson's for shares; of the log of an error, and of the variance that is missed."""
    found = []
    for name, values in scores.items():
        if name == "pixel_error":
            found.append(_log_interval(values, confidence, groups))
        elif name == "r2":
            low, high = _log_interval(1 - values, confidence, groups)
            found.append((1 - high, 1 - low))
        else:
            found.append(share_interval(values, confidence, groups, examples, INFLATION))
    return torch.stack([low for low, _ in found]), torch.stack([high for _, high in found])


def _log_interval(
    values: Scores, confidence: float, groups: int
) -> tuple[Float[Tensor, " site"], Float[Tensor, " site"]]:
    logs = values.clamp(min=torch.finfo(values.dtype).tiny).log()
    low, high = interval(logs, confidence, groups, INFLATION)
    return low.exp(), high.exp()


def exchanges(
    fold: Int[Tensor, " example"],
    groups: Int[Tensor, " example"],
    count: int,
    generator: torch.Generator,
    labels: Tensor | None = None,
) -> Int[Tensor, "permutation example"]:
    """Rows of indices that give examples each other's labels in ways that change nothing if features tell none of them.

    The first row changes nothing. Labels stay in their fold. Where each group has one label, that is what groups swap,
    whatever their size: groups could as well have had each other's, unless a group's size says what label it has.
    Elsewhere groups of equal size swap their labels, and so do the examples within each group, so that the company
    that labels keep in a group stays as it is. Where every fold is a single group, or example, folds say nothing of
    labels, and labels move between them.

    Args:
        fold: of each example.
        groups: of each example.
        count: how many rows, besides the first.
        generator: what draws them.
        labels: of each example, `[example, …]`; without them, no group is taken to have one label.
    """
    if len(fold.unique()) == len(groups.unique()):
        fold = torch.zeros_like(fold)
    found = torch.arange(len(fold)).repeat(count + 1, 1)
    if labels is not None and _have_one_label(groups, labels):
        return _groups_exchanged(found, fold, groups, generator)
    blocks = _blocks(fold.numpy(), groups.numpy())
    for row in found[1:]:
        for block in blocks:
            within = torch.rand(block.shape, generator=generator, dtype=torch.float32).argsort(1)
            among = torch.randperm(len(block), generator=generator)
            row[block.flatten()] = block.gather(1, within)[among].flatten()
    return found


def _have_one_label(groups: Int[Tensor, " example"], labels: Tensor) -> bool:
    kinds = labels.reshape(len(labels), -1).unique(dim=0, return_inverse=True)[1]
    return len(torch.stack([groups, kinds]).unique(dim=1).T) == len(groups.unique())


def _groups_exchanged(
    rows: Int[Tensor, "permutation example"],
    fold: Int[Tensor, " example"],
    groups: Int[Tensor, " example"],
    generator: torch.Generator,
) -> Int[Tensor, "permutation example"]:
    """Every example gets the label of the group that its own group swaps with."""
    for number in fold.unique():
        own, place = groups[fold == number].unique(return_inverse=True)
        first = torch.stack([(groups == group).int().argmax() for group in own])
        for row in rows[1:]:
            row[fold == number] = first[torch.randperm(len(own), generator=generator)][place]
    return rows


def _blocks(fold: np.ndarray, groups: np.ndarray) -> list[Tensor]:
    """`[group, example]`: the groups of one fold and one size, for every fold and size."""
    members: dict[tuple[int, int], list[list[int]]] = {}
    for group in np.split(np.argsort(groups, kind="stable"), np.flatnonzero(np.diff(np.sort(groups))) + 1):
        members.setdefault((int(fold[group[0]]), len(group)), []).append(group.tolist())
    return [torch.tensor(block) for block in members.values()]


def permutation_p(statistics: Float[Tensor, "site permutation"]) -> Float[Tensor, " site"]:
    """The share of permutations, the identity (first) among them, with a statistic at least as large (held-out R²)."""
    slack = 1e-5 * statistics[:, :1].abs().clamp(min=1)  # R² is 1 less a share: rounding must not break its ties
    return (statistics >= statistics[:, :1] - slack).to(statistics.dtype).mean(1)


def false_discovery_q(p: Float[Tensor, " site"]) -> Float[Tensor, " site"]:
    """Benjamini & Hochberg's (1995) adjusted p-values: those at most α have a false discovery rate of at most α."""
    from scipy.stats import false_discovery_control

    return torch.from_numpy(false_discovery_control(p.double().numpy())).to(p.dtype)


def stacked(scores: Mapping[str, Scores]) -> Float[Tensor, "metric site sample"]:
    return torch.stack(list(scores.values()))
