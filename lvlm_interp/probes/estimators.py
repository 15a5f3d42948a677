"""Single probes as scikit-learn's estimators."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from lvlm_interp.columns import native, need_unmasked
from lvlm_interp.errors import InputError
from lvlm_interp.given import explaining
from lvlm_interp.probes.fit import Problem, Space, solve
from lvlm_interp.probes.task import Task
from lvlm_interp.probes.uncast import uncast

LEAST, MOST = 1e-12, 1e30  # strengths of L2
LITTLE = 1e-3  # below which gradients of classes that come apart are rounding in single precision


class _Linear(BaseEstimator):
    """What both estimators share; every parameter of `__init__` is an attribute of the same name.

    `tolerance` is the share of their length that coefficients may be off by.
    """

    def __init__(self, l2: float = 1.0, standardize: bool = True, tolerance: float = 1e-6) -> None:
        self.l2, self.standardize, self.tolerance = l2, standardize, tolerance

    def _fit(self, x: np.ndarray, task: Task) -> None:
        strength = self._strength()
        features = torch.tensor(native(x)).to(precision([strength], torch.from_numpy(native(x)).dtype))[None]
        need_squares(features, ["the features"])
        space = Space.of(features, self.standardize)
        targets = task.targets(task.truth).to(features.dtype)[:, None]
        problem = Problem(space.enter(features), targets, task.likelihood)
        weights = solve(problem, features.new_full((1,), strength), tolerance=self.tolerance)
        coef, intercept = space.leave(weights)
        coef = (coef[0, :, 0] * task.spread[1]).to(features.dtype)
        self.coef_, self.intercept_ = coef.T.numpy(), task.margins(intercept[0, 0]).numpy()

    def _strength(self) -> float:
        """The strength of L2, once all options are what they must be.

        Raises:
            InputError: one that is not.
        """
        if not isinstance(self.standardize, (bool, np.bool_)):
            raise InputError(f"standardize is True or False, got {self.standardize!r}")
        if isinstance(self.tolerance, bool) or not isinstance(self.tolerance, Real) or not 0 < self.tolerance < 1:
            raise InputError(f"tolerance is a share between 0 and 1, got {self.tolerance!r}")
        found = strengths(self.l2)
        if len(found) != 1:
            raise InputError(f"an estimator has one l2, which fit_probes chooses of several; got {self.l2!r}")
        return found[0]

    def _margins(self, x: Any) -> np.ndarray:
        check_is_fitted(self, "coef_")
        return validate_data(self, x, reset=False, dtype=[np.float64, np.float32]) @ self.coef_.T + self.intercept_


@explaining
class Probe(ClassifierMixin, _Linear):
    """Logistic regression (multinomial from three classes on) with L2, as a scikit-learn estimator.

    Attributes:
        coef_: `[output, dim]`; one output for two classes.
        intercept_: `[output]`.
        classes_: the labels.
    """

    @uncast
    def fit(self, X: Any, y: Any) -> Probe:
        """Fit to features `[example, dim]` and labels `[example]`."""
        X, y = (given_array(one, what) for one, what in ((X, "features"), (y, "labels")))
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


@explaining
class PointProbe(RegressorMixin, _Linear):
    """Ridge regression, of one value or several such as (x, y), as a scikit-learn estimator.

    Attributes:
        coef_: `[output, dim]`.
        intercept_: `[output]`.
    """

    @uncast
    def fit(self, X: Any, y: Any) -> PointProbe:
        """Fit to features `[example, dim]` and values `[example]` or `[example, output]`."""
        X, y = (given_array(one, what) for one, what in ((X, "features"), (y, "values")))
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True)
        self._flat = np.ndim(y) == 1
        values = torch.tensor(np.asarray(y, dtype=X.dtype)).view(len(X), -1)
        need_squares(values[None], ["the values"])
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


def given_array(given: Any, what: str) -> Any:
    """What an estimator is fitted to: a tensor as an array, all else as scikit-learn takes it.

    Raises:
        InputError: entries are masked, of which scikit-learn would read what stands behind the mask.
    """
    need_unmasked(given, what)
    if isinstance(given, Tensor):
        plain = given.detach().cpu()
        return (plain.float() if plain.dtype in (torch.bfloat16, torch.float16) else plain).numpy()
    return given


def need_squares(x: Float[Tensor, "site example dim"], names: Sequence[str]) -> None:
    """Raise for features of which no spread can be computed in their type of numbers."""
    largest, numbers = x.abs().amax((1, 2)), torch.finfo(x.dtype)
    lost = (largest > 0) & ((largest < numbers.tiny**0.5) | (largest > (numbers.max / x.shape[1]) ** 0.5))
    if lost.any():
        site = int(lost.int().argmax())
        raise InputError(
            f"features reach {float(largest[site]):.0e} at {names[site]!r}, and their squares are 0 or infinite in "
            f"{str(x.dtype).removeprefix('torch.')}: give them in another unit"
        )


def strengths(l2: float | Sequence[float]) -> tuple[float, ...]:
    given = np.atleast_1d(l2)
    if given.dtype.kind not in "iuf" or given.ndim > 1:
        raise InputError(f"l2 is a number above 0, or several to choose from; got {l2!r}")
    found = tuple(sorted({float(v) for v in given}, reverse=True))
    if not found or not all(np.isfinite(v) and v > 0 for v in found):
        raise InputError(f"l2 must be above 0 (separable classes have no finite answer without it), got {l2}")
    if not LEAST <= found[-1] <= found[0] <= MOST:
        raise InputError(f"l2 is from {LEAST:g} to {MOST:g}, beyond which fits are rounding; got {l2}")
    return found


def precision(l2: Sequence[float], own: torch.dtype) -> torch.dtype:
    """The type of numbers that a fit with these strengths needs, of features in single or double precision."""
    return torch.float64 if own == torch.float64 or min(l2) < LITTLE else torch.float32
