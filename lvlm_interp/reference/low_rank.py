"""LoRA (Hu et al. 2021) in the time of a plain linear map: one product with the whole weight, W + s·B·A.

What usual layers compute beside W, x·Aᵀ·Bᵀ and its sum, passes over all activations again; here the update is part of
the weight, which is made anew once a step. Gradients of A and B need no product of the size of W either.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_interp.reference.architecture import LORA_ALPHA, LORA_RANK, LORA_TARGETS, merged


class _Whole(torch.autograd.Function):
    """x·(W + s·B·A)ᵀ, of which x, A and B have gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Tensor, lora_a: Tensor, lora_b: Tensor) -> Tensor:
        ctx.save_for_backward(x, whole, lora_a, lora_b)
        return nn.functional.linear(x, whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        x, whole, lora_a, lora_b = ctx.saved_tensors
        rows, of = x.flatten(0, -2), grad.flatten(0, -2)
        scale = LORA_ALPHA / LORA_RANK
        of_a = (of @ lora_b.to(of.dtype)).T @ rows
        of_b = of.T @ (rows @ lora_a.to(rows.dtype).T)
        return grad @ whole, None, scale * of_a.to(lora_a.dtype), scale * of_b.to(lora_b.dtype)


class LowRank(nn.Module):
    """A linear map without bias, frozen, and an update of low rank that learns, in float32.

    Attributes:
        weight: the frozen W, in whatever it is computed in.
        whole: W with the update, as `merge` last made it; small steps are kept in A and B, whatever `whole` rounds.
        alone: compute by W without the update.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.lora_A = nn.Parameter(torch.empty(LORA_RANK, linear.in_features))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, LORA_RANK))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as peft begins
        self.register_buffer("whole", linear.weight.detach().clone())
        self.whole: Tensor
        self.alone = False

    @torch.no_grad()
    def merge(self) -> None:
        """Make the whole weight anew, from what is learnt by now."""
        self.whole.copy_(merged(self.weight.float(), self.lora_A, self.lora_B))

    def forward(self, x: Tensor) -> Tensor:
        if self.alone:
            return nn.functional.linear(x, self.weight)
        found: Tensor = _Whole.apply(x, self.whole, self.lora_A, self.lora_B)
        return found


def adapt(model: nn.Module) -> dict[str, LowRank]:
    """Put an update on every linear map of `LORA_TARGETS`; returns them by name."""
    found = {name: linear for name, linear in model.named_modules() if name.rpartition(".")[2] in LORA_TARGETS}
    made = {name: LowRank(linear) for name, linear in found.items() if isinstance(linear, nn.Linear)}
    for name, one in made.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, one)
    return made


@contextlib.contextmanager
def without(updates: dict[str, LowRank]) -> Iterator[None]:
    """Compute by the frozen weights within the `with`."""
    try:
        for one in updates.values():
            one.alone = True
        yield
    finally:
        for one in updates.values():
            one.alone = False
