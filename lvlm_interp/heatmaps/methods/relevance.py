"""Attention that counts for the value, handed on from layer to layer."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import ImageError, InputError, ModelError
from lvlm_interp.heatmaps.differentiable import Differentiable, Watched
from lvlm_interp.heatmaps.method import Kind, Method
from lvlm_interp.heatmaps.methods.attention import PATTERN, by_part
from lvlm_interp.heatmaps.tower import INSTEAD, places_of
from lvlm_interp.model.vlm import HookedVLM

OTHERS = "'integrated_gradients', 'occlusion' and 'shapley' take any model"


@dataclass(frozen=True)
class Relevance(Method):
    """Attention weighted by the value's derivative, negative products left out, handed on through all layers.

    Per layer, R ← R + Ā R with Ā the mean over heads of relu(∂v/∂A · A), from R = 1; v is the value that is asked for,
    A the whole pattern. The map is the mean of R's rows that predict the part's tokens. Only these rows are multiplied
    out, from the last layer on.

    With `tower=True` the same goes on through the vision tower: what stands at an image's token is shared evenly by the
    places of the tower that the token is made of (which, the model's own derivatives say), handed on through the
    tower's layers, and added up again at the tokens. What stands at a token that is made of no place (a row's end), or
    ends in a place that becomes no token (a class token), is left out.

    The numbers say how places compare. They are products over layers, so they have no unit and no sum, and they are 0
    or more: what speaks against the part is left out.

    Attributes:
        tower: go on through the vision tower, whose places have mixed what they show by then.
        layers_at_once: whose patterns are held, layers × heads × rows × keys; all by default. Fewer take less memory,
            and a pass for each such group: the others stay on the model's own kernel. The numbers are the same.

    Raises:
        ModelError: a pattern that cannot be read, layers that carry a state beside attention, or no gradients.
        ImageError: a tower whose places cannot be told from the image's tokens: one becomes several of them.
        InputError: a value that compares with alternatives of several tokens, each of which has a pass of its own.
    """

    name: ClassVar[str] = "relevance"
    kind: ClassVar[Kind] = "attention"
    cost: ClassVar[str] = "1 forward, and 1 backward of each part, with the whole patterns of all layers"
    signed: ClassVar[bool] = False
    needs: ClassVar[str] = "gradients; attention through transformers' AttentionInterface, in all layers"
    source: ClassVar[str] = "Chefer et al. 2021 (generic attention-model explainability), eq. 5–6"
    tower: bool = False
    layers_at_once: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers_at_once is not None and self.layers_at_once < 1:
            raise InputError(f"layers_at_once= is a number of layers, 1 or more; got {self.layers_at_once}")

    def map(self, asked: Asked) -> PatchMap:
        of = Differentiable(asked)
        flows = self.flows(of)
        return asked.mapped(
            self.name,
            flows @ asked.shares.T,
            flows @ asked.whole.double(),
            self.parameters,
            says="handed on by attention",
            unit="relevance",
            adds=False,
            **asked.compared(of.valued),
        )

    def flows(self, of: Differentiable) -> Float[Tensor, "part position"]:
        """What each position has of each part's rows, float64; through the tower too, if asked."""
        names = patterns_of(of.asked.vlm)
        need_one_pass(of)  # finds alternatives too, in passes of their own, before any pattern is visited
        flows = self._handed_on(of, names, of_rows(of.asked), of.features)
        return self._through_tower(of, flows) if self.tower else flows

    def _through_tower(
        self, of: Differentiable, flows: Float[Tensor, "part position"]
    ) -> Float[Tensor, "part position"]:
        names = tower_patterns_of(of.asked.vlm)
        places = places_of(of.asked)
        return places.left(self._handed_on(of, names, places.entered(flows), None), of.asked.x.length)

    def _handed_on(
        self, of: Differentiable, names: Sequence[str], flows: Float[Tensor, "part place"], features: Tensor | None
    ) -> Float[Tensor, "part place"]:
        """Rows of R before the layers of these patterns, of those behind them."""
        count = self.layers_at_once or len(names)
        for stop in range(len(names), 0, -count):
            flows = through(of, names[max(stop - count, 0) : stop], flows, features)
        return flows


