"""Passes that go on from an untouched one: what is below a change, and rows that it cannot reach, are taken from it.

A change at one block, from one row on, leaves the blocks below and the rows before as they were. So blocks below give
what they gave, and the rows before are the keys and values that they had. Where that cannot be (layers that hand on a
state or share keys, edits of a user's own), every pass is computed whole.

Promise: the states of a whole pass under the same visits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from lvlm_interp.compat import EMPTY_LAYER
from lvlm_interp.engine.decoder import DecoderInputs, Prefix, hooked_in_front, run_to_decoder, standing
from lvlm_interp.engine.packed import Runner
from lvlm_interp.engine.plan import Run
from lvlm_interp.engine.score import score_answers, with_answers
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.choice import axes_of, off_the_prompt
from lvlm_interp.model.quantised import mixing
from lvlm_interp.model.replaying import recording, replaying
from lvlm_interp.model.sites import Site
from lvlm_interp.model.taps import Visit
from lvlm_interp.model.vlm import HookedVLM


@dataclass(frozen=True, eq=False)
class Change:
    """What is changed in a pass.

    Attributes:
        visits: by site, as `vlm.visiting` takes them.
        block: the first block in which something is; None where it is outside of the blocks.
        row: the first position at which something is.
    """

    visits: Mapping[Site, Visit]
    block: int | None = None
    row: int = 0


def passes_over(vlm: HookedVLM, x: Inputs, ids: Sequence[int]) -> Whole | Resumed:
    """Passes over a prompt with an answer of these tokens, in the cheapest way that is right."""
    answer = torch.tensor(ids)
    beside = vlm.family.carriers or vlm.family.gates  # pictures that are not among the rows
    padded = not bool(x.model_inputs["attention_mask"][0, : x.answer_start].all())
    if beside or padded or standing(vlm) or hooked_in_front(vlm) or mixing(vlm.decoder, vlm.dtype) or _shares_keys(vlm):
        return Whole(vlm, x, answer)
    end = x.answer_start + len(ids)
    inputs = run_to_decoder(vlm, x, room=max(0, end - x.length)).within(vlm, end)
    if inputs.sight.whole or inputs.sight.alone or inputs.last is not None:
        return Whole(vlm, x, answer)
    return Resumed(vlm, inputs, x.answer_start, answer, Whole(vlm, x, answer))


def _shares_keys(vlm: HookedVLM) -> bool:
    """Whether some layers read the keys of layers before them, which have to run for that."""
    layers = DynamicCache(config=vlm.decoder.config).layers
    return EMPTY_LAYER is not None and any(isinstance(layer, EMPTY_LAYER) for layer in layers)


class Whole:
    """Every pass from its beginning.

    Attributes:
        shares: the share of each pass that was computed.
    """

    def __init__(self, vlm: HookedVLM, x: Inputs, answer: Tensor) -> None:
        self.vlm, self.x, self.answer, self.shares = vlm, x, answer, list[float]()

    def states(self, change: Change) -> Float[Tensor, "answer width"]:
        self.shares.append(1.0)
        with self.vlm.visiting(change.visits):
            return score_answers(self.vlm, self.x, self.x.everything[None], [self.answer])[0].states[0]


class Resumed:
    """From an untouched pass, which is computed when this is made; whole, where more than blocks is changed."""

    def __init__(self, vlm: HookedVLM, inputs: DecoderInputs, start: int, answer: Tensor, whole: Whole) -> None:
        self.vlm, self.start, self.count = vlm, start, len(answer)
        self.whole, self.shares = whole, whole.shares
        self.inputs, (path,) = with_answers(vlm, inputs, start, [answer])
        self.rows = (*range(start), *path)
        with recording(vlm.blocks) as self._given:
            (self.untouched,), cache = self._runner.forward([self._run(self.count)], Prefix(), keep=True)
        assert cache is not None
        self._prefix = Prefix(self.rows, tuple((layer.keys, layer.values) for layer in cache.layers))

    @property
    def _runner(self) -> Runner:
        return Runner(self.vlm, self.inputs, self.start, "all")

    def _run(self, reads: int) -> Run:
        return Run(self.rows, (True,) * len(self.rows), reads, ())

    def states(self, change: Change) -> Float[Tensor, "answer width"]:
        if change.block is None:
            return self.whole.states(change)
        row, length, block = self._first(change), len(self.rows), change.block
        if row >= length:
            self.shares += [0.0] if change.visits else []
            return self.untouched
        below: dict[nn.Module, Any] = {module: self._given[module] for module in self.vlm.blocks[:block]}
        reads = min(self.count, length - row)
        visits = {site: _whole(site, visit, row, length) for site, visit in change.visits.items()}
        with self.vlm.visiting(visits), replaying(below, row):
            (found,), _ = self._runner.forward([self._run(reads)], self._prefix.first(row) if row else Prefix())
        self.shares.append((1 - row / length) * (1 - block / len(self.vlm.blocks)))
        return torch.cat([self.untouched[: self.count - reads], found])

    def _first(self, change: Change) -> int:
        """The first row that is computed: the change's, or one before it that what stands before does not see."""
        row = min(change.row, len(self.rows))
        while 0 < row < len(self.rows) and not self.inputs.cut_before(row):
            row -= 1
        return row


def _whole(site: Site, visit: Visit, row: int, length: int) -> Visit:
    """A visit of a whole value, where only the rows from `row` on are computed: those before are shown as 0."""
    axis = axes_of(site.name)[0]

    def visited(value: Tensor) -> Tensor:
        if off_the_prompt(site.name) or value.shape[axis] != length - row:
            return visit(value)  # keys that the cache holds are all there
        before = list(value.shape)
        before[axis] = row
        found: Tensor = visit(torch.cat([value.new_zeros(before), value], axis))
        return found.narrow(axis % found.ndim, row, length - row)

    return visited
