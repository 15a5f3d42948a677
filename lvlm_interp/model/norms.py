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
    norm: nn.Module, part: NormPart, residual: Float[Tensor, "*rows width"]
) -> Float[Tensor, "*rows width_or_1"]:
    """The scale, or what is divided by it, in the number type of what the norm reads."""
    scale = scale_of(norm, residual)
    return (scale if part == "scale" else _centred(norm, residual) / scale).to(residual.dtype)


def rejoined(
    norm: nn.Module, part: NormPart, seen: Float[Tensor, "*rows width_or_1"], residual: Float[Tensor, "*rows width"]
) -> Float[Tensor, "*rows width"]:
    """What a norm gives with another scale, or with something else divided by it."""
    normalized = _centred(norm, residual) / seen if part == "scale" else seen
    scaled = normalized * gain_of(norm, residual.shape[-1])
    bias = getattr(norm, "bias", None)
    return (scaled if bias is None else scaled + bias).to(residual.dtype)


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
