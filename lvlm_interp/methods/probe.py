"""Linear probes: what can be read off every layer and head by a linear map, with honest statistics.

One call fits all sites. Everything that is learnt from data is learnt inside the training folds: coefficients, the
strength of L2 (by nested cross-validation, on the log-likelihood), centre and scale of the features. No group (the
questions about one image, say) is on both sides of a fold. Beside each score stand what the majority gets, what the
same probe gets on a control task with random labels for each type (Hewitt & Liang, "Designing and Interpreting Probes
with Control Tasks", EMNLP 2019), a bootstrap interval over groups, and a permutation p-value, adjusted over sites.

That a probe reads something off a site shows that it is there, not that the model uses it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.methods import statistics
from lvlm_interp.methods.probe_fit import (
    BINARY,
    GAUSSIAN,
    MULTINOMIAL,
    Likelihood,
    Problem,
    Space,
    held_out_r2,
    solve,
)
from lvlm_interp.model.capture import Capture
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Provenance, Result

Kind = Literal["classify", "regress"]
Label = str | int | float | bool
Column = Sequence[Any] | np.ndarray | Tensor | pd.Series

L2 = (1e4, 1e3, 1e2, 1e1, 1e0, 1e-1)
SHRINKAGE = (1.0, 0.01)  # of the least-squares probe in permutation tests; the better counts
INNER_FOLDS = 3
INNER_TOLERANCE = 1e-3  # held-out losses of the inner folds, which only choose L2, change no more below it
CONTROLS = 3  # draws of control labels that selectivity is averaged over
BLOCK = 1 << 26  # bytes of features that are fitted together
NAMED = 3  # sites that a message names before it says how many more there are


# --- what is to be predicted ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Labels as numbers.

    Attributes:
        kind: `classify` or `regress`.
        classes: the labels, sorted; outputs by number in a regression.
        truth: the number of each example's class, `[example]`, or the values to predict, `[example, output]`.
    """

    kind: Kind
    classes: tuple[Label, ...]
    truth: Tensor

    @property
    def likelihood(self) -> Likelihood:
        if self.kind == "regress":
            return GAUSSIAN
        return BINARY if len(self.classes) == 2 else MULTINOMIAL

    def targets(self, truth: Tensor) -> Float[Tensor, "*example output"]:
        """What margins are fitted to: 0 or 1, one-hot, or the values themselves."""
        if self.kind == "regress":
            return truth
        hot = torch.nn.functional.one_hot(truth, len(self.classes)).to(torch.get_default_dtype())
        return hot[..., 1:] if len(self.classes) == 2 else hot

    def probabilities(self, margins: Float[Tensor, "*example output"]) -> Float[Tensor, "*example class"]:
        means = self.likelihood.mean(margins)
        return torch.cat([1 - means, means], -1) if len(self.classes) == 2 else means

    def predicted(self, margins: Float[Tensor, "*example output"]) -> Tensor:
        """Class numbers `[…]`, or values `[…, output]`."""
        if self.kind == "regress":
            return margins
        return (margins[..., 0] > 0).long() if len(self.classes) == 2 else margins.argmax(-1)

    def scores(
        self,
        margins: Float[Tensor, "site example output"],
        truth: Tensor,
        weights: statistics.Samples,
        fold: Int[Tensor, " example"],
    ) -> dict[str, statistics.Scores]:
        if self.kind == "regress":
            return statistics.point_scores(truth, margins.to(weights.dtype), weights)
        probabilities = self.probabilities(margins.to(weights.dtype))
        return statistics.class_scores(truth, self.predicted(margins), probabilities, weights, fold)


