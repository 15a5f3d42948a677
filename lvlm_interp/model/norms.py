"""What TransformerLens calls the parts of a norm: the scale that it divides by, and what it has before its weight."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

NormPart = Literal["scale", "normalized"]
EPSILON = ("variance_epsilon", "eps", "epsilon", "norm_eps")


def is_norm(norm: nn.Module | None) -> bool:
    """Whether a module divides rows by their root mean square or standard deviation, and names its epsilon."""
    weight = getattr(norm, "weight", None)
    named = norm is not None and "Norm" in type(norm).__name__ and _epsilon(norm) is not None
    return named and isinstance(weight, Tensor) and weight.ndim == 1


def centres(norm: nn.Module) -> bool:
    """Whether a norm takes the mean away first."""
    return isinstance(norm, nn.LayerNorm) or ("LayerNorm" in type(norm).__name__ and "RMS" not in type(norm).__name__)


def scale_of(norm: nn.Module, residual: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows 1"]:
    """What a norm divides by."""
    return (_centred(norm, residual).square().mean(-1, keepdim=True) + (_epsilon(norm) or 0.0)).sqrt()


def part_of(
    norm: nn.Module,
    part: NormPart,
    residual: Float[Tensor, "*rows width"],
    scale: Float[Tensor, "*rows 1"] | None = None,
) -> Float[Tensor, "*rows width_or_1"]:
    """The scale, or what is divided by it (or by another one), in the number type of what the norm reads."""
    found = scale_of(norm, residual) if part == "scale" else divided(norm, residual, scale)
    return found.to(residual.dtype)


def divided(
    norm: nn.Module, residual: Float[Tensor, "*rows width"], scale: Float[Tensor, "*rows 1"] | None = None
) -> Float[Tensor, "*rows width"]:
    """What a norm has before its weight: what it reads, divided by its scale or by another one."""
    return _centred(norm, residual) / (scale_of(norm, residual) if scale is None else scale)


def weighted(norm: nn.Module, normalized: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """What a norm makes of what was divided."""
    scaled = normalized * gain_of(norm, normalized.shape[-1])
    bias = getattr(norm, "bias", None)
    return scaled if bias is None else scaled + bias


def gain_of(norm: Any, width: int) -> Float[Tensor, " width"]:
    """What a norm multiplies by: its weight for most, one more for Gemma's."""
    if centres(norm):
        return norm.weight
    ones = torch.ones(width, dtype=norm.weight.dtype, device=norm.weight.device)
    return norm.forward(ones) * (1 + (_epsilon(norm) or 0.0)) ** 0.5


def _centred(norm: nn.Module, residual: Tensor) -> Tensor:
    wide = residual if residual.dtype == torch.float64 else residual.float()
    return wide - wide.mean(-1, keepdim=True) if centres(norm) else wide


def _epsilon(norm: nn.Module) -> float | None:
    return next((float(v) for n in EPSILON if isinstance(v := getattr(norm, n, None), (int, float))), None)
