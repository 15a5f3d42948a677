"""Attention that counts for the value, handed on from layer to layer."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.heatmaps.differentiable import Differentiable
from lvlm_interp.heatmaps.method import Kind, Method
from lvlm_interp.heatmaps.methods.attention import PATTERN, by_part
from lvlm_interp.model.vlm import HookedVLM

OTHERS = "'integrated_gradients', 'occlusion' and 'shapley' take any model"
Read = Callable[[Tensor, Tensor], None]
"""Is given a pattern and the derivative by it, both `[batch, head, row, key]`."""


@dataclass(frozen=True)
class Relevance(Method):
    """Attention weighted by the value's derivative, negative products left out, handed on through all layers.

    Per layer, R ← R + Ā R with Ā the mean over heads of relu(∂v/∂A · A), from R = 1; v is the value that is asked for,
    A the whole pattern. The map is the mean of R's rows that predict the part's tokens. Only these rows are multiplied
    out, from the last layer on.

    The numbers say how places compare. They are products over layers, so they have no unit and no sum, and they are 0
    or more: what speaks against the part is left out.

    Attributes:
        layers_at_once: whose patterns are held, layers × heads × rows × keys; all by default. Fewer take less memory,
            and a pass for each such group: the others stay on the model's own kernel. The numbers are the same.

    Raises:
        ModelError: a pattern that cannot be read, layers that carry a state beside attention, or no gradients.
        InputError: a value that compares with alternatives of several tokens, each of which has a pass of its own.
    """

    name: ClassVar[str] = "relevance"
    kind: ClassVar[Kind] = "attention"
    cost: ClassVar[str] = "1 forward, and 1 backward of each part, with the whole patterns of all layers"
    signed: ClassVar[bool] = False
    needs: ClassVar[str] = "gradients; attention through transformers' AttentionInterface, in all layers"
    source: ClassVar[str] = "Chefer et al. 2021 (generic attention-model explainability), eq. 5–6"
    layers_at_once: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers_at_once is not None and self.layers_at_once < 1:
            raise InputError(f"layers_at_once= is a number of layers, 1 or more; got {self.layers_at_once}")

    def map(self, asked: Asked) -> PatchMap:
        names = patterns_of(asked.vlm)
        of = Differentiable(asked)
        need_one_pass(of)
        flows = self.handed_on(of, names, of_rows(asked), of.features)
        return asked.mapped(
            self.name,
            flows @ asked.patches.double().T,
            flows @ asked.whole.double(),
            self.parameters,
            says="handed on by attention",
            unit="relevance",
            adds=False,
            **asked.compared(of.valued),
        )

    def handed_on(
        self, of: Differentiable, names: Sequence[str], flows: Float[Tensor, "part token"], features: Tensor | None
    ) -> Float[Tensor, "part token"]:
        """Rows of R, float64, from behind the layers of these patterns to before them."""
        count = self.layers_at_once or len(names)
        for stop in range(len(names), 0, -count):
            flows = through(of, names[max(stop - count, 0) : stop], flows, features)
        return flows


def through(
    of: Differentiable, names: Sequence[str], flows: Float[Tensor, "part token"], features: Tensor | None
) -> Float[Tensor, "part token"]:
    """Rows of R before these layers, of those behind them; one forward, and one backward for each part."""
    handing = Handing()
    with torch.inference_mode(False), torch.enable_grad():
        with of.asked.vlm.visiting(dict.fromkeys(names, handing.visit)):
            values = of(features)[0]
        return torch.stack([handing.back(value, flow) for value, flow in zip(values, flows, strict=True)])


class Handing:
    """Hands a row of R from layer to layer while a derivative goes back through them; it holds no pattern itself.

    Backwards, a layer's turn comes when that of all layers behind it is over: its derivative is made of theirs.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._flow = torch.empty(0)

    def visit(self, pattern: Tensor) -> Tensor:
        """A pattern on its way forwards."""
        pattern = pattern if pattern.requires_grad else pattern.detach().requires_grad_()
        self._first = pattern if self._first is None else self._first
        seen: Tensor = Watched.apply(pattern, self._read)
        return seen

    def back(self, value: Float[Tensor, ""], flow: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
        """The row before the first of the layers, of the one behind the last."""
        assert self._first is not None
        self._flow = flow
        torch.autograd.grad(value, self._first, retain_graph=True)
        return self._flow

    def _read(self, pattern: Tensor, derivative: Tensor) -> None:
        counted = counting(pattern[0], derivative[0])
        self._flow = self._flow + (self._flow.to(counted) @ counted).to(self._flow)


class Watched(torch.autograd.Function):
    """A pattern as it is; on the way back, it is read together with its derivative."""

    @staticmethod
    def forward(ctx: Any, pattern: Tensor, read: Read) -> Tensor:
        ctx.save_for_backward(pattern)  # which the product with the values keeps anyway
        ctx.read = read
        return pattern.view_as(pattern)

    @staticmethod
    def backward(ctx: Any, *derivatives: Any) -> Any:
        ctx.read(*ctx.saved_tensors, *derivatives)
        return *derivatives, None


def counting(
    pattern: Float[Tensor, "head row key"], derivative: Float[Tensor, "head row key"]
) -> Float[Tensor, "row key"]:
    """What of attention speaks for the value: the mean over heads of relu(derivative · pattern), float32 or finer."""
    precise = torch.promote_types(pattern.dtype, torch.float32)
    return (pattern.to(precise) * derivative.to(precise)).clamp(min=0).mean(0)


def of_rows(asked: Asked) -> Float[Tensor, "part position"]:
    """R behind the last layer: the mean of the rows that predict each part's tokens."""
    rows = torch.arange(asked.x.answer_start - 1, asked.x.length - 1)
    return by_part(asked, torch.eye(asked.x.length, dtype=torch.float64)[rows])


def patterns_of(vlm: HookedVLM, sites: str = PATTERN) -> list[str]:
    """The patterns of all layers, in order.

    Raises:
        ModelError: one that cannot be read, or something beside attention that positions are read by.
    """
    if lost := fnmatch.filter(vlm.missing, sites):
        raise ModelError(f"'relevance' needs every layer's attention, and {vlm.missing[lost[0]]}; {OTHERS}")
    if carriers := sorted({type(module).__name__ for module in vlm.recurrent}):
        raise ModelError(
            f"'relevance' hands on what attention reads, and in this model {', '.join(carriers)} carries a state from "
            f"position to position beside it; {OTHERS}"
        )
    return fnmatch.filter(vlm.sites, sites)


def need_one_pass(of: Differentiable) -> None:
    """Raise unless the value is read in the pass of the answer itself.

    Raises:
        InputError: an alternative of several tokens.
    """
    several = [ids for spellings in of.valued.alternative_ids for ids in spellings if len(ids) > 1]
    if several:
        raise InputError(
            f"'relevance' looks at the patterns of one pass, and the alternative "
            f"{''.join(of.asked.vlm.token_strings(list(several[0])))!r} has {len(several[0])} tokens, so a pass of its "
            "own: take a value that compares with nothing ('logodds'), or a foil of one token; 'integrated_gradients' "
            "takes any"
        )
