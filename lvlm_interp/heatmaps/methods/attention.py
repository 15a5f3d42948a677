"""How much the rows that an answer is read from look at each patch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.given import whole
from lvlm_interp.heatmaps.method import Kind, Method
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.finite import need_finite
from lvlm_interp.model.vlm import HookedVLM

PATTERN = "blocks.*.attn.hook_pattern"
GENERIC = "Write a general description of the image."
SHARE = "shares of attention"
SINK = 5.0  # times the median of the image's tokens, over all heads and layers: a token that is looked at for nothing


@dataclass(frozen=True)
class OfHeads(Method):
    """A method that looks at the attention of heads.

    Attributes:
        layers: whose attention; negative numbers count from the last; all by default.
        heads: of these layers; all by default.
    """

    kind: ClassVar[Kind] = "attention"
    signed: ClassVar[bool] = False
    needs: ClassVar[str] = "attention through transformers' AttentionInterface"
    layers: int | tuple[int, ...] | None = None
    heads: int | tuple[int, ...] | None = None

    @classmethod
    def read(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Several layers or heads may come in any list of numbers: an array, a range, a column of a table."""
        several = {n: tuple(map(whole, v)) for n, v in parameters.items() if n in ("layers", "heads") and _is_list(v)}
        return super().read({**parameters, **several})

    def __post_init__(self) -> None:
        super().__post_init__()
        if () in (self.layers, self.heads):
            raise InputError(f"{self.name!r} looks at layers and heads: give one or more, or None for all of them")


def _is_list(value: Any) -> bool:
    return not isinstance(value, (str, Mapping)) and getattr(value, "ndim", 1) == 1 and hasattr(value, "__iter__")


@dataclass(frozen=True)
class Attention(OfHeads):
    """The mean of attention over heads and layers, from the rows that predict the part's tokens.

    What is looked at need not be used, and a few tokens (sinks) are looked at whatever is asked. Only these rows of
    attention are computed.

    Attributes:
        drop_sinks: give 0 to tokens of the image that the whole prompt behind it looks at more than 5 times as much as
            at the median one.
    """

    name: ClassVar[str] = "attention"
    cost: ClassVar[str] = "1"
    source: ClassVar[str] = "raw attention; sinks: Kang et al. 2025"
    drop_sinks: bool = False

    def map(self, asked: Asked) -> PatchMap:
        looked = mean_attention(asked.vlm, asked.x, range(asked.x.answer_start - 1, asked.x.length - 1), self)
        if self.drop_sinks:
            looked = looked.masked_fill(sinks(asked), 0.0)
        return mapped(asked, self.name, by_part(asked, looked), self.parameters)


@dataclass(frozen=True)
class RelativeAttention(OfHeads):
    """Attention of the row that predicts a part's first token, divided by that under a question about nothing.

    What every question looks at, sinks among it, divides out.

    Attributes:
        generic: the question about nothing.
    """

    name: ClassVar[str] = "relative_attention"
    cost: ClassVar[str] = "2"
    needs: ClassVar[str] = "attention through transformers' AttentionInterface; the original picture"
    source: ClassVar[str] = "Zhang et al. 2025 (mllms_know), rel-att"
    generic: str = GENERIC

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.generic.strip():
            raise InputError("generic= is a question about nothing, and a blank is none; the paper's is the default")

    def map(self, asked: Asked) -> PatchMap:
        vlm, x, number = (
            asked.vlm,
            asked.x,
            [view.positions is asked.view.positions for view in asked.x.images].index(True),
        )
        pictures = [view.picture for view in x.images]
        if any(view.clip for view in x.images):
            raise ImageError(
                "relative_attention asks another question about pictures, and this example has a video; 'attention' "
                "takes videos"
            )
        if any(picture is None for picture in pictures):
            raise ImageError(
                "relative_attention asks another question about the original picture, which is not known here: prepare "
                "the example with vlm.prepare(question, picture); 'attention' needs none"
            )
        other = vlm.prepare(self.generic, pictures)
        looked = mean_attention(vlm, x, [x.answer_start - 1 + part.start for part in asked.target.parts], self)
        idle = mean_attention(vlm, other, [other.answer_start - 1], self)[0, other.images[number].positions]
        ratio = torch.zeros_like(looked)
        ratio[:, asked.view.positions] = looked[:, asked.view.positions] / idle.clamp(min=torch.finfo(idle.dtype).tiny)
        return mapped(asked, self.name, ratio, self.parameters, "times as much attention as another question gives")


@dataclass(frozen=True)
class Rollout(Method):
    """Attention handed on from layer to layer: the product of (A + 1) / 2, heads averaged. It knows no target's value.

    A control: it is the same for every token that stands in one place, whatever is said there.
    """

    name: ClassVar[str] = "rollout"
    kind: ClassVar[Kind] = "attention"
    cost: ClassVar[str] = "1, with the whole pattern of one layer at a time"
    signed: ClassVar[bool] = False
    needs: ClassVar[str] = "attention through transformers' AttentionInterface"
    source: ClassVar[str] = "Abnar & Zuidema 2020"

    def map(self, asked: Asked) -> PatchMap:
        rows = torch.arange(asked.x.answer_start - 1, asked.x.length - 1)
        with averaged(asked.vlm) as layers:
            need_finite(asked.vlm, asked.x, asked.vlm.run(asked.x))
        flow = torch.eye(asked.x.length, dtype=torch.float64)[rows]
        for layer in reversed(layers):  # only the rows that are asked for are multiplied out
            flow = (flow @ layer + flow) / 2
        return mapped(asked, self.name, by_part(asked, flow), {})


def mean_attention(vlm: HookedVLM, x: Inputs, rows: Any, how: Any) -> Float[Tensor, "row position"]:
    """Of some rows, the mean over heads and layers."""
    found = vlm.capture(x, PATTERN, positions=list(rows), layers=how.layers, heads=how.heads)
    need_finite(vlm, x, found["logits"])
    patterns = [value[0].double().mean(0) for name, value in found.items() if name != "logits"]
    return torch.stack(patterns).mean(0).cpu()


def sinks(asked: Asked) -> Tensor:
    """Positions of the image that all that stands behind it looks at, over all heads and layers."""
    x, at = asked.x, asked.view.positions
    behind = range(int(at.max()) + 1, x.length)
    looked = mean_attention(asked.vlm, x, behind, Attention()).mean(0)
    found = torch.zeros(x.length, dtype=torch.bool)
    found[at] = looked[at] > SINK * looked[at].median()
    return found


def by_part(asked: Asked, rows: Float[Tensor, "answer position"]) -> Float[Tensor, "part position"]:
    """The mean over the rows that predict the tokens of each part."""
    return torch.stack([rows[part.start : part.stop].mean(0) for part in asked.target.parts])


def mapped(
    asked: Asked, name: str, looked: Float[Tensor, "part position"], parameters: Mapping[str, Any], unit: str = SHARE
) -> PatchMap:
    """A map of numbers that stand at positions, whatever the value is."""
    values, total = looked @ asked.shares.T, looked @ asked.whole.double()
    return asked.mapped(name, values, total, parameters, value="attention", says="paid", unit=unit, adds=False)


@contextmanager
def averaged(vlm: HookedVLM) -> Iterator[list[Float[Tensor, "row position"]]]:
    """Within the `with`, the pattern of every layer of a pass, the mean over its heads; in order."""
    found: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        found.append(value[0].detach().double().mean(0).cpu())
        return value

    with vlm.visiting({PATTERN: keep}):
        yield found
