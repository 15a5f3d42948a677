"""Derivatives of the value by what the language model is given for the image, or by pixels: captum's, of our value."""

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
from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.fields import shown
from lvlm_interp.given import need_seed
from lvlm_interp.heatmaps.by_pixels import ByPixels
from lvlm_interp.heatmaps.differentiable import Differentiable
from lvlm_interp.heatmaps.filling import PIXELS, Substrate
from lvlm_interp.heatmaps.method import Kind, Method

BASELINES = ("mean", "zero")
INSTEAD = "by='tokens' needs less, 'occlusion' and 'shapley' take any model"
NO_WAY = ("does not require grad", "not have been used")  # what torch says where a tower hands nothing on


@dataclass(frozen=True)
class OfGradients(Method):
    """A method that differentiates.

    Attributes:
        by: `tokens`: by what the language model is given for the image, features of its tokens; `pixels`: by the
            numbers that the processor makes of the picture, through the vision tower.
    """

    kind: ClassVar[Kind] = "gradient"
    needs: ClassVar[str] = "gradients; by pixels, the original picture"
    by: Literal["tokens", "pixels"] = "tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in ("tokens", "pixels"):
            raise InputError(f"by is 'tokens' or 'pixels', got {self.by!r}")

    def of(self, asked: Asked) -> Differentiable:
        return ByPixels(asked) if self.by == "pixels" else Differentiable(asked)


def each_part(of: Differentiable, method: str, **options: Any) -> Float[Tensor, "part ..."]:
    """What captum's method gives every feature, part by part.

    Raises:
        ModelError: a vision tower that hands no derivative on.
    """
    parts = range(len(of.asked.target.parts))
    try:
        return torch.stack([captum_gradient(of, of.features, part, method, **options) for part in parts]).double()
    except RuntimeError as error:
        if any(said in str(error) for said in NO_WAY):
            raise ModelError(f"the value has no derivative by what this model is given there; {INSTEAD}") from error
        raise


@dataclass(frozen=True)
class Gradient(OfGradients):
    """The length of the gradient at each patch's tokens, or pixels; it has no sign, and adds up to nothing.

    Attributes:
        noise: SmoothGrad: the deviation of noise on the features, as a share of their range; 0 adds none.
        samples: how often noise is drawn; the mean of the gradients is taken.
        seed: of the noise.
    """

    name: ClassVar[str] = "gradient"
    cost: ClassVar[str] = "1 forward and 1 backward of each part, times samples"
    signed: ClassVar[bool] = False
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
        of = self.of(asked)
        drawn = {"noise": self.noise * of.spread, "samples": self.samples, "seed": self.seed}
        squares = each_part(of, "Saliency", abs=False, **drawn).square()
        values, total = of.by_patch(squares).sqrt(), squares.flatten(1).sum(1).sqrt()
        told = {**self.parameters, "seed": self.seed if self.noise else None}
        unit = f"{asked.value.unit} for each unit of a feature"
        return asked.mapped(
            self.name, values, total, told, says="by its gradient", unit=unit, adds=False, **asked.compared(of.valued)
        )


@dataclass(frozen=True)
class GradientTimesInput(OfGradients):
    """The gradient times the features: what the value would lose if they were 0, were it linear.

    Of pixels, 0 is what the processor makes of a certain colour, the mean of many pictures in most families.
    """

    name: ClassVar[str] = "grad_x_input"
    cost: ClassVar[str] = "1 forward and 1 backward of each part"
    source: ClassVar[str] = "Shrikumar et al. 2016"

    def map(self, asked: Asked) -> PatchMap:
        of = self.of(asked)
        found = each_part(of, "InputXGradient")
        values, total = of.by_patch(found), found.flatten(1).sum(1)
        return asked.mapped(
            self.name, values, total, self.parameters, says="to first order", **asked.compared(of.valued)
        )


@dataclass(frozen=True)
class IntegratedGradients(OfGradients):
    """The gradient added up on the straight way from a baseline to the features, times the way.

    Attributes:
        baseline: where the way begins. By tokens: the `mean` of the image's tokens at each of them, or `zero`. By
            pixels: the picture's `mean` colour, the picture blurred (`blur`), `black`, or another picture. Near zero a
            norm is nearly a jump, which no number of steps goes along well: see `residual`.
        steps: of the way; more come nearer to the sum, `residual` says how near.
    """

    name: ClassVar[str] = "integrated_gradients"
    cost: ClassVar[str] = "steps forwards and backwards of each part"
    sums: ClassVar[str] = "everything seen, less the baseline in the image's place"
    source: ClassVar[str] = "Sundararajan et al. 2017"
    baseline: Substrate = "mean"
    steps: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise InputError(f"steps= is 1 or more, got {self.steps}")
        known = BASELINES if self.by == "tokens" else tuple(one for one in PIXELS if one != "road")
        other = "" if self.by == "tokens" else " or another picture"
        word = isinstance(self.baseline, str) and not ("/" in self.baseline or "." in self.baseline)
        if self.baseline not in known if word else not other:
            raise InputError(
                f"by {self.by} a baseline is {', '.join(map(repr, known))}{other}; got {shown(self.baseline)}"
            )

    def map(self, asked: Asked) -> PatchMap:
        of = self.of(asked)
        start, told = of.start(self.baseline)
        found = each_part(of, "IntegratedGradients", baselines=start, n_steps=self.steps, internal_batch_size=1)
        with torch.no_grad():
            total = (of(of.features) - of(start))[0].detach().cpu()
        values = of.by_patch(found)
        return asked.mapped(
            self.name,
            values,
            total,
            {**self.parameters, **told},
            says=f"gained from {told['baseline']}",
            residual=(total - values.sum(1)).float(),
            **asked.compared(of.valued),
        )
