"""Held-out margins at every site: nested cross-validation with everything that is learnt inside the training folds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.probes.fit import Problem, Space, solve
from lvlm_interp.probes.least_squares import held_out_r2
from lvlm_interp.probes.task import Task

SHRINKAGE = (1.0, 0.01)  # of the least-squares probe in permutation tests; the better counts
INNER_TOLERANCE = 1e-2  # that of the inner folds, whose losses only choose L2: below it, the choice stays the same


@dataclass(frozen=True)
class Plan:
    """Everything about a run that is the same at all sites.

    Attributes:
        task: the labels.
        targets: those of the real task, then of the control tasks, `[example, target, output]`.
        fold: the fold that each example is held out with.
        inner: for each fold, the inner fold of each of its training examples.
        l2: strengths to choose from, strongest first.
        standardize: scale features by their standard deviation.
        tolerance: of the fits.
        inner_tolerance: of those of the inner folds.
    """

    task: Task
    targets: Float[Tensor, "example target output"]
    fold: Int[Tensor, " example"]
    inner: tuple[Int[Tensor, " _"], ...]
    l2: tuple[float, ...]
    standardize: bool
    tolerance: float
    inner_tolerance: float = INNER_TOLERANCE


def cross_validated(
    x: Float[Tensor, "site example dim"], plan: Plan
) -> tuple[Float[Tensor, "site example target output"], Float[Tensor, "site strength"]]:
    """Held-out margins of every example, and the inner folds' losses by strength of L2, added up over folds."""
    targets = plan.targets.to(x.dtype)
    margins = x.new_zeros(len(x), *targets.shape)
    losses = x.new_zeros(len(x), len(plan.l2))
    for number, inner in enumerate(plan.inner):
        test = plan.fold == number
        inner_losses = validated(x[:, ~test], targets[~test, :1], inner, plan)
        losses += inner_losses
        space = Space.of(x[:, ~test], plan.standardize)
        problem = Problem(space.enter(x[:, ~test]), targets[~test], plan.task.likelihood)
        weights = solve(problem, strongest_best(inner_losses, plan.l2), tolerance=plan.tolerance)
        held_out = space.enter(x[:, test]) @ weights.flatten(2)
        margins[:, test] = held_out.unflatten(2, targets.shape[1:])
    return margins, losses


def validated(
    x: Float[Tensor, "site example dim"],
    targets: Float[Tensor, "example target output"],
    fold: Int[Tensor, " example"],
    plan: Plan,
) -> Float[Tensor, "site strength"]:
    """Held-out loss of each strength of L2; each fit starts from the one before."""
    losses = x.new_zeros(len(x), len(plan.l2))
    for number in fold.unique() if len(plan.l2) > 1 else ():
        test = fold == number
        space = Space.of(x[:, ~test], plan.standardize)
        problem = Problem(space.enter(x[:, ~test]), targets[~test], plan.task.likelihood)
        held_out = Problem(space.enter(x[:, test]), targets[test], plan.task.likelihood)
        weights = None
        for i, strength in enumerate(plan.l2):
            weights = solve(problem, x.new_full((len(x),), strength), weights, plan.inner_tolerance)
            losses[:, i] += plan.task.likelihood.loss(held_out.margins(weights), held_out.y).sum((1, 2))
    return losses


def strongest_best(losses: Float[Tensor, "site strength"], l2: Sequence[float]) -> Float[Tensor, " site"]:
    """For each site the strength of least loss, the strongest of equals."""
    return torch.tensor(l2, dtype=losses.dtype)[losses.argmin(1)]


@dataclass(frozen=True)
class Fitted:
    """What a block of sites gave; concatenated over blocks (tensors start with the site)."""

    coef: Float[Tensor, "site dim output"]
    intercept: Float[Tensor, "site output"]
    l2: Float[Tensor, " site"]
    margins: Float[Tensor, "site example target output"]
    statistic: Float[Tensor, "site order"]
    separable: Tensor
    constant: Tensor

    @classmethod
    def together(cls, blocks: Sequence[Fitted]) -> Fitted:
        return cls(**{f.name: torch.cat([getattr(b, f.name) for b in blocks]) for f in dataclasses.fields(cls)})


def fit_block(x: Float[Tensor, "site example dim"], plan: Plan, orders: Int[Tensor, "order example"]) -> Fitted:
    """All that needs features: held-out margins, the permutation statistic, and the probes on all examples."""
    margins, losses = cross_validated(x, plan)
    space, chosen = Space.of(x, plan.standardize), strongest_best(losses, plan.l2)
    problem = Problem(space.enter(x), plan.targets[:, :1].to(x.dtype), plan.task.likelihood)
    weights = solve(problem, chosen, tolerance=plan.tolerance)
    coef, intercept = space.leave(weights)
    fits = plan.task.predicted(problem.margins(weights)[:, :, 0])
    separable = torch.full((len(x),), False)
    if plan.task.kind == "classify":
        separable = (fits == plan.task.truth).all(1)
    return Fitted(
        (coef[:, :, 0] * plan.task.spread[1]).to(x.dtype),
        plan.task.margins(intercept[:, 0]),
        chosen,
        plan.task.margins(margins),
        held_out_r2(x, plan.targets[:, 0].to(x.dtype), orders, plan.fold, SHRINKAGE, plan.standardize),
        separable,
        (x == x[:, :1]).all(1).sum(1),
    )
