"""A norm as the linear map that it is at one place: its scale taken as a constant.

Direct attribution needs this: with the scale frozen, a logit is linear in the residual stream, and its parts add up.
Nothing is asked of the class of a norm. Its weight is read off its output, and that the map is right is checked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvlm_interp.errors import ModelError

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative error by which the linear map may miss the norm's own output."""


@dataclass(frozen=True, eq=False)
class Frozen:
    """v ↦ weight · (v − mean v, where the norm centres) + bias, for each row, in float64."""

    weight: Float[Tensor, "row width"]
    bias: Float[Tensor, " width"]
    centred: bool

    def __call__(self, v: Float[Tensor, "row *more width"]) -> Float[Tensor, "row *more width"]:
        weight = self.weight.view(len(self.weight), *(1,) * (v.ndim - 2), -1)
        return weight * (v - v.mean(-1, keepdim=True) if self.centred else v) + self.bias

    def back(self, direction: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """The direction before the norm that reads what `direction` reads after it, bias aside."""
        before = self.weight * direction
        return before - before.mean(-1, keepdim=True) if self.centred else before


@torch.no_grad()
def frozen(norm: nn.Module, x: Float[Tensor, "row width"]) -> Frozen:
    """The linear map that a norm is at x.

    Raises:
        ModelError: the module is not linear up to a scale for each row.
    """
    width = x.shape[-1]
    signs = torch.ones(width, dtype=x.dtype, device=x.device)  # of mean 0 and mean square 1
    signs[1::2] = -1
    plain = norm.forward  # edits and hooks go by position, and these rows stand at none
    bias = plain(torch.zeros_like(signs)[None])[0].double()
    shown, moved = (plain(v[None])[0].double() for v in (signs, signs + 3))
    centred = bool(torch.allclose(shown, moved, rtol=1e-2, atol=1e-3))
    weight, out, given = (shown - bias) * signs.double(), plain(x).double(), x.double()
    linear = weight * (given - given.mean(-1, keepdim=True) if centred else given)
    scale = ((out - bias) * linear).sum(-1, keepdim=True) / (linear * linear).sum(-1, keepdim=True)
    found = Frozen(scale * weight, bias, centred)
    error = (found(given) - out).abs().max() / out.abs().max()
    if not error <= TOLERANCE.get(x.dtype, 1e-4):
        raise ModelError(
            f"{type(norm).__name__} is not a linear map with a scale for each row (off by {float(error):.1e}): "
            "direct attribution through it would be wrong"
        )
    return found
