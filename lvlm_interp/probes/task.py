"""What a probe is to predict, and which examples it is held out on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.utils.multiclass import type_of_target
from torch import Tensor

from lvlm_interp import bootstrap
from lvlm_interp.bootstrap import Samples, Scores
from lvlm_interp.columns import native, need_unmasked, numbered, plain
from lvlm_interp.errors import InputError
from lvlm_interp.probes import statistics
from lvlm_interp.probes.fit import BINARY, GAUSSIAN, MULTINOMIAL, Likelihood

TaskKind = Literal["classify", "regress"]
Label = str | int | float | bool

INNER_FOLDS = 3
ROUNDED = 1e-3  # of the labels' spread: what their number type may take from them


@dataclass(frozen=True)
class Task:
    """Labels as numbers.

    Attributes:
        kind: `classify` or `regress`.
        classes: the labels, sorted; outputs by number in a regression.
        truth: the number of each example's class, `[example]`, or the values to predict, `[example, output]`.
    """

    kind: TaskKind
    classes: tuple[Label, ...]
    truth: Tensor

    @property
    def likelihood(self) -> Likelihood:
        if self.kind == "regress":
            return GAUSSIAN
        return BINARY if len(self.classes) == 2 else MULTINOMIAL

    @cached_property
    def spread(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the values; 0 and 1 for classes.

        Values are fitted in this unit: a fit must not depend on whether they are in metres or miles, from which zero.
        """
        if self.kind == "classify":
            return torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
        deviation, mean = torch.std_mean(self.truth.double(), 0, correction=0)
        return mean, torch.where(deviation > 0, deviation, 1.0)

    def targets(self, truth: Tensor) -> Float[Tensor, "*example output"]:
        """What margins are fitted to: 0 or 1, one-hot, or the values in the unit of their spread."""
        if self.kind == "regress":
            mean, deviation = self.spread
            return ((truth - mean) / deviation).to(truth.dtype)
        hot = torch.nn.functional.one_hot(truth, len(self.classes)).to(bootstrap.numbers())
        return hot[..., 1:] if len(self.classes) == 2 else hot

    def margins(self, fitted: Float[Tensor, "*example output"]) -> Float[Tensor, "*example output"]:
        """What was fitted to `targets`, in the unit of the labels."""
        mean, deviation = self.spread
        return (fitted * deviation + mean).to(fitted.dtype)

    def probabilities(self, margins: Float[Tensor, "*example output"]) -> Float[Tensor, "*example class"]:
        means = self.likelihood.mean(margins)
        return torch.cat([1 - means, means], -1) if len(self.classes) == 2 else means

    def surer(self, margins: Float[Tensor, "*example output"]) -> Float[Tensor, "*example class"]:
        """Log-odds of each class, which order examples as its probability does, and never tie where that is 1."""
        if len(self.classes) == 2:
            return torch.cat([-margins, margins], -1)
        rest = ~torch.eye(len(self.classes), dtype=torch.bool)
        return torch.stack([margins[..., c] - margins[..., rest[c]].logsumexp(-1) for c in range(len(rest))], -1)

    def predicted(self, margins: Float[Tensor, "*example output"]) -> Tensor:
        """Class numbers `[…]`, or values `[…, output]`."""
        if self.kind == "regress":
            return margins
        return (margins[..., 0] > 0).long() if len(self.classes) == 2 else margins.argmax(-1)

    def scores(
        self,
        margins: Float[Tensor, "site example output"],
        truth: Tensor,
        weights: Samples,
        fold: Int[Tensor, " example"],
    ) -> dict[str, Scores]:
        if self.kind == "regress":
            return statistics.point_scores(truth, margins.to(weights.dtype), weights)
        return statistics.class_scores(truth, self.predicted(margins), self.surer(margins.double()), weights, fold)


def task_of(labels: Any, kind: TaskKind | Literal["auto"] = "auto") -> Task:
    """Strings, integers and whole floats are classes; other floats, and rows of numbers, are values.

    Raises:
        InputError: one class only, labels that are missing or not finite, or not what such a task predicts.
    """
    values = plain(labels, "labels")
    if kind not in ("auto", "classify", "regress"):
        raise InputError(f"no task {kind!r}; there are 'auto', 'classify' and 'regress'")
    if values.ndim > (1 if kind == "classify" else 2):
        raise InputError(f"labels of shape {values.shape}: give one for each example, or rows of numbers to regress")
    points = values.ndim == 2 or (kind == "auto" and type_of_target(values).startswith("continuous"))
    if kind == "regress" or (kind == "auto" and points):
        if values.dtype.kind not in "biuf":
            rows = f" (of shape {values.shape}, they are rows: labels of classes are one for each example)"
            raise InputError(
                f"labels such as {str(values.flat[0])!r} are no numbers, which a regression needs"
                + rows * (values.ndim == 2)
            )
        numbers = values.reshape(len(values), -1)
        if (same := (numbers == numbers[:1]).all(0)).any():
            raise InputError(f"all labels{_output(same)} are equal: there is nothing to predict")
        numbers = native(numbers)
        truth = torch.tensor(numbers, dtype=bootstrap.numbers())
        _need_spread(truth, torch.tensor(numbers, dtype=torch.float64))
        return Task("regress", tuple(range(truth.shape[1])), truth)
    classes, numbers = np.unique(values, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"all {len(values)} labels are {classes.tolist()}: a probe needs at least two classes")
    return Task("classify", tuple(classes.tolist()), torch.from_numpy(numbers.reshape(len(values))))


