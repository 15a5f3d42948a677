"""Many linear models at once: the same fit at every site, in batched matrix algebra.

Logistic, multinomial and ridge regression are one problem. With margins z = x·w + b and targets y, each minimises

    mean over examples of  potential(z) − y·z   +   l2 / (2·examples) · |w|²

and the gradient of the first part is mean(z) − y, where mean(z) is the expected target. Only `potential`, `mean` and a
bound on the curvature differ. With that bound (Böhning 1992) the Hessian is at most curvature·XᵀX / examples + l2, the
same at every step: it is factored once for each site and serves as the starting point of L-BFGS, so that a few passes
over the features suffice where plain L-BFGS takes a hundred. With little L2 classes come apart, and the bound is far
from the Hessian: then the factor is made anew where the descent stands. Several targets for the same features share
the factor and the passes. The objective is scikit-learn's, with C = 1 / l2 (`alpha` of `Ridge`).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TOLERANCE = 1e-3  # share of their length that slopes may be off by
REMEMBERED = 12  # steps that L-BFGS looks back on
FACTORED = 24  # steps after which the Hessian is factored anew
FLATTEST = 1e-3  # share of the bound that the curvature of an example is taken to be at least
FLAT = 1e-3  # length of slopes that tell nothing, as features have a spread of 1: of no use to know it better
ROUNDING = 2  # units of it in a gradient, below which there is nothing to descend
MOST_HALVINGS = 30
NOISE = 64  # units of rounding in which objectives are not told apart
JITTER = 1e-6  # of the mean diagonal: the factor need only be near the bound, but must exist

Sites = Float[Tensor, "site example dim"]
Margins = Float[Tensor, "site example target output"]
Weights = Float[Tensor, "site parameter target output"]
Targets = Float[Tensor, "example target output"]
# Inside the solver examples and parameters stand last: what runs over them runs over neighbours in memory.
Slopes = Float[Tensor, "site target output parameter"]
Rows = Float[Tensor, "site target output example"]


@dataclass(frozen=True)
class Likelihood:
    """How targets follow from margins.

    Attributes:
        curvature: an upper bound on the second derivative of the potential.
        both: for margins and their axis of outputs, the potential summed over outputs (that axis is gone) and its
            derivative, the expected target. They share their exponentials.
        constant: the curvature is that bound everywhere; otherwise it is that of a probability m, m·(1 − m).
    """

    curvature: float
    both: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    constant: bool = False

    def mean(self, z: Float[Tensor, "*example output"]) -> Float[Tensor, "*example output"]:
        """Expected targets."""
        return self.both(z, -1)[1]

    def loss(self, z: Margins, y: Targets) -> Float[Tensor, "site example target"]:
        """Negative log-likelihood up to what does not depend on z, nats (half squared errors for ridge)."""
        return self.both(z, -1)[0] - (z * y).sum(-1)


def _logistic(z: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    small = (-z.abs()).exp_()
    potential = (z.clamp(min=0) + small.log1p()).sum(axis)
    return potential, torch.where(z >= 0, 1, small) / (1 + small)


def _multinomial(z: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    largest = z.amax(axis, keepdim=True)
    raised = (z - largest).exp_()
    total = raised.sum(axis, keepdim=True)
    return (largest + total.log()).squeeze(axis), raised.div_(total)


BINARY = Likelihood(1 / 4, _logistic)
MULTINOMIAL = Likelihood(1 / 2, _multinomial)
GAUSSIAN = Likelihood(1.0, lambda z, axis: ((z * z).sum(axis) / 2, z), constant=True)


@dataclass(frozen=True)
class Space:
    """Coordinates that features are fitted in, decided on training examples only.

    Features are centred and scaled; where a site has more features than there are examples, they are rotated into the
    examples' own span. Neither that nor centring changes the fit, as L2 is the same in all rotated coordinates and
    leaves the intercept free.

    Attributes:
        mean: of each feature.
        scale: standard deviation of each feature; 1 for a constant feature, or where nothing is scaled.
        axes: an orthonormal basis of the span, or None.
    """

    mean: Float[Tensor, "site 1 dim"]
    scale: Float[Tensor, "site 1 dim"]
    axes: Float[Tensor, "site dim axis"] | None = None

    @classmethod
    def of(cls, x: Sites, standardize: bool = True) -> Space:
        """The coordinates that these training examples call for."""
        # In double precision: beside a large mean, a small deviation would be rounding.
        deviation, mean = torch.std_mean(x.double(), 1, correction=0, keepdim=True)
        # Rounding leaves a constant feature a tiny deviation; dividing by it would make noise of it.
        rounding = x.shape[1] * torch.finfo(torch.float64).eps * mean.abs()
        constant = (x == x[:, :1]).all(1, keepdim=True) | (deviation <= rounding)
        deviation, mean = deviation.to(x.dtype), mean.to(x.dtype)
        scale = torch.where(constant, 1.0, deviation) if standardize else torch.ones_like(deviation)
        if x.shape[2] <= x.shape[1]:
            return cls(mean, scale)
        axes = torch.linalg.qr(((x - mean) / scale).mT).Q
        return cls(mean, scale, axes)

    def enter(self, x: Sites) -> Float[Tensor, "site example parameter"]:
        """Features in these coordinates, and a last column of ones for the intercept."""
        inside = (x - self.mean) / self.scale
        inside = inside if self.axes is None else inside @ self.axes
        return torch.nn.functional.pad(inside, (0, 1), value=1.0)

    def leave(self, w: Weights) -> tuple[Float[Tensor, "site dim target output"], Float[Tensor, "site target output"]]:
        """Coefficients and intercepts for the features as they were."""
        slopes = w[:, :-1].flatten(2)
        slopes = (slopes if self.axes is None else self.axes @ slopes) / self.scale.mT
        shift = (self.mean @ slopes).squeeze(1).unflatten(-1, w.shape[2:])
        return slopes.unflatten(-1, w.shape[2:]), w[:, -1] - shift


@dataclass(frozen=True)
class Problem:
    """Features (with the column of ones), targets and likelihood; fitted by `solve` for any strength of L2."""

    x: Float[Tensor, "site example parameter"]
    y: Targets
    likelihood: Likelihood

    def margins(self, w: Weights) -> Margins:
        return (self.x @ w.flatten(2)).unflatten(2, w.shape[2:])

    def penalty(self, l2: Float[Tensor, " site"]) -> Float[Tensor, "site 1 1 parameter"]:
        """What L2 adds to the diagonal of the Hessian; nothing for the intercept."""
        weight = (l2 / self.x.shape[1])[:, None].repeat(1, self.x.shape[2])
        weight[:, -1] = 0
        return weight[:, None, None]

    @cached_property
    def bound(self) -> Float[Tensor, "site parameter parameter"]:
        """What the Hessian of the mean loss is at most, whatever the weights."""
        return self.x.mT @ self.x * (self.likelihood.curvature / self.x.shape[1])

    def hessian(self, mean: Rows) -> Float[Tensor, "site parameter parameter"]:
        """That of the mean loss where targets are expected to be these: one for all targets, their average.

        Of three classes or more it leaves out how outputs act on each other.
        """
        curvature = (mean * (1 - mean)).sum(2).mean(1).clamp(min=FLATTEST * self.likelihood.curvature)
        return (self.x * curvature[..., None]).mT @ self.x / self.x.shape[1]


def solve(
    problem: Problem,
    l2: Float[Tensor, " site"],
    start: Weights | None = None,
    tolerance: float = TOLERANCE,
    most_steps: int = 1000,
) -> Weights:
    """Minimise at all sites and for all targets.

    Args:
        problem: what to fit.
        l2: strength for each site, above 0.
        start: where to begin; zero by default.
        tolerance: done where slopes are at most this share of their length away from those of the minimum. The
            gradient tells, as the objective curves by l2 / examples at least. Single precision cannot tell shares far
            below 1e-3, and ends where only rounding is left.
        most_steps: give up after so many.
    """
    descent = _Descent(problem, l2)
    sites, _, parameters = problem.x.shape
    here = descent.at(problem.x.new_zeros(sites, *problem.y.shape[1:], parameters))
    if start is not None:
        here = descent.refactored(descent.at(start.movedim(1, 3).contiguous()))
    for taken in range(1, most_steps + 1):
        moving = ~descent.arrived(here, tolerance)
        there = descent.step(here, moving) if moving.any() else None
        if there is None:  # done, or the rest is rounding
            break
        here = there if taken % FACTORED else descent.refactored(there)
    return here.w.movedim(3, 1)


@dataclass(frozen=True, eq=False)
class _Point:
    """Where a descent stands: weights, margins, objective, gradient, and what the bound makes of the gradient."""

    w: Slopes
    z: Rows
    value: Float[Tensor, "site target 1 1"]
    gradient: Slopes
    bounded: Slopes


@dataclass(frozen=True, eq=False)
class _Step:
    """A step taken: how weights, gradient and bounded gradient changed, and two products of them.

    Where nothing moved, `inverse` is 0, and so are the step's terms in the recursion.
    """

    step: Slopes
    change: Slopes
    bounded: Slopes
    inverse: Float[Tensor, "site target 1 1"]  # 1 / (step · change)
    scale: Float[Tensor, "site target 1 1"]  # how far the bound overstates the Hessian along the step


class _Descent:
    """L-BFGS that starts from the bound on the Hessian; each step passes over the features twice."""

    def __init__(self, problem: Problem, l2: Float[Tensor, " site"]) -> None:
        self.problem, self.x, self.likelihood, self.examples = (
            problem,
            problem.x,
            problem.likelihood,
            problem.x.shape[1],
        )
        self.penalty = problem.penalty(l2)
        self.least = (l2 / self.examples)[:, None, None, None]  # that the objective curves, along slopes
        self.inverse = _inverse(problem.bound, self.penalty)
        self.past: deque[_Step] = deque(maxlen=REMEMBERED)
        self.shape = problem.y.shape[1:]
        self.y = problem.y.movedim(0, 2).to(self.x.dtype)
        # Σ over examples of y·z is linear in the weights: it needs no pass.
        self.pull = self._over_examples(self.y.expand(len(self.x), -1, -1, -1))

    def _over_examples(self, rows: Rows) -> Slopes:
        """Mean over examples of a number for each, times its features."""
        return (rows.flatten(1, 2) @ self.x).unflatten(1, self.shape) / self.examples

    def _margins(self, w: Slopes) -> Rows:
        return (w.flatten(1, 2) @ self.x.mT).unflatten(1, self.shape)

    def _value(self, potential: Float[Tensor, "site target example"], w: Slopes) -> Float[Tensor, "site target 1 1"]:
        data = potential.mean(2)[..., None, None]
        return data + _dot(w, self.penalty * w / 2 - self.pull)

    def at(self, w: Slopes) -> _Point:
        """The point with these weights."""
        z = self._margins(w)
        potential, mean = self.likelihood.both(z, 2)
        return self._point(w, z, self._value(potential, w), mean)

    def _point(self, w: Slopes, z: Rows, value: Tensor, mean: Rows) -> _Point:
        # Differences first: those of the sums would be little more than their rounding where classes come apart.
        gradient = self._over_examples(mean - self.y) + self.penalty * w
        return _Point(w, z, value, gradient, self._bounded(gradient))

    def _bounded(self, gradient: Slopes) -> Slopes:
        return (gradient.flatten(1, 2) @ self.inverse).unflatten(1, self.shape)

    def refactored(self, here: _Point) -> _Point:
        """The same point, from where the descent goes on with the Hessian that it has there."""
        if self.likelihood.constant:
            return here
        self.inverse = _inverse(self.problem.hessian(self.likelihood.both(here.z, 2)[1]), self.penalty)
        self.past.clear()
        return dataclasses.replace(here, bounded=self._bounded(here.gradient))

    def arrived(self, here: _Point, tolerance: float) -> Bool[Tensor, "site target 1 1"]:
        """Where slopes are near enough to those of the minimum, or as near as rounding lets them come."""
        noise = ROUNDING * torch.finfo(here.w.dtype).eps * _norm(self.penalty * here.w)
        slopes, intercepts = (_norm(part) for part in (here.gradient[..., :-1], here.gradient[..., -1:]))
        near = slopes <= torch.maximum(tolerance * self.least * _norm(here.w[..., :-1]).clamp(min=FLAT), noise)
        return near & (intercepts <= (tolerance * self.likelihood.curvature / 10 + noise))

    def step(self, here: _Point, moving: Tensor) -> _Point | None:
        """The next point; None if no objective falls any more.

        The length is 1, halved until the objective falls (Armijo). Halving costs no pass over the features, since
        margins are linear in the weights.
        """
        direction = -self._quasi_newton(here) * moving
        along, slope = self._margins(direction), _dot(here.gradient, direction)
        # The objective is a difference of large sums: halving a step because of their rounding would waste it.
        noise = NOISE * torch.finfo(here.w.dtype).eps * (here.value.abs() + _dot(here.w, self.pull).abs())
        length = moving.to(here.w.dtype)
        for _ in range(MOST_HALVINGS):
            w, z = here.w + length * direction, here.z + length * along
            potential, mean = self.likelihood.both(z, 2)
            value = self._value(potential, w)
            fell = (value <= here.value + 1e-4 * length * slope + noise) | (length == 0)
            if fell.all():
                break
            length = torch.where(fell, length, length / 2)
        else:
            length = torch.where(fell, length, 0.0)
            w = here.w + length * direction
            z = here.z + length * along
            potential, mean = self.likelihood.both(z, 2)
            value = self._value(potential, w)
        if not length.any():
            return None
        there = self._point(w, z, value, mean)
        self.past.append(_taken(here, there))
        return there

    def _quasi_newton(self, here: _Point) -> Slopes:
        """The two loops of Nocedal & Wright, algorithm 7.4; the bound is linear, so it need not be applied again."""
        gradient, found = here.gradient, here.bounded
        shares = []
        for one in reversed(self.past):
            shares.append(one.inverse * _dot(one.step, gradient))
            gradient = gradient - shares[-1] * one.change
            found = found - shares[-1] * one.bounded
        if self.past:
            found = found * self.past[-1].scale
        for one, share in zip(self.past, reversed(shares), strict=True):
            found = found + (share - one.inverse * _dot(one.change, found)) * one.step
        return found


def _taken(here: _Point, there: _Point) -> _Step:
    step, change, bounded = there.w - here.w, there.gradient - here.gradient, there.bounded - here.bounded
    product = _dot(step, change)
    sound = product > torch.finfo(product.dtype).tiny  # its inverse is finite
    scale = torch.where(sound, product / _dot(change, bounded), 1.0)
    return _Step(step, change, bounded, torch.where(sound, 1 / product, 0.0), scale)


def _dot(a: Slopes, b: Slopes) -> Float[Tensor, "site target 1 1"]:
    return (a * b).sum((2, 3), keepdim=True)


def _norm(a: Slopes) -> Float[Tensor, "site target 1 1"]:
    return _dot(a, a).sqrt()


def _inverse(
    hessian: Float[Tensor, "site parameter parameter"], penalty: Float[Tensor, "site 1 1 parameter"]
) -> Float[Tensor, "site parameter parameter"]:
    """Of the Hessian with L2."""
    hessian = hessian.clone()
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    diagonal += penalty[:, 0, 0] + JITTER * diagonal.mean(-1, keepdim=True)
    return torch.cholesky_inverse(torch.linalg.cholesky(hessian))
