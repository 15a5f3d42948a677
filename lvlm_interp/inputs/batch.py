"""Several examples as one left-padded batch.

Left padding keeps the end of every prompt, where answers are read, in the last column. Padding is masked, so every
row of the batch computes what its example computes alone: the check of that name holds a model to it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.given import explaining
from lvlm_interp.inputs.called import VIDEO_PIXELS, need_by_position
from lvlm_interp.inputs.example import ROLES, Inputs, Role

NONE: Mapping[str, Any] = MappingProxyType({})


@explaining
@dataclass(frozen=True, eq=False)
class Batch:
    """Examples side by side.

    Attributes:
        model_inputs: keyword arguments of the model; `input_ids` is `[batch, position]`, padded on the left.
        examples: the examples, in order.
    """

    model_inputs: Mapping[str, Tensor]
    examples: tuple[Inputs, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        each = "".join(f"\n  {x!r}" for x in self.examples)
        return f"Batch({len(self)} examples, padded to {self.length} positions:{each})"

    @property
    def length(self) -> int:
        """Positions of the longest example."""
        return self.model_inputs["input_ids"].shape[1]

    @property
    def padding(self) -> Int[Tensor, " batch"]:
        """How many positions of padding stand before each example."""
        return torch.tensor([self.length - x.length for x in self.examples])

    @property
    def real(self) -> Bool[Tensor, "batch position"]:
        """True where a position belongs to an example."""
        return torch.arange(self.length) >= self.padding[:, None]

    @property
    def present(self) -> tuple[Role, ...]:
        """The roles that occur in any of the examples, in the order of `ROLES`."""
        return tuple(role for role in ROLES if any(role in x.roles for x in self.examples))

    def where(self, *roles: str) -> Bool[Tensor, " position"]:
        """True at the positions of these roles, counted in the padded batch.

        Raises:
            InputError: they stand in other places in some examples, counted from the end.
            VisibilityError: an unknown role.
        """
        found = torch.zeros(len(self), self.length, dtype=torch.bool)
        for row, x in zip(found, self.examples, strict=True):
            row[self.length - x.length :] = x.where(*roles)
        if not (found == found[0]).all():
            raise InputError(
                f"the positions of {list(roles)} differ between the examples of this batch: choose positions by "
                "index from the end, or capture the examples one by one"
            )
        return found[0]

    def of(self, number: int, value: Shaped[Tensor, "batch position *rest"]) -> Shaped[Tensor, "1 own *rest"]:
        """One example's part of a captured value, without the padding: what capturing the example alone gives.

        Attention patterns `[batch, head, row, key]` have positions in their last two axes: see `pattern_of`.

        Raises:
            InputError: the value does not have all positions of the batch, so there is no padding to leave out.
        """
        self._need_all(value, 1)
        return value[number, self.length - self.examples[number].length :][None]

    def pattern_of(
        self, number: int, value: Shaped[Tensor, "batch head row key"]
    ) -> Shaped[Tensor, "1 head own_row own_key"]:
        """As `of`, for patterns and scores of attention."""
        self._need_all(value, 2, 3)
        first = self.length - self.examples[number].length
        return value[number, :, first:, first:][None]

    def _need_all(self, value: Tensor, *axes: int) -> None:
        if any(value.shape[axis : axis + 1] != (self.length,) for axis in axes):
            raise InputError(
                f"a value of shape {tuple(value.shape)} does not have the {self.length} positions of this batch: "
                "capture it without positions= and reduce=, or index its first axis"
            )


def batched(
    examples: Sequence[Inputs],
    pad_token_id: int = 0,
    packed: Mapping[str, int] = NONE,
    indices: Mapping[str, str] = NONE,
) -> Batch:
    """Put examples side by side, the shorter ones padded on the left.

    Args:
        examples: of one model; the sizes and numbers of their images may differ.
        pad_token_id: what stands in the padding; masked, so any id that is not an image token does.
        packed: model inputs in which all pictures stand in one row, and the axis along which they do.
        indices: model inputs that tell patches by their numbers, counted over the first two axes of another one.

    Raises:
        InputError: no example, or examples of which only some have an image, or another model input; videos of other
            numbers of frames.
    """
    if not examples:
        raise InputError("a batch needs at least one example")
    for x in examples:
        need_by_position(x.model_inputs)
    _need_the_same(examples)
    _need_as_many_frames(examples)
    length = max(x.length for x in examples)
    along = frozenset(examples[0].along).intersection(*(x.along for x in examples))
    made = {}
    for name in examples[0].model_inputs:
        values = [x.model_inputs[name] for x in examples]
        if name in along:
            fill = pad_token_id if name == "input_ids" else 0
            made[name] = torch.cat([_left_padded(value, length, fill) for value in values])
        elif name in indices:
            made[name] = _side_by_side(_counted_on(values, [x.model_inputs[indices[name]] for x in examples]))
        elif name in packed:
            made[name] = torch.cat(values, packed[name])
        else:
            made[name] = _side_by_side(values)
    return Batch(made, tuple(examples))


def _need_the_same(examples: Sequence[Inputs]) -> None:
    """Raise where an example lacks a model input that another has.

    Raises:
        InputError: names the model inputs, and the examples that have them.
    """
    names = [set(x.model_inputs) for x in examples]
    differing = sorted(names[0].union(*names) - names[0].intersection(*names))
    if not differing:
        return
    having = {name: [n for n, some in enumerate(names) if name in some] for name in differing}
    told = "; ".join(f"{name!r}: {numbers}" for name, numbers in having.items())
    by_position = all(name in examples[numbers[0]].along for name, numbers in having.items())
    raise InputError(
        f"only some of these {len(examples)} examples have {differing}; those that do, counted from 0: {told}. "
        + (
            "These stand by position: make all examples of a batch with them, or all without, as "
            f"vlm.inputs(input_ids=…, {differing[0]}=…)"
            if by_position
            else "Put examples with an image and examples without one in batches of their own"
        )
    )


def _need_as_many_frames(examples: Sequence[Inputs]) -> None:
    """Raise where videos, one after the other, would be filled up with frames that no token stands for.

    Raises:
        InputError: says how many each has.
    """
    videos = [x.model_inputs[VIDEO_PIXELS] for x in examples if VIDEO_PIXELS in x.model_inputs]
    frames = [video.shape[1] for video in videos if video.ndim == 5]
    if len({*frames}) > 1:
        raise InputError(
            f"videos of {frames} frames cannot stand side by side in this model: give them as many, or run the "
            "examples one by one (of collect_features, batch=1)"
        )


def _counted_on(values: Sequence[Tensor], patches: Sequence[Tensor]) -> list[Tensor]:
    """Numbers of patches, counted on behind those of the examples before; what is negative is no patch."""
    before = itertools.accumulate((math.prod(pixels.shape[:2]) for pixels in patches), initial=0)
    return [torch.where(value < 0, value, value + first) for value, first in zip(values, before, strict=False)]


def _left_padded(value: Tensor, length: int, fill: int) -> Tensor:
    missing = value.new_full((1, length - value.shape[1], *value.shape[2:]), fill)
    return torch.cat([missing, value], 1)


def _side_by_side(values: Sequence[Tensor]) -> Tensor:
    """One after the other along the first axis; the other axes are filled up at their ends with zeros.

    Families that hold tiles, frames or images of different sizes in one tensor take zeros for padding themselves.
    """
    sizes = [max(v.shape[axis] for v in values) for axis in range(1, values[0].ndim)]
    padded = []
    for value in values:
        ends = [(0, size - have) for size, have in zip(sizes, value.shape[1:], strict=True)]
        padded.append(torch.nn.functional.pad(value, [n for pair in reversed(ends) for n in pair]))
    return torch.cat(padded)
