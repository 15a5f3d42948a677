"""Least squares for permutation tests: a thousand orders of the labels cost little more than a few."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.probes.fit import Sites, Space

AT_ONCE = 1 << 24  # held-out predictions in memory together


def held_out_r2(
    x: Sites,
    y: Float[Tensor, "example output"],
    orders: Int[Tensor, "order example"],
    fold: Int[Tensor, " example"],
    shrinkage: tuple[float, ...],
    standardize: bool = True,
) -> Float[Tensor, "site order"]:
    """R² of held-out least-squares predictions for many orders of the targets, the best over strengths of shrinkage.

    The fits of all orders share one factor for each fold, so that a thousand permutations cost little more than a few.

    Args:
        x: features.
        y: targets; outputs are added up.
        orders: rows of indices; the targets `y[order]` are fitted.
        fold: the part that each example is held out with.
        shrinkage: strengths of L2 as shares of the number of examples, which is the features' mean eigenvalue.
        standardize: scale features.
    """
    errors = x.new_zeros(len(shrinkage), len(x), len(orders))
    spread = x.new_zeros(len(orders))
    several = max(1, AT_ONCE // (len(x) * y.numel()))
    for number in fold.unique():
        test, train = fold == number, fold != number
        space = Space.of(x[:, train], standardize)
        learned, seen = space.enter(x[:, train])[..., :-1], space.enter(x[:, test])[..., :-1]
        gram, unit = learned.mT @ learned, torch.eye(learned.shape[2], dtype=x.dtype)
        factors = [torch.linalg.cholesky(gram + share * learned.shape[1] * unit) for share in shrinkage]
        maps = [torch.cholesky_solve(seen.mT, factor).mT for factor in factors]  # from products to predictions
        for some in torch.arange(len(orders)).split(several):
            given, wanted = (y[orders[some][:, part]].movedim(0, 1) for part in (train, test))
            mean = given.mean(0)
            given, wanted = given - mean, wanted - mean
            spread[some] += wanted.square().sum((0, 2))
            inner = learned.mT @ given.flatten(1)
            for i, one in enumerate(maps):
                missed = (one @ inner).sub_(wanted.flatten(1))
                errors[i][:, some] += missed.square_().unflatten(2, wanted.shape[1:]).sum((1, 3))
    return (1 - errors / spread).amax(0)
