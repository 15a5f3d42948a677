"""Derivatives of the value by what the language model is given for the image's tokens; captum's, on our function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.adapters.captum import captum_gradient
from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import InputError
from lvlm_interp.given import need_seed
from lvlm_interp.heatmaps.differentiable import Differentiable, by_patch
from lvlm_interp.heatmaps.method import Kind, Method

Baseline = Literal["zero", "mean"]


def each_part(of: Differentiable, method: str, **options: Any) -> Float[Tensor, "part token width"]:
    """What captum's method gives every feature, part by part."""
    parts = range(len(of.asked.target.parts))
    return torch.stack([captum_gradient(of, of.features, part, method, **options) for part in parts]).double()


@dataclass(frozen=True)
class Gradient(Method):
    """The length of the gradient at each patch's tokens; it has no sign, and adds up to nothing.

    Attributes:
        noise: SmoothGrad: the deviation of noise on the features, as a share of their range; 0 adds none.
        samples: how often noise is drawn; the mean of the gradients is taken.
        seed: of the noise.
    """

    name: ClassVar[str] = "gradient"
    kind: ClassVar[Kind] = "gradient"
    cost: ClassVar[str] = "1 forward and 1 backward of each part, times samples"
    signed: ClassVar[bool] = False
    needs: ClassVar[str] = "gradients"
    source: ClassVar[str] = "Simonyan et al. 2014; SmoothGrad: Smilkov et al. 2017"
    noise: float = 0.0
    samples: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        need_seed(self.seed)
        if not 0 <= self.noise < math.inf or self.samples < 1:
            raise InputError(f"noise is a share, 0 or more, drawn once or more; got {self.noise}, {self.samples}")

    def map(self, asked: Asked) -> PatchMap:
        of = Differentiable(asked)
        wide = float(of.features.max() - of.features.min())
        drawn = {"noise": self.noise * wide, "samples": self.samples, "seed": self.seed}
        squares = each_part(of, "Saliency", abs=False, **drawn).square().sum(-1)
        values, total = by_patch(asked, squares).sqrt(), squares.sum(-1).sqrt()
        told = {**self.parameters, "seed": self.seed if self.noise else None}
        unit = f"{asked.value.unit} for each unit of a feature"
        return asked.mapped(
            self.name, values, total, told, says="by its gradient", unit=unit, adds=False, **asked.compared(of.valued)
        )


@dataclass(frozen=True)
class GradientTimesInput(Method):
    """The gradient times the features: what the value would lose if they were taken away, were it linear."""

    name: ClassVar[str] = "grad_x_input"
    kind: ClassVar[Kind] = "gradient"
    cost: ClassVar[str] = "1 forward and 1 backward of each part"
    needs: ClassVar[str] = "gradients"
    source: ClassVar[str] = "Shrikumar et al. 2016"

    def map(self, asked: Asked) -> PatchMap:
        of = Differentiable(asked)
        tokens = each_part(of, "InputXGradient").sum(-1)
        return asked.mapped(
            self.name, by_patch(asked, tokens), tokens.sum(-1), {}, says="to first order", **asked.compared(of.valued)
        )


@dataclass(frozen=True)
class IntegratedGradients(Method):
    """The gradient added up on the straight way from a baseline to the features, times the way.

    Attributes:
        baseline: where the way begins: the `mean` of the image's tokens at each of them, or `zero`. Near zero a norm is
            nearly a jump, which no number of steps goes along well: see `residual`.
        steps: of the way; more come nearer to the sum, `residual` says how near.
    """

    name: ClassVar[str] = "integrated_gradients"
    kind: ClassVar[Kind] = "gradient"
    cost: ClassVar[str] = "steps forwards and backwards of each part"
    sums: ClassVar[str] = "everything seen, less the baseline in the image's place"
    needs: ClassVar[str] = "gradients"
    source: ClassVar[str] = "Sundararajan et al. 2017"
    baseline: Baseline = "mean"
    steps: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline not in ("zero", "mean") or self.steps < 1:
            raise InputError(f"a baseline is 'zero' or 'mean', 1 step or more; got {self.baseline!r}, {self.steps}")

    def map(self, asked: Asked) -> PatchMap:
        of = Differentiable(asked)
        start = of.features.mean(1, keepdim=True) if self.baseline == "mean" else torch.zeros_like(of.features)
        start = start.expand_as(of.features).contiguous()
        options = {"baselines": start, "n_steps": self.steps, "internal_batch_size": 1}
        tokens = each_part(of, "IntegratedGradients", **options).sum(-1)
        with torch.no_grad():
            total = (of(of.features) - of(start))[0].detach().cpu()
        values = by_patch(asked, tokens)
        return asked.mapped(
            self.name,
            values,
            total,
            self.parameters,
            says=f"gained from {self.baseline}",
            residual=(total - values.sum(1)).float(),
            **asked.compared(of.valued),
        )