def task_of(labels: Any, kind: Kind | Literal["auto"] = "auto") -> Task:
    """Strings, integers and whole floats are classes; other floats, and rows of numbers, are values.

    Raises:
        InputError: one class only, or labels that are not finite.
    """
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{int((~np.isfinite(values)).sum())} labels are NaN or infinite")
    if values.dtype == object:
        values = values.astype(str)
    points = values.ndim == 2 or (kind == "auto" and type_of_target(values).startswith("continuous"))
    if kind == "regress" or (kind == "auto" and points):
        truth = torch.as_tensor(values.reshape(len(values), -1), dtype=torch.get_default_dtype())
        if (truth == truth[:1]).all():
            raise InputError("all labels are equal: there is nothing to predict")
        return Task("regress", tuple(range(truth.shape[1])), truth)
    classes, numbers = np.unique(values, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"all {len(values)} labels are {classes.tolist()}: a probe needs at least two classes")
    return Task("classify", tuple(classes.tolist()), torch.from_numpy(numbers.reshape(len(values))))


# --- folds ------------------------------------------------------------------------------------------------------------


def make_folds(task: Task, groups: Int[Tensor, " example"], count: int, seed: int) -> Int[Tensor, " example"]:
    """The fold that each example is held out with: classes spread evenly, groups whole.

    Raises:
        InputError: too few examples, groups or members of a class.
    """
    alone = len(groups.unique())
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


