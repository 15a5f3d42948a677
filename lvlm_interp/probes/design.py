"""What of a fit follows from its table alone: what is predicted, and which examples it is held out on.

Whatever is wrong here can be said before a single feature is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from lvlm_interp.columns import Column, numbered
from lvlm_interp.probes.estimators import strengths
from lvlm_interp.probes.task import Task, check_folds, inner_folds, make_folds

L2 = (1e4, 1e3, 1e2, 1e1, 1e0, 1e-1)


@dataclass(frozen=True, eq=False)
class Design:
    """How examples are told apart.

    Attributes:
        task: the labels.
        groups: the number of each example's group; its own where none were given.
        types: the number of each example's type, if there are any.
        fold: the fold that each example is held out with.
        inner: for each fold, the inner fold of each of its training examples.
        l2: strengths to choose from, strongest first.
    """

    task: Task
    groups: Int[Tensor, " example"]
    types: Int[Tensor, " example"] | None
    fold: Int[Tensor, " example"]
    inner: tuple[Int[Tensor, " _"], ...]
    l2: tuple[float, ...]


def designed(
    task: Task,
    groups: Column | None,
    types: Column | None,
    folds: int | Column,
    seed: int,
    l2: float | Sequence[float] = L2,
) -> Design:
    """The design of a fit, with the arguments of `fit_probes`, a member for each example.

    Raises:
        InputError: groups, types or folds that do not fit together, or too few examples for them, inner folds among
            them; an l2 that is none.
    """
    grouped = numbered(groups) if groups is not None else torch.arange(len(task.truth))
    fold = numbered(folds, "folds") if isinstance(folds, Iterable) else make_folds(task, grouped, folds, seed)
    check_folds(task, grouped, fold)
    chosen = strengths(l2)
    inner = inner_folds(task, grouped, fold, seed) if len(chosen) > 1 else _no_inner(fold)
    return Design(task, grouped, None if types is None else numbered(types, "types"), fold, inner, chosen)


def _no_inner(fold: Int[Tensor, " example"]) -> tuple[Int[Tensor, " train"], ...]:
    """Inner folds where there is no strength to choose: the outer ones, of which none is looked at."""
    return tuple(fold[fold != f] for f in fold.unique())
