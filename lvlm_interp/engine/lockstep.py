"""Streams of one answer: each sees another part of the prompt, or another picture, and all read the same tokens.

Prompts are computed once. Then each token is a row for each stream, all in one call of the decoder, whose cache holds
the keys of all of them: a mask says whose they are. Where that cannot be (layers that hand on a state, edits in the
decoder), every token is computed from all positions anew.

Promise: states as `score_answers` gives them for the same tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from lvlm_interp.engine.decoder import DecoderInputs, Prefix, hooked_in_front, made_of, run_to_decoder, standing
from lvlm_interp.engine.masks import LayerKind
from lvlm_interp.engine.packed import Runner, run_rows
from lvlm_interp.engine.plan import Run, tree
from lvlm_interp.engine.score import score_answers
from lvlm_interp.errors import ModelError
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.hooks import visiting
from lvlm_interp.model.quantised import mixing
from lvlm_interp.model.vlm import HookedVLM

STREAM = "blocks.{}.hook_resid_post"


@dataclass(frozen=True, eq=False)
class Stream:
    """A prompt, and what of it is seen."""

    x: Inputs
    visible: Bool[Tensor, " position"]


@runtime_checkable
class Lockstep(Protocol):
    """Streams that go on together.

    Attributes:
        behind: of the first stream, what these blocks gave where the newest state was computed, by their number.
    """

    behind: dict[int, Float[Tensor, " width"]]

    def begin(self) -> Float[Tensor, "stream width"]:
        """The states that predict the first token."""
        ...

    def step(self, token: int) -> Float[Tensor, "stream width"]:
        """Those that predict the next one, behind this."""
        ...


def lockstep(vlm: HookedVLM, streams: Sequence[Stream], most: int, layers: Sequence[int] = ()) -> Lockstep:
    """Streams that read up to `most` tokens; what blocks give is kept of `layers`."""
    examples = list(dict.fromkeys(stream.x for stream in streams))
    read_beside = vlm.family.carriers or vlm.family.gates  # pictures that are not among the rows
    if read_beside or standing(vlm) or hooked_in_front(vlm) or mixing(vlm.decoder, vlm.dtype):
        return Anew(vlm, streams, layers)
    inputs = [run_to_decoder(vlm, x, room=most + 1) for x in examples]
    ends = (x.answer_start + most + 1 for x in examples)
    alone = any(one.sight.whole or one.sight.alone for one in inputs)
    if alone or any(one.within(vlm, end).last is not None for one, end in zip(inputs, ends, strict=True)):
        return Anew(vlm, streams, layers)
    return Together(vlm, streams, inputs, layers) if _alike(inputs) else Anew(vlm, streams, layers)


def _alike(inputs: Sequence[DecoderInputs]) -> bool:
    """Whether rows of several examples can stand in one call: only what stands at the image's places differs."""
    first = inputs[0]
    return len(inputs) == 1 or all(
        not one.extras and torch.equal(one.positions, first.positions) and torch.equal(one.image, first.image)
        for one in inputs
    )


class Anew:
    """From all positions, for each token."""

    def __init__(self, vlm: HookedVLM, streams: Sequence[Stream], layers: Sequence[int] = ()) -> None:
        self.vlm, self.streams, self.layers, self._ids = vlm, streams, layers, list[int]()
        self.behind: dict[int, Tensor] = {}

    def begin(self) -> Float[Tensor, "stream width"]:
        return self._states()

    def step(self, token: int) -> Float[Tensor, "stream width"]:
        if token in self.vlm.visual_token_ids:
            name = self.vlm.token_strings([token])[0]
            raise ModelError(f"{self.vlm.name!r} writes {name!r}, behind which it would look for a picture")
        self._ids.append(token)
        return self._states()

    def _states(self) -> Float[Tensor, "stream width"]:
        found: dict[int, Tensor] = {}
        ids = torch.tensor([*self._ids, self.vlm.stops()[0]])  # the last is not read: what stands before it predicts it
        for x in dict.fromkeys(stream.x for stream in self.streams):
            own = [n for n, stream in enumerate(self.streams) if stream.x is x]
            visible = torch.stack([self.streams[n].visible[: x.answer_start] for n in own])
            scores = score_answers(self.vlm, x, visible, [ids], reads=[1])[0]
            found |= dict(zip(own, scores.states[:, -1], strict=True))
        self._look()
        return torch.stack([found[n] for n in range(len(self.streams))])

    def _look(self) -> None:
        """In a pass of its own."""
        if self.layers:
            x = self.streams[0].x
            written = x.with_answer(self._ids, [""] * len(self._ids), "") if self._ids else x
            last = x.answer_start + len(self._ids) - 1
            found = self.vlm.capture(written, [STREAM.format(n) for n in self.layers], positions=[last])
            self.behind = {n: found[STREAM.format(n)][0, 0] for n in self.layers}


