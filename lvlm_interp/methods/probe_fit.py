"""Many linear models at once: the same fit at every site, in batched matrix algebra.

Logistic, multinomial and ridge regression are one problem. With margins z = x·w + b and targets y, each minimises

    mean over examples of  potential(z) − y·z   +   l2 / (2·examples) · |w|²

and the gradient of the first part is mean(z) − y, where mean(z) is the expected target. Only `potential`, `mean` and a
bound on the curvature differ. With that bound (Böhning 1992) the Hessian is at most curvature·XᵀX / examples + l2, the
same at every step: it is factored once for each site and serves as the starting point of L-BFGS, so that a few passes
over the features suffice where plain L-BFGS takes a hundred. Several targets for the same features share the factor
and the passes. The objective is scikit-learn's, with C = 1 / l2 (`alpha` of `Ridge`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

REMEMBERED = 8  # steps that L-BFGS looks back on
MOST_HALVINGS = 30
AT_ONCE = 1 << 24  # held-out predictions in memory together
JITTER = 1e-6  # of the mean diagonal: the factor need only be near the bound, but must exist

Sites = Float[Tensor, "site example dim"]
Margins = Float[Tensor, "site example target output"]
Weights = Float[Tensor, "site parameter target output"]
Targets = Float[Tensor, "example target output"]


@dataclass(frozen=True)
class Likelihood:
    """How targets follow from margins.

    Attributes:
        curvature: an upper bound on the second derivative of `potential`.
        potential: summed over outputs, `[…, output]` → `[…]`.
        mean: expected target, `[…, output]` → `[…, output]`; the derivative of `potential`.
    """

    curvature: float
    potential: Callable[[Tensor], Tensor]
    mean: Callable[[Tensor], Tensor]

    def loss(self, z: Margins, y: Targets) -> Float[Tensor, "site example target"]:
        """Negative log-likelihood up to what does not depend on z, nats (half squared errors for ridge)."""
        return self.potential(z) - (z * y).sum(-1)


BINARY = Likelihood(1 / 4, lambda z: torch.nn.functional.softplus(z).sum(-1), torch.sigmoid)
MULTINOMIAL = Likelihood(1 / 2, lambda z: z.logsumexp(-1), lambda z: z.softmax(-1))
GAUSSIAN = Likelihood(1.0, lambda z: (z * z).sum(-1) / 2, lambda z: z)


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
        deviation, mean = torch.std_mean(x, 1, correction=0, keepdim=True)
        # Rounding leaves a constant feature a tiny deviation; dividing by it would make noise of it.
        constant = deviation <= 10 * torch.finfo(x.dtype).eps * mean.abs()
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

    @cached_property
    def gram(self) -> Float[Tensor, "site parameter parameter"]:
        return self.x.mT @ self.x

    def penalty(self, l2: Float[Tensor, " site"]) -> Float[Tensor, "site parameter 1 1"]:
        """What L2 adds to the diagonal of the Hessian; nothing for the intercept."""
        weight = (l2 / self.x.shape[1])[:, None].repeat(1, self.x.shape[2])
        weight[:, -1] = 0
        return weight[:, :, None, None]

    def factor(self, penalty: Float[Tensor, "site parameter 1 1"]) -> Float[Tensor, "site parameter parameter"]:
        """Cholesky factor of the bound on the Hessian."""
        bound = self.gram * (self.likelihood.curvature / self.x.shape[1])
        diagonal = bound.diagonal(dim1=-2, dim2=-1)
        diagonal += penalty[:, :, 0, 0] + JITTER * diagonal.mean(-1, keepdim=True)
        return torch.linalg.cholesky(bound)

    def margins(self, w: Weights) -> Margins:
        return (self.x @ w.flatten(2)).unflatten(2, w.shape[2:])

    def gradient(self, z: Margins, w: Weights, penalty: Float[Tensor, "site parameter 1 1"]) -> Weights:
        residual = self.likelihood.mean(z) - self.y
        return (self.x.mT @ residual.flatten(2)).unflatten(2, w.shape[2:]) / self.x.shape[1] + penalty * w

    def value(self, z: Margins, w: Weights, penalty: Float[Tensor, "site parameter 1 1"]) -> Tensor:
        """The objective, `[site, 1, target, 1]`."""
        data = self.likelihood.loss(z, self.y).mean(1)
        return (data + (penalty * w * w).sum((1, 3)) / 2)[:, None, :, None]


def solve(
    problem: Problem,
    l2: Float[Tensor, " site"],
    start: Weights | None = None,
    tolerance: float = 1e-5,
    most_steps: int = 200,
) -> Weights:
    """Minimise at all sites and for all targets.

    Args:
        problem: what to fit.
        l2: strength for each site, above 0.
        start: where to begin; zero by default.
        tolerance: done where no component of the gradient (of the mean loss) is larger; scikit-learn's `tol`.
        most_steps: give up after so many.
    """
    sites, _, parameters = problem.x.shape
    w = problem.x.new_zeros(sites, parameters, *problem.y.shape[1:]) if start is None else start.clone()
    penalty = problem.penalty(l2)
    factor = problem.factor(penalty)
    z = problem.margins(w)
    gradient = problem.gradient(z, w, penalty)
    past: deque[tuple[Tensor, Tensor, Tensor, Tensor]] = deque(maxlen=REMEMBERED)
    for _ in range(most_steps):
        moving = gradient.abs().amax((1, 3), keepdim=True) > tolerance
        if not moving.any():
            break
        direction = -_quasi_newton(gradient, past, factor) * moving
        along = problem.margins(direction)
        length = _length(problem, (z, along), (w, direction), penalty, gradient)
        if not (length * moving).any():  # the rest is rounding
            break
        step = length * direction
        w, z = w + step, z + length * along
        before, gradient = gradient, problem.gradient(z, w, penalty)
        past.append(_remembered(step, gradient - before, factor))
    return w


def _dot(a: Weights, b: Weights) -> Float[Tensor, "site 1 target 1"]:
    return (a * b).sum((1, 3), keepdim=True)


def _bounded(gradient: Weights, factor: Float[Tensor, "site parameter parameter"]) -> Weights:
    """The inverse of the bound on the Hessian, applied."""
    return torch.cholesky_solve(gradient.flatten(2), factor).unflatten(2, gradient.shape[2:])


def _remembered(step: Weights, change: Weights, factor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A step, the change of gradient that it made, 1 / their product, and how far the bound overstates the Hessian.

    Where nothing moved, the product is 0, and so are the step's terms in the recursion.
    """
    product = _dot(step, change)
    sound = product > 0
    scale = torch.where(sound, product / _dot(change, _bounded(change, factor)), 1.0)
    return step, change, torch.where(sound, 1 / product, 0.0), scale