# --- fitting ----------------------------------------------------------------------------------------------------------


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
    """

    task: Task
    targets: Float[Tensor, "example target output"]
    fold: Int[Tensor, " example"]
    inner: tuple[Int[Tensor, " _"], ...]
    l2: tuple[float, ...]
    standardize: bool
    tolerance: float


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
            weights = solve(problem, x.new_full((len(x),), strength), weights, INNER_TOLERANCE)
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
        coef[:, :, 0],
        intercept[:, 0],
        chosen,
        margins,
        held_out_r2(x, plan.targets[:, 0].to(x.dtype), orders, plan.fold, SHRINKAGE, plan.standardize),
        separable,
        (x == x[:, :1]).all(1).sum(1),
    )


# --- the result -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeResult(Result):
    """Probes at every site with what they are worth. All scores are of held-out examples.

    Attributes:
        sites: their names.
        site_shape: the axes that they were given in: `(site,)`, or `(layer, head)` say.
        kind: `classify` or `regress`.
        classes: the labels, in the order of outputs; two classes have one output, the log-odds of the second.
        metrics: names of the scores; the first is the one that selectivity speaks of.
        values, low, high: scores and their bootstrap interval, `[metric, site]`.
        baseline: what always saying the majority class (the mean, in a regression) gets, `[metric]`.
        control: the first metric on the control task; NaN without types.
        p: permutation p-value of "labels cannot be told from this site", by the held-out R² of least squares.
        q: p adjusted over sites (Benjamini & Hochberg).
        l2: the strength that the inner folds chose.
        coef, intercept: the probes, fitted to all examples, for features as they were given.
        margins: held-out margins of every example: log-odds, unnormalised log-probabilities, or predicted values.
        truth: class numbers `[example]`, or values `[example, output]`.
        fold, groups: of every example.
        alpha, confidence: of significance and of the intervals.
        notes: what a reader should know about the data.
        metadata: columns of the frame that came along, one value for each example.
    """

    too_large = frozenset({"coef", "intercept", "margins", "metadata"})
    sites: tuple[str, ...]
    site_shape: tuple[int, ...]
    kind: Kind
    classes: tuple[Label, ...]
    metrics: tuple[str, ...]
    values: Float[Tensor, "metric site"]
    low: Float[Tensor, "metric site"]
    high: Float[Tensor, "metric site"]
    baseline: Float[Tensor, " metric"]
    control: Float[Tensor, " site"]
    p: Float[Tensor, " site"]
    q: Float[Tensor, " site"]
    l2: Float[Tensor, " site"]
    coef: Float[Tensor, "site dim output"]
    intercept: Float[Tensor, "site output"]
    margins: Float[Tensor, "site example output"]
    truth: Tensor
    fold: Int[Tensor, " example"]
    groups: Int[Tensor, " example"]
    alpha: float
    confidence: float
    notes: tuple[str, ...]
    metadata: Mapping[str, Sequence[Any]]

    @property
    def significant(self) -> Tensor:
        """Which sites are, the false discovery rate kept at `alpha`."""
        return self.q <= self.alpha

    @property
    def selectivity(self) -> Float[Tensor, " site"]:
        """The first metric, minus that of the control task: what the probe reads rather than learns by heart."""
        return self.values[0] - self.control

    def of(self, metric: str) -> Tensor:
        """A score of every site, in the shape that sites were given in (`[layer, head]`, say).

        Raises:
            InputError: no such metric.
        """
        if metric not in self.metrics:
            raise InputError(f"no metric {metric!r}; there are {list(self.metrics)}")
        return self.values[self.metrics.index(metric)].view(self.site_shape)

    def index(self, site: str | int) -> int:
        """The number of a site.

        Raises:
            SiteError: no such site.
        """
        number = self.sites.index(site) if site in self.sites else site
        if isinstance(number, str) or not -len(self.sites) <= number < len(self.sites):
            raise SiteError(f"no probe at {site!r}; there are {len(self.sites)}: {_some(self.sites)}")
        return number % len(self.sites)

    def probe(self, site: str | int) -> Probe | PointProbe:
        """The fitted probe of one site, as a scikit-learn estimator."""
        i = self.index(site)
        made = (Probe if self.kind == "classify" else PointProbe)(l2=float(self.l2[i]))
        made.coef_, made.intercept_ = self.coef[i].T.double().numpy(), self.intercept[i].double().numpy()
        made.n_features_in_ = self.coef.shape[1]
        if isinstance(made, Probe):
            made.classes_ = np.array(self.classes)
        return made

    def predict(self, features: Any, site: str | int) -> np.ndarray:
        """Labels for features `[example, dim]` of one site."""
        return self.probe(site).predict(_matrix(features))

    def direction(self, site: str | int, label: Label | None = None) -> Float[Tensor, " dim"]:
        """The unit vector along which a label's margin grows fastest, in the features' own coordinates.

        Args:
            site: its name or number.
            label: a class (of two: the second by default), or the number of an output in a regression.

        Raises:
            InputError: no such label, or none given where there are several outputs; no direction, as all coefficients
                are 0.
        """
        label = self.classes[-1] if label is None and self.coef.shape[2] == 1 else label
        if label not in self.classes:
            raise InputError(f"no direction of {label!r}; there are {list(self.classes)}")
        number, coef = self.classes.index(label), self.coef[self.index(site)]
        vector = coef[:, number] if coef.shape[1] == len(self.classes) else coef[:, 0] * (1 if number else -1)
        if not vector.norm() > 0:
            raise InputError(f"the probe at {site!r} has no direction: all its coefficients are 0")
        return vector / vector.norm()

    def to_frame(self) -> pd.DataFrame:
        """One row for each site."""
        columns: dict[str, Any] = {"site": self.sites}
        for i, name in enumerate(self.metrics):
            parts = {name: self.values, f"{name}_low": self.low, f"{name}_high": self.high}
            columns.update({column: part[i].tolist() for column, part in parts.items()})
        names = ("control", "selectivity", "p", "q", "significant", "l2")
        return pd.DataFrame({**columns, **{name: getattr(self, name).tolist() for name in names}})

    def examples(self, site: str | int) -> pd.DataFrame:
        """One row for each example: what came along, its label, and what the site's probe made of it unseen."""
        task = Task(self.kind, self.classes, self.truth)
        predicted = task.predicted(self.margins[self.index(site)])
        columns: dict[str, Any] = {**self.metadata, "fold": self.fold.tolist(), "group": self.groups.tolist()}
        if self.kind == "classify":
            columns["label"] = [self.classes[i] for i in self.truth.tolist()]
            columns["predicted"] = [self.classes[i] for i in predicted.tolist()]
            return pd.DataFrame(columns)
        for i in self.classes:
            columns[f"label_{i}"], columns[f"predicted_{i}"] = (t[:, int(i)].tolist() for t in (self.truth, predicted))
        return pd.DataFrame(columns)

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(float_format="{:.3f}".format, max_rows=40)


# --- the call ---------------------------------------------------------------------------------------------------------


