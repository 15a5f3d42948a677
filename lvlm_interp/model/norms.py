"""What TransformerLens calls the parts of a norm: the scale that it divides by, and what it has before its weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvlm_interp.errors import SiteError
from lvlm_interp.model.holding import hooks_of_others
from lvlm_interp.model.sums import in_turn

NormPart = Literal["scale", "normalized"]
Parts = Mapping[NormPart, Sequence[Callable[[Tensor], Tensor]]]
"""What each part passes through."""
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


def renormed(norm: nn.Module, standing: Sequence[Parts], read: Tensor, output: Tensor) -> Tensor:
    """What a norm gives after visits of what it divides by and of what it has then; unchanged, what it gave."""
    of_scale, of_normalized = ([v for one in standing for v in one.get(part, ())] for part in ("scale", "normalized"))
    scale = _changed(part_of(norm, "scale", read), of_scale) if of_scale else None
    seen = _changed(part_of(norm, "normalized", read, scale), of_normalized) if of_normalized else None
    if scale is None and seen is None:
        return output
    _need_own(norm, read, output)
    return weighted(norm, divided(norm, read, scale) if seen is None else seen).to(output.dtype)


def _changed(value: Tensor, visits: Sequence[Callable[[Tensor], Tensor]]) -> Tensor | None:
    """What visits make of a value; None if they leave it as it is and no gradient goes through it."""
    version = 0 if value.is_inference() else value._version  # an edit may write over what it is given
    seen = in_turn(visits)(value)
    written = not value.is_inference() and value._version != version
    through = torch.is_grad_enabled() and value.requires_grad
    return None if seen is value and not written and not through else seen


def _need_own(norm: nn.Module, read: Tensor, output: Tensor) -> None:
    """Raise unless a norm's output is its own: hooks for every module are called ahead of ours.

    Raises:
        SiteError: such a hook changed it.
    """
    if hooks_of_others(()) and not torch.equal(norm.forward(read), output):
        raise SiteError(
            f"a hook for every module changes what {type(norm).__name__} gives: an edit of its hook_scale or "
            "hook_normalized, or a gradient there, would undo that. Put the hook on the modules themselves"
        )


def _centred(norm: nn.Module, residual: Tensor) -> Tensor:
    wide = residual if residual.dtype == torch.float64 else residual.float()
    return wide - wide.mean(-1, keepdim=True) if centres(norm) else wide


def _epsilon(norm: nn.Module) -> float | None:
    return next(
        (float(v) for n in EPSILON if isinstance(v := getattr(norm, n, None), (int, float, np.number, Tensor))), None
    )