class Together:
    """A row for each stream, over the keys of all of them."""

    def __init__(
        self, vlm: HookedVLM, streams: Sequence[Stream], inputs: Sequence[DecoderInputs], layers: Sequence[int] = ()
    ) -> None:
        self.vlm, self.streams, self.inputs, self.layers = vlm, streams, inputs, layers
        self.behind: dict[int, Tensor] = {}
        self._start, self._count = streams[0].x.answer_start, 0
        self._cache = DynamicCache()
        self._owned = torch.zeros(len(streams), 0, dtype=torch.bool)  # [stream, key]
        self._places = torch.zeros(0, dtype=torch.long)  # the position of each key

    def begin(self) -> Float[Tensor, "stream width"]:
        found: dict[int, Tensor] = {}
        layers: list[list[tuple[Tensor, Tensor]]] = []
        for inputs in self.inputs:
            own = [n for n, stream in enumerate(self.streams) if stream.x is inputs.source]
            runs = [self._run(self.streams[n]) for n in own]
            nodes = self._note(inputs, own, runs)
            with self._looking(nodes[0][-1]) if 0 in own else contextlib.nullcontext():
                states, cache = Runner(self.vlm, inputs, self._start, "all").forward(runs, Prefix(), keep=True)
            assert cache is not None
            layers.append([(layer.keys, layer.values) for layer in cache.layers])
            found |= {n: one[-1] for n, one in zip(own, states, strict=True)}
        for number, each in enumerate(zip(*layers, strict=True)):
            keys, values = (torch.cat(some, 2) for some in zip(*each, strict=True))
            self._cache.update(keys, values, number)
        return torch.stack([found[n] for n in range(len(self.streams))])

    def _run(self, stream: Stream) -> Run:
        seen = stream.visible[: self._start] & stream.x.model_inputs["attention_mask"][0, : self._start].bool().cpu()
        rows = tuple(seen.nonzero()[:, 0].tolist())
        return Run(rows, (True,) * len(rows), 1, ())

    @contextlib.contextmanager
    def _looking(self, row: int) -> Iterator[None]:
        """Within the `with`, what blocks give in this row of a pass is kept."""

        def keep(layer: int, value: Tensor) -> Tensor:
            self.behind[layer] = value[0, row]
            return value

        sites = {self.vlm.sites[STREAM.format(n)]: functools.partial(keep, n) for n in self.layers}
        with visiting(self.vlm.model, sites) if sites else contextlib.nullcontext():
            yield

    def _note(self, inputs: DecoderInputs, own: Sequence[int], runs: list[Run]) -> list[list[int]]:
        """Whose the keys are that are to be computed, and where they stand; which rows are those of each run."""
        rows, nodes = tree(runs, 0, inputs.cut_before)
        owned = torch.zeros(len(self.streams), len(rows), dtype=torch.bool)
        for n, at in zip(own, nodes, strict=True):
            owned[n, at] = True
        self._owned = torch.cat([self._owned, owned], 1)
        self._places = torch.cat([self._places, torch.tensor(rows)])
        return nodes

    def step(self, token: int) -> Float[Tensor, "stream width"]:
        count, place, done = len(self.streams), self._start + self._count, len(self._places)
        self._owned = torch.cat([self._owned, torch.eye(count, dtype=torch.bool)], 1)
        self._places = torch.cat([self._places, torch.full((count,), place)])
        self._count += 1
        inputs = self._row_of(token, place)
        masks = [self._mask(kind, place, inputs) for kind in inputs.sight.kinds]
        rows = torch.arange(count, device=inputs.embeds.device)
        with self._looking(0):
            return run_rows(self.vlm, inputs, rows, masks, self._cache, done)

    def _row_of(self, token: int, place: int) -> DecoderInputs:
        """What the decoder is called with for one token, at the same place in each stream."""
        first, count = self.inputs[0], len(self.streams)
        ids = torch.full((count,), token, dtype=torch.long, device=first.embeds.device)
        embedded = self.vlm.model.get_input_embeddings()(ids)
        return dataclasses.replace(
            first,
            embeds=embedded.to(first.embeds.dtype),
            of_tokens={k: made_of(self.vlm.decoder, k, ids).to(v) for k, v in first.of_tokens.items()},
            image=torch.zeros(count, dtype=torch.bool),
            index=torch.full((count,), place),
        )

    def _mask(self, kind: LayerKind, place: int, inputs: DecoderInputs) -> Float[Tensor, "1 1 stream key"]:
        dtype = inputs.embeds.dtype
        see: Int[Tensor, "stream key"] = self._owned & kind.see[place, self._places]
        mask = torch.zeros(1, 1, *see.shape, dtype=dtype).masked_fill_(~see, torch.finfo(dtype).min)
        return mask.to(inputs.embeds.device)