def fit_probes(
    features: Any,
    labels: Any,
    *,
    groups: Column | None = None,
    types: Column | None = None,
    sites: Sequence[str] | None = None,
    task: Kind | Literal["auto"] = "auto",
    folds: int | Column = 5,
    l2: float | Sequence[float] = L2,
    standardize: bool = True,
    permutations: int = 1000,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    alpha: float = 0.05,
    tolerance: float = 1e-5,
    seed: int = 0,
    metadata: pd.DataFrame | None = None,
    vlm: HookedVLM | None = None,
    progress: bool = False,
) -> ProbeResult:
    """Fit a probe at every site and say what each is worth.

    Args:
        features: `[example, site, dim]`, or `[example, layer, head, dim]`; a tensor, an array, or anything with a shape
            that gives an array when sliced, such as a zarr array: it is read in blocks of sites.
        labels: one for each example. Strings, integers and whole floats are classes; other floats, and rows of numbers
            such as (x, y), are values for ridge regression.
        groups: examples of the same group (image) are never on both sides of a fold.
        types: what a probe could learn by heart, such as the noun asked about; control labels are drawn for each type.
            Without types there is no selectivity.
        sites: names of the sites; their numbers by default.
        task: `classify` or `regress`, where the labels do not say.
        folds: how many, or the fold of each example.
        l2: strengths to choose from by inner cross-validation, or one to use. As in scikit-learn it is weighed against
            the *sum* of losses: C = 1 / l2.
        standardize: scale features by their standard deviation in the training folds.
        permutations: for p-values; none with 0. p is at least 1 / (permutations + 1).
        bootstrap: samples for intervals; none with 0.
        confidence: of the intervals.
        alpha: false discovery rate over sites.
        tolerance: largest component of the gradient at the end of a fit.
        seed: decides folds, control labels, permutations and samples.
        metadata: a frame with a row for each example, kept in the result.
        vlm: the model that features come from, for the result's provenance.
        progress: show a progress bar over blocks of sites.

    Raises:
        InputError: features, labels, groups, types or folds that do not fit together; NaN features (the site is named);
            one class only; too few examples for the folds; an l2 that is not above 0.
    """
    shape, names = _checked_shape(features, sites)
    wanted = task_of(labels, task)
    count = shape[0]
    for what, given in (("labels", wanted.truth), ("groups", groups), ("types", types), ("metadata", metadata)):
        if given is not None and len(given) != count:
            raise InputError(f"{count} examples but {len(given)} {what}")
    grouped = _numbers(groups) if groups is not None else torch.arange(count)
    fold = make_folds(wanted, grouped, folds, seed) if isinstance(folds, int) else _numbers(folds)
    check_folds(wanted, grouped, fold)
    generator = torch.Generator().manual_seed(seed)
    strengths = _strengths(l2)
    plan = Plan(
        task=wanted,
        targets=_targets(wanted, types, generator),
        fold=fold,
        inner=_inner(wanted, grouped, fold, seed)
        if len(strengths) > 1
        else tuple(fold[fold != f] for f in fold.unique()),
        l2=strengths,
        standardize=standardize,
        tolerance=tolerance,
    )
    orders = statistics.exchanges(fold, grouped, permutations, generator)
    blocks = list(_blocks(features, shape, names))
    found = Fitted.together([fit_block(x(), plan, orders) for x in tqdm(blocks, disable=not progress, unit="block")])
    weights = statistics.bootstrap_weights(grouped, bootstrap, generator)
    p, q = _tested(found.statistic)
    parameters: dict[str, Any] = {
        "task": wanted.kind,
        "l2": strengths,
        "standardize": standardize,
        "permutations": permutations,
    }
    parameters |= {"bootstrap": bootstrap, "examples": count, "folds": len(plan.inner), "tolerance": tolerance}
    return ProbeResult(
        sites=names,
        site_shape=shape[1:-1],
        kind=wanted.kind,
        classes=wanted.classes,
        **_judged(found, plan, weights, confidence),
        p=p,
        q=q,
        l2=found.l2,
        coef=found.coef,
        intercept=found.intercept,
        margins=found.margins[:, :, 0],
        truth=wanted.truth,
        fold=fold,
        groups=grouped,
        alpha=alpha,
        confidence=confidence,
        notes=_notes(found, names, permutations, alpha),
        metadata={} if metadata is None else {str(k): v.tolist() for k, v in metadata.items()},
        provenance=_provenance(vlm, seed, parameters),
    )