def through(
    of: Differentiable, names: Sequence[str], flows: Float[Tensor, "part place"], features: Tensor | None
) -> Float[Tensor, "part place"]:
    """Rows of R before these layers, of those behind them; one forward, and one backward for each part."""
    handing = Handing()
    with torch.inference_mode(False), torch.enable_grad():
        with of.asked.vlm.visiting({name: Layer(handing) for name in names}):
            values = of(features)[0]
        handing.need_whole(flows.shape[1])
        return torch.stack([handing.back(value, flow) for value, flow in zip(values, flows, strict=True)])


class Handing:
    """Hands a row of R from layer to layer while a derivative goes back; it holds no patterns but the first layer's.

    Backwards, a layer's turn comes when that of all layers behind it is over: its derivative is made of theirs. A layer
    that the value is not made of (the last of a tower, often) has no turn.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.first: list[Tensor] = []
        self._flow = torch.empty(0)

    def need_whole(self, places: int) -> None:
        """Raise unless each layer looks at all the places that R has.

        Raises:
            ImageError: a tower whose layers look at others than its tokens are made of.
        """
        if sizes := [layer.size for layer in self.layers if layer.size != places]:
            raise ImageError(
                f"a layer of this model's vision tower attends to {sizes[0]} places, and the image's tokens are made "
                f"of {places}; {INSTEAD}"
            )

    def back(self, value: Float[Tensor, ""], flow: Float[Tensor, " place"]) -> Float[Tensor, " place"]:
        """The row before the first of the layers, of that behind the last."""
        self._flow = flow
        torch.autograd.grad(value, self.first, retain_graph=True, allow_unused=True)
        return self._flow

    def read(self, start: int, pattern: Tensor, derivative: Tensor) -> None:
        """Hand on what stands at the places of a pattern, which begin here."""
        rows = self._flow[start : start + len(pattern) * pattern.shape[-1]].view(len(pattern), -1)
        layer = map(counting, pattern, derivative)
        handed = torch.cat([row.to(counted) @ counted for row, counted in zip(rows, layer, strict=True)])
        places = torch.arange(start, start + len(handed))
        self._flow = self._flow.index_add(0, places, handed.to(self._flow))


class Layer:
    """Visits the patterns of one layer: one, or one after the other, where a tower looks at windows or at tiles."""

    def __init__(self, handing: Handing) -> None:
        self.size, self._handing = 0, handing

    def __call__(self, pattern: Tensor) -> Tensor:
        handing, start = self._handing, self.size
        pattern = pattern if pattern.requires_grad else pattern.detach().requires_grad_()
        if start == 0:
            handing.layers.append(self)
        if handing.layers[0] is self:
            handing.first.append(pattern)
        self.size += len(pattern) * pattern.shape[-1]
        seen: Tensor = Watched.apply(pattern, functools.partial(handing.read, start))
        return seen


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


def patterns_of(vlm: HookedVLM) -> list[str]:
    """The patterns of all layers of the language model, in order.

    Raises:
        ModelError: one that cannot be read, or something beside attention that positions are read by.
    """
    if lost := fnmatch.filter(vlm.missing, PATTERN):
        raise ModelError(f"'relevance' needs every layer's attention, and {vlm.missing[lost[0]]}; {OTHERS}")
    if carriers := sorted({type(module).__name__ for module in vlm.recurrent}):
        raise ModelError(
            f"'relevance' hands on what attention reads, and in this model {', '.join(carriers)} carries a state from "
            f"position to position beside it; {OTHERS}"
        )
    return fnmatch.filter(vlm.sites, PATTERN)


def tower_patterns_of(vlm: HookedVLM) -> list[str]:
    """The patterns of all layers of the vision tower, in order.

    Raises:
        ModelError: there are none, or some that cannot be read.
    """
    lost, found = (fnmatch.filter(some, f"vision.{PATTERN}") for some in (vlm.missing, vlm.sites))
    if lost or not found:
        why = vlm.missing[lost[0]] if lost else "none is found in it"
        raise ModelError(f"relevance(tower=True) needs the attention of the vision tower, and {why}; {INSTEAD}")
    return found


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