def _quasi_newton(gradient: Weights, past: deque[tuple[Tensor, Tensor, Tensor, Tensor]], factor: Tensor) -> Weights:
    """L-BFGS's two loops (Nocedal & Wright, algorithm 7.4), starting from the bound on the Hessian."""
    shares = []
    for step, change, inverse, _ in reversed(past):
        shares.append(inverse * _dot(step, gradient))
        gradient = gradient - shares[-1] * change
    found = _bounded(gradient, factor)
    if past:
        found = found * past[-1][3]
    for (step, change, inverse, _), share in zip(past, reversed(shares), strict=True):
        found = found + (share - inverse * _dot(change, found)) * step
    return found


def _length(
    problem: Problem,
    margins: tuple[Margins, Margins],
    weights: tuple[Weights, Weights],
    penalty: Float[Tensor, "site parameter 1 1"],
    gradient: Weights,
) -> Float[Tensor, "site 1 target 1"]:
    """How far to go: 1, halved until the objective falls (Armijo); 0 where it never does.

    It costs no pass over the features, since margins are linear in the weights.
    """
    (z, along), (w, direction) = margins, weights
    here, slope = problem.value(z, w, penalty), _dot(gradient, direction)
    noise = 10 * torch.finfo(w.dtype).eps * here.abs()
    length = torch.ones_like(here)
    for _ in range(MOST_HALVINGS):
        there = problem.value(z + length * along, w + length * direction, penalty)
        fell = there <= here + 1e-4 * length * slope + noise
        if fell.all():
            return length
        length = torch.where(fell, length, length / 2)
    return torch.where(fell, length, 0.0)


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
        orders: rows of indices; the targets `y[order]` are fitted. They keep each fold's targets in the fold.
        fold: the part that each example is held out with.
        shrinkage: strengths of L2 as shares of the number of examples, which is the features' mean eigenvalue.
        standardize: scale features.
    """
    errors = x.new_zeros(len(shrinkage), len(x), len(orders))
    spread = x.new_zeros(())
    several = max(1, AT_ONCE // (len(x) * y.numel()))
    for number in fold.unique():
        test, train = fold == number, fold != number
        space = Space.of(x[:, train], standardize)
        learned, seen = space.enter(x[:, train])[..., :-1], space.enter(x[:, test])[..., :-1]
        gram, unit = learned.mT @ learned, torch.eye(learned.shape[2], dtype=x.dtype)
        factors = [torch.linalg.cholesky(gram + share * learned.shape[1] * unit) for share in shrinkage]
        centred = y - y[train].mean(0)
        spread += centred[test].square().sum()
        for some in torch.arange(len(orders)).split(several):
            given, wanted = (centred[orders[some][:, part]].movedim(0, 1) for part in (train, test))
            inner = learned.mT @ given.flatten(1)
            for i, factor in enumerate(factors):
                missed = seen @ torch.cholesky_solve(inner, factor) - wanted.flatten(1)
                errors[i][:, some] += missed.square_().unflatten(2, wanted.shape[1:]).sum((1, 3))
    return (1 - errors / spread).amax(0)
