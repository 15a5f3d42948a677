"""What `fit_probes` finds: probes at every site, and what each is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import xxhash
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.columns import native
from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.fields import ANY, FINITE, POSITIVE, SHARE, Range, need_within
from lvlm_interp.probes.estimators import PointProbe, Probe
from lvlm_interp.probes.task import Label, Task, TaskKind, given_features
from lvlm_interp.results import Result

OF_A_METRIC: dict[str, Range] = {
    **dict.fromkeys(("accuracy", "balanced_accuracy", "auroc", "macro_f1"), SHARE),
    "r2": (-math.inf, 1),
    "pixel_error": (0, math.inf),
}
NAMED = 3  # sites that a message names before it says how many more there are


@dataclass(frozen=True)
class ProbeResult(Result):
    """Probes at every site with what they are worth. All scores are of held-out examples.

    Attributes:
        sites: their names.
        site_shape: the axes that they were given in: `(site,)`, or `(layer, head)` say.
        kind: `classify` or `regress`.
        classes: the labels, in the order of outputs; two classes have one output, the log-odds of the second.
        metrics: names of the scores; the first is the one that selectivity speaks of.
        values, low, high: scores and their interval, for new examples of new groups, `[metric, site]`. They are of
            probes fitted to all folds but one; the ones that are kept are better where examples are few, above all in
            R². See `statistics.INFLATION` for how far intervals can be trusted.
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
    along: ClassVar[Mapping[str, str]] = {"sites": "site", "metrics": "metric"}
    ranges: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(("values", "low", "high", "baseline", "metadata"), ANY),  # see `OF_A_METRIC`
        **dict.fromkeys(("p", "q", "alpha", "confidence"), SHARE),
        **dict.fromkeys(("site_shape", "l2", "fold", "groups"), POSITIVE),
    }
    blank = frozenset({"control", "p", "q"})
    sites: tuple[str, ...]
    site_shape: tuple[int, ...]
    kind: TaskKind
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

    def __post_init__(self) -> None:
        super().__post_init__()
        examples = self.margins.shape[1]
        if math.prod(self.site_shape) != len(self.sites) or len(self.truth) != examples:
            raise InputError(
                f"{len(self.sites)} sites and {examples} examples do not fit the shape {self.site_shape} of sites and "
                f"{len(self.truth)} true labels"
            )
        if odd := [name for name, values in self.metadata.items() if len(values) != examples]:
            raise InputError(f"what came along as {odd[0]!r} has another length than {examples}, one an example")
        if self.kind == "classify":
            need_within(self.truth, "ProbeResult.truth", (0, len(self.classes) - 1))
        for i, metric in enumerate(self.metrics):
            for name in ("values", "low", "high", "baseline"):
                where, allowed = f"ProbeResult.{name} of {metric}", OF_A_METRIC.get(metric, FINITE)
                need_within(getattr(self, name)[i], where, allowed, blank=True)

    @property
    def significant(self) -> Tensor:
        """Which sites are, the false discovery rate kept at `alpha`."""
        return self.q <= self.alpha

    def better(self, metric: str) -> Bool[Tensor, " site"]:
        """Which sites are significant, with an interval of this score that says they do better than the baseline.

        Significance is that of least squares: a site can have it whose score is not above the majority's.

        Args:
            metric: one of `metrics`, or `selectivity`, of which it is asked that it is above 0.

        Raises:
            InputError: no such metric.
        """
        if metric == "selectivity":
            return self.significant & (self.selectivity > 0)
        number = self._number(metric)
        low, high, baseline = self.low[number], self.high[number], self.baseline[number]
        return self.significant & (high < baseline if metric == "pixel_error" else low > baseline)

    @property
    def selectivity(self) -> Float[Tensor, " site"]:
        """The first metric, minus that of the control task: what the probe reads rather than learns by heart."""
        return self.values[0] - self.control

    def of(self, metric: str) -> Tensor:
        """A score of every site, in the shape that sites were given in (`[layer, head]`, say).

        Raises:
            InputError: no such metric.
        """
        return self.values[self._number(metric)].view(self.site_shape)

    def _number(self, metric: str) -> int:
        if metric not in self.metrics:
            raise InputError(f"no metric {metric!r}; there are {list(self.metrics)}")
        return self.metrics.index(metric)

    def index(self, site: str | int) -> int:
        """The number of a site.

        Raises:
            SiteError: no such site.
        """
        number = self.sites.index(site) if site in self.sites else site
        if isinstance(number, str) or not -len(self.sites) <= number < len(self.sites):
            raise SiteError(f"no probe at {site!r}; there are {len(self.sites)}: {listed(self.sites)}")
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

    def fitted_to(self, features: Any) -> bool:
        """Whether it was fitted to these features, `[example, site, dim]`, and their rows stand in the same order.

        Raises:
            InputError: what are no features.
        """
        read = given_features(features)
        if len(read.shape) not in (3, 4) or 0 in read.shape:
            raise InputError(f"features are [example, site, dim] or [example, layer, head, dim]; got {read.shape}")
        given = torch.as_tensor(native(read[:]))
        sites = given.reshape(len(given), -1, given.shape[-1]).transpose(0, 1)
        found = (sites.to(dtype).contiguous().numpy().tobytes() for dtype in (torch.float32, torch.float64))
        return any((self.provenance.example or "").startswith(xxhash.xxh3_64_hexdigest(one)) for one in found)

    def predict(self, features: Any, site: str | int) -> np.ndarray:
        """Classes `[example]`, or values `[example, output]`, for features `[example, dim]` of one site.

        Raises:
            InputError: features of another shape, or that are no finite real numbers.
        """
        given = _matrix(features)
        if given.ndim != 2 or not len(given) or given.shape[1] != self.coef.shape[1]:
            raise InputError(f"features of one site are [example, {self.coef.shape[1]}]; got {list(given.shape)}")
        if not np.isfinite(given).all():
            raise InputError(f"features have NaN or infinite values, first in example {_first_broken(given)}")
        return self.probe(site).predict(given)

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
        """One row for each example: what came along, its label, and what the site's probe made of it unseen.

        A column that came along under a name that is needed here is called `… (given)`.
        """
        task = Task(self.kind, self.classes, self.truth)
        predicted = task.predicted(self.margins[self.index(site)])
        columns: dict[str, Any] = {"fold": self.fold.tolist(), "group": self.groups.tolist()}
        if self.kind == "classify":
            columns["label"] = [self.classes[i] for i in self.truth.tolist()]
            columns["predicted"] = [self.classes[i] for i in predicted.tolist()]
        for i in self.classes if self.kind == "regress" else ():
            columns[f"label_{i}"], columns[f"predicted_{i}"] = (t[:, int(i)].tolist() for t in (self.truth, predicted))
        given = {f"{name} (given)" if name in columns else name: values for name, values in self.metadata.items()}
        return pd.DataFrame({**given, **columns})

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(float_format="{:.3f}".format, max_rows=40)


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more


def _matrix(features: Any) -> np.ndarray:
    given = given_features(features)
    return given.detach().cpu().double().numpy() if isinstance(given, Tensor) else np.asarray(given, float)


def _first_broken(given: np.ndarray) -> int:
    return int((~np.isfinite(given)).any(1).argmax())