def stack_features(captures: Iterable[Capture]) -> tuple[Float[Tensor, "example site dim"], tuple[str, ...]]:
    """Features and site names for `fit_probes`, from captures that keep one vector for each site (`reduce="last"`).

    Sites with heads (`…attn.hook_z`) become a site for each head: `blocks.3.attn.hook_z.5` is head 5. Logits are left
    out.

    Raises:
        InputError: no captures, or a site that keeps more than one position.
    """
    rows: list[Tensor] = []
    names: tuple[str, ...] = ()
    for capture in captures:
        kept = {name: value for name, value in capture.items() if name != "logits"}
        rows.append(_row(kept))
        names = tuple(n for name, value in kept.items() for n in _head_names(name, value))
    if not rows:
        raise InputError("no captures to take features from")
    return torch.cat(rows), names


# --- scikit-learn's conventions ---------------------------------------------------------------------------------------


class _Linear(BaseEstimator):
    """What both estimators share; every parameter of `__init__` is an attribute of the same name."""

    def __init__(self, l2: float = 1.0, standardize: bool = True, tolerance: float = 1e-6) -> None:
        self.l2, self.standardize, self.tolerance = l2, standardize, tolerance

    def _fit(self, x: np.ndarray, task: Task) -> None:
        features = torch.tensor(x)[None]
        space = Space.of(features, self.standardize)
        targets = task.targets(task.truth).to(features.dtype)[:, None]
        problem = Problem(space.enter(features), targets, task.likelihood)
        (strength,) = _strengths(self.l2)
        weights = solve(problem, features.new_full((1,), strength), tolerance=self.tolerance)
        coef, intercept = space.leave(weights)
        self.coef_, self.intercept_ = coef[0, :, 0].T.numpy(), intercept[0, 0].numpy()

    def _margins(self, x: Any) -> np.ndarray:
        check_is_fitted(self, "coef_")
        return validate_data(self, x, reset=False, dtype=[np.float64, np.float32]) @ self.coef_.T + self.intercept_


class Probe(ClassifierMixin, _Linear):
    """Logistic regression (multinomial from three classes on) with L2, as a scikit-learn estimator.

    Attributes:
        coef_: `[output, dim]`; one output for two classes.
        intercept_: `[output]`.
        classes_: the labels.
    """

    def fit(self, X: Any, y: Any) -> Probe:
        """Fit to features `[example, dim]` and labels `[example]`."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"all labels are of one class, {self.classes_.tolist()}: a probe needs at least two classes"
            )
        self._fit(X, Task("classify", tuple(self.classes_.tolist()), torch.from_numpy(numbers)))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Margins: log-odds `[example]` of the second of two classes, else `[example, class]`."""
        margins = self._margins(X)
        return margins[:, 0] if margins.shape[1] == 1 else margins

    def predict_proba(self, X: Any) -> np.ndarray:
        """`[example, class]`."""
        margins = torch.from_numpy(self._margins(X))
        return self._task().probabilities(margins).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """`[example]`."""
        margins = torch.from_numpy(self._margins(X))
        return self.classes_[self._task().predicted(margins).numpy()]

    def _task(self) -> Task:
        return Task("classify", tuple(self.classes_.tolist()), torch.zeros(0, dtype=torch.long))


class PointProbe(RegressorMixin, _Linear):
    """Ridge regression, of one value or several such as (x, y), as a scikit-learn estimator.

    Attributes:
        coef_: `[output, dim]`.
        intercept_: `[output]`.
    """

    def fit(self, X: Any, y: Any) -> PointProbe:
        """Fit to features `[example, dim]` and values `[example]` or `[example, output]`."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True)
        self._flat = np.ndim(y) == 1
        values = torch.tensor(np.asarray(y, dtype=X.dtype)).view(len(X), -1)
        self._fit(X, Task("regress", tuple(range(values.shape[1])), values))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Shaped as the values that it was fitted to."""
        margins = self._margins(X)
        return margins[:, 0] if getattr(self, "_flat", False) else margins

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