def _output(where: Any) -> str:
    """Which output a message is about, if there are several."""
    return "" if len(where) == 1 else f" of output {int(where.argmax())}"


def _need_spread(truth: Float[Tensor, "example output"], exact: Float[Tensor, "example output"]) -> None:
    """Raise where values are so far from 1, or their differences from them, that scores would be rounding."""
    squares = (truth - truth.mean(0)).square().mean(0)
    rounded = (truth - exact).abs().amax(0) > ROUNDED * exact.std(0, correction=0)
    if (lost := ~squares.isfinite() | (squares < torch.finfo(truth.dtype).tiny) | rounded).any():
        raise InputError(
            f"the labels{_output(lost.int())} are too large, too small or too near to each other for numbers of "
            f"{str(truth.dtype).removeprefix('torch.')}: give them in another unit, or less a constant"
        )


def given_features(features: Any) -> Any:
    """Features as something with a shape and a type of real numbers.

    Raises:
        InputError: texts, objects or complex numbers; not all of one shape.
    """
    need_unmasked(features, "features")
    try:
        found = features if hasattr(features, "shape") else np.asarray(features)
    except ValueError as error:
        raise InputError(f"features are not all of one shape: {error}") from error
    dtype = getattr(found, "dtype", None)
    real = not dtype.is_complex if isinstance(dtype, torch.dtype) else getattr(dtype, "kind", "f") in "biuf"
    if not real:
        by_name = getattr(dtype, "kind", "") == "O"
        collected = "; of what collect_features gives, take one by its name: found[name].values" * by_name
        raise InputError(f"features are real numbers; got {str(dtype).removeprefix('torch.')}{collected}")
    return found


def make_folds(task: Task, groups: Int[Tensor, " example"], count: int, seed: int) -> Int[Tensor, " example"]:
    """The fold that each example is held out with: classes spread evenly, groups whole.

    Raises:
        InputError: too few examples, groups or members of a class.
    """
    alone = len(groups.unique())
    if alone < 2:
        raise InputError(
            f"all {len(groups)} examples are of one group, and groups are held out whole: give two or more"
        )
    if not 2 <= count <= alone:
        raise InputError(f"{count} folds of {len(groups)} examples in {alone} groups: give from 2 to {alone} folds")
    splitters = {
        ("classify", True): StratifiedGroupKFold,
        ("classify", False): StratifiedKFold,
        ("regress", True): GroupKFold,
        ("regress", False): KFold,
    }
    if task.kind == "classify":
        rarest = int(task.truth.bincount(minlength=len(task.classes)).argmin())
        members = int((task.truth == rarest).sum())
        if members < count:
            raise InputError(
                f"{count} folds, but class {task.classes[rarest]!r} has only {members} examples: give fewer folds, or "
                "leave that class out"
            )
    grouped = alone < len(groups)
    splitter = splitters[task.kind, grouped](count, shuffle=True, random_state=seed)
    classes, together = task.truth.numpy() if task.kind == "classify" else None, groups.numpy() if grouped else None
    fold = torch.zeros(len(groups), dtype=torch.long)
    for number, (_, test) in enumerate(splitter.split(np.zeros(len(groups)), classes, together)):
        fold[torch.from_numpy(test)] = number
    return fold


def check_folds(task: Task, groups: Int[Tensor, " example"], fold: Int[Tensor, " example"]) -> None:
    """Raises:
    InputError: a group is on both sides of a fold, or a class is missing from what a fold is trained on.
    """
    pairs = torch.stack([groups, fold]).unique(dim=1)
    if pairs.shape[1] > len(groups.unique()):
        raise InputError("the folds given split a group: all examples of a group must be in one fold")
    if len(fold.unique()) < 2:
        raise InputError("all examples are in one fold: nothing is left to train on")
    for number in fold.unique() if task.kind == "classify" else ():
        seen = task.truth[fold != number].bincount(minlength=len(task.classes))
        if missing := [task.classes[int(c)] for c in (seen == 0).nonzero()]:
            raise InputError(
                f"all examples of {missing} fall into fold {int(number)}, since groups stay whole: these classes are "
                "in too few groups. Give coarser classes, more groups, or no groups"
            )


def inner_folds(
    task: Task, groups: Int[Tensor, " example"], fold: Int[Tensor, " example"], seed: int
) -> tuple[Int[Tensor, " _"], ...]:
    """Inner folds of each fold's training examples."""
    found = []
    for number in fold.unique():
        train = fold != number
        inside = dataclasses.replace(task, truth=task.truth[train])
        within = numbered(groups[train])
        count = min(INNER_FOLDS, len(within.unique()))
        if task.kind == "classify":
            count = min(count, int(inside.truth.bincount(minlength=len(task.classes)).min()))
        if count < 2:
            raise InputError("too few examples to choose l2 inside the training folds: give one l2, or more examples")
        found.append(make_folds(inside, within, count, seed + 1))
        check_folds(inside, within, found[-1])
    return tuple(found)