# --- parts of the call ------------------------------------------------------------------------------------------------


def _checked_shape(features: Any, sites: Sequence[str] | None) -> tuple[tuple[int, ...], tuple[str, ...]]:
    shape = tuple(getattr(features, "shape", None) or np.shape(features))
    if len(shape) not in (3, 4) or 0 in shape:
        raise InputError(f"features are [example, site, dim] or [example, layer, head, dim], none empty; got {shape}")
    names = tuple(sites) if sites is not None else tuple(".".join(map(str, i)) for i in np.ndindex(shape[1:-1]))
    if len(names) != np.prod(shape[1:-1]) or len(set(names)) != len(names):
        raise InputError(f"{int(np.prod(shape[1:-1]))} sites need as many different names, got {len(set(names))}")
    return shape, names


def _blocks(features: Any, shape: tuple[int, ...], names: tuple[str, ...]) -> Iterator[Any]:
    """For every block of sites a function that reads it as `[site, example, dim]`."""
    inside = int(np.prod(shape[2:-1]))  # sites for each step along the first site axis
    several = max(1, BLOCK // (4 * shape[0] * inside * shape[-1]))

    def reader(start: int) -> Any:
        def read() -> Float[Tensor, "site example dim"]:
            part = features[:, start : start + several]
            x = part.detach().cpu() if isinstance(part, Tensor) else torch.as_tensor(np.asarray(part))
            x = x.to(x.dtype if x.dtype == torch.float64 else torch.float32)
            x = x.reshape(len(x), -1, shape[-1]).transpose(0, 1).contiguous()
            broken = (~x.isfinite()).any(-1)
            if broken.any():
                bad = [names[start * inside + int(i)] for i in broken.any(1).nonzero()]
                raise InputError(
                    f"features have NaN or infinite values at {_some(bad)}, first in example "
                    f"{int(broken.any(0).nonzero()[0])}"
                )
            return x

        return read

    return (reader(start) for start in range(0, shape[1], several))


def _numbers(given: Column) -> Int[Tensor, " example"]:
    """Equal things get equal numbers, from 0."""
    values = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    return torch.from_numpy(np.unique(values, return_inverse=True)[1].reshape(len(values)))


def _strengths(l2: float | Sequence[float]) -> tuple[float, ...]:
    strengths = tuple(sorted({float(v) for v in np.atleast_1d(l2)}, reverse=True))
    if not strengths or not all(np.isfinite(v) and v > 0 for v in strengths):
        raise InputError(f"l2 must be above 0 (separable classes have no finite answer without it), got {l2}")
    return strengths


def _targets(task: Task, types: Column | None, generator: torch.Generator) -> Float[Tensor, "example target output"]:
    """The real targets, then `CONTROLS` in which every type has the label of an example drawn at random."""
    truths = [task.truth]
    if types is not None:
        numbers = _numbers(types)
        for _ in range(CONTROLS):
            drawn = torch.randint(len(numbers), (int(numbers.max()) + 1,), generator=generator)
            truths.append(task.truth[drawn[numbers]])
    return torch.stack([task.targets(truth) for truth in truths], 1)


def _inner(
    task: Task, groups: Int[Tensor, " example"], fold: Int[Tensor, " example"], seed: int
) -> tuple[Int[Tensor, " _"], ...]:
    """Inner folds of each fold's training examples."""
    found = []
    for number in fold.unique():
        train = fold != number
        inside = dataclasses.replace(task, truth=task.truth[train])
        within = _numbers(groups[train])
        count = min(INNER_FOLDS, len(within.unique()))
        if task.kind == "classify":
            count = min(count, int(inside.truth.bincount(minlength=len(task.classes)).min()))
        if count < 2:
            raise InputError("too few examples to choose l2 inside the training folds: give one l2, or more examples")
        found.append(make_folds(inside, within, count, seed + 1))
        check_folds(inside, within, found[-1])
    return tuple(found)


def _judged(found: Fitted, plan: Plan, weights: statistics.Samples, confidence: float) -> dict[str, Any]:
    """Scores, intervals, baseline and control."""
    task, margins = plan.task, found.margins.float()
    scores = task.scores(margins[:, :, 0], task.truth, weights, plan.fold)
    values = statistics.stacked(scores)
    edges = [statistics.interval(one, confidence) for one in values]
    baseline = statistics.stacked(task.scores(_uninformed(plan), task.truth, weights[:1], plan.fold))
    first = next(iter(scores))
    control = torch.full((len(margins),), torch.nan)
    if margins.shape[2] > 1:
        drawn = [(i, _truth_of(task, plan.targets[:, i])) for i in range(1, margins.shape[2])]
        each = [task.scores(margins[:, :, i], truth, weights[:1], plan.fold)[first][:, 0] for i, truth in drawn]
        control = torch.stack(each).mean(0)
    return {
        "metrics": tuple(scores),
        "values": values[..., 0],
        "low": torch.stack([low for low, _ in edges]),
        "high": torch.stack([high for _, high in edges]),
        "baseline": baseline[:, 0, 0],
        "control": control,
    }


def _truth_of(task: Task, targets: Float[Tensor, "example output"]) -> Tensor:
    return targets if task.kind == "regress" else task.predicted(targets - 0.5)


def _uninformed(plan: Plan) -> Float[Tensor, "1 example output"]:
    """Margins that say nothing of the example: those of the majority class, or of the mean."""
    means = plan.targets[:, 0].mean(0).expand(1, len(plan.fold), -1)
    if plan.task.kind == "regress":
        return means
    return means.logit() if plan.task.likelihood is BINARY else means.log()


def _tested(statistic: Float[Tensor, "site order"]) -> tuple[Float[Tensor, " site"], Float[Tensor, " site"]]:
    """p and q; NaN without permutations."""
    if statistic.shape[1] < 2:
        nothing = torch.full((len(statistic),), torch.nan)
        return nothing, nothing
    p = statistics.permutation_p(statistic).float()
    return p, statistics.false_discovery_q(p)


def _notes(found: Fitted, names: tuple[str, ...], permutations: int, alpha: float) -> tuple[str, ...]:
    notes = []
    if found.constant.any():
        where = [f"{names[int(i)]} ({int(found.constant[i])})" for i in found.constant.nonzero()]
        notes.append(f"constant features, which get coefficient 0, at {_some(where)}")
    if found.separable.any():
        where = [names[int(i)] for i in found.separable.nonzero()]
        notes.append(
            f"the classes are perfectly separable at {_some(where)}: the length of those coefficients, and so how sure "
            "probabilities are, is set by l2 alone"
        )
    needed = int(np.ceil(len(names) / (alpha * (permutations + 1))))
    if permutations and needed > 1:
        notes.append(
            f"with {permutations} permutations over {len(names)} sites, fewer than {needed} sites can never be "
            "significant; give more permutations to find single sites"
        )
    return tuple(notes)


def _provenance(vlm: HookedVLM | None, seed: int, parameters: Mapping[str, Any]) -> Provenance:
    if vlm is not None:
        return vlm.provenance("probe", seed, **parameters)
    return Provenance("not given", "not given", "probe", parameters, seed=seed)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more


def _matrix(features: Any) -> np.ndarray:
    return features.detach().cpu().double().numpy() if isinstance(features, Tensor) else np.asarray(features)


def _row(values: Mapping[str, Tensor]) -> Float[Tensor, "example site dim"]:
    """`[batch, dim]` or `[batch, head, dim]` of each site, side by side."""
    for name, value in values.items():
        if value.ndim != (3 if ".attn.hook_" in name else 2):
            raise InputError(
                f"{name} keeps {tuple(value.shape)}, not one vector: capture it with reduce='last' or 'mean'"
            )
    widths = {value.shape[-1] for value in values.values()}
    if len(widths) != 1:
        raise InputError(f"sites of different widths {sorted(widths)} cannot stand in one array: stack them apart")
    return torch.cat([value.reshape(len(value), -1, value.shape[-1]) for value in values.values()], 1)


def _head_names(name: str, value: Tensor) -> list[str]:
    return [f"{name}.{head}" for head in range(value.shape[1])] if value.ndim == 3 else [name]
