"""Carries out what a scoring call planned: forward passes over packed rows, with shared prefixes computed once."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from lvlm_interp.engine.decoder import DecoderInputs, Prefix
from lvlm_interp.engine.masks import LayerKind
from lvlm_interp.engine.plan import Run, alike, common, fitting, tree
from lvlm_interp.errors import VisibilityError
from lvlm_interp.model.compiled import uncompiled
from lvlm_interp.model.hooks import lengthened, masking, passing, rescaling
from lvlm_interp.model.lengths import following, forget, recounted
from lvlm_interp.model.vlm import HookedVLM

WORTH_SHARING = 32  # rows that a shared prefix must save
ROWS_AT_ONCE = 512  # rows of one packed forward pass; halved when memory runs out


def planned(
    vlm: HookedVLM, inputs: DecoderInputs, start: int, sequences: list[Run], hide_from: str
) -> list[tuple[Runner, list[Run]]]:
    """Who runs what: where the image is not among the rows (Mllama), sequences that hide it run without its carriers,
    or with their gates shut.

    Raises:
        VisibilityError: a part of the images is hidden, where only all or none can be; or something is to be hidden
            from text alone, where a state carries it on.
    """
    carriers, gates = vlm.family.carriers, vlm.family.gates
    if inputs.sight.recurrent and hide_from == "text":
        carrier = next(iter((*vlm.recurrent, *inputs.sight.unmasked)))
        raise VisibilityError(
            f"{type(carrier).__name__} carries what image rows see on to text rows: in this model a position "
            "is hidden from all or from nobody. Use hide_from='all'"
        )
    if not carriers and not gates:
        return [(Runner(vlm, inputs, start, hide_from), sequences)]
    image, groups = set(inputs.image.nonzero().flatten().tolist()), defaultdict(list)
    for run in sequences:
        shown = {row for row, seen in zip(run.rows, run.seen, strict=True) if seen} & image
        if shown and shown != image:
            raise VisibilityError(
                "this model reads its images by cross-attention: they can be hidden only all together"
            )
        groups[bool(shown)].append(run)
    without = {k: torch.zeros_like(v) if k in gates else v for k, v in inputs.extras.items() if k not in carriers}
    blind = dataclasses.replace(inputs, extras=without, kept=None)
    return [(Runner(vlm, inputs if shown else blind, start, hide_from), runs) for shown, runs in groups.items()]


class Runner:
    """Carries sequences out: shares prefixes, packs the rest."""

    def __init__(self, vlm: HookedVLM, inputs: DecoderInputs, prompt: int, hide_from: str) -> None:
        self.vlm, self.inputs, self.prompt = vlm, inputs, prompt
        self.rows, self.at_once = 0, 0 if inputs.sight.alone else ROWS_AT_ONCE
        # Image rows, where they go on seeing what is hidden from text.
        self.sighted = frozenset(inputs.image.nonzero().flatten().tolist() if hide_from == "text" else ())
        self.kept = None if inputs.sight.whole else inputs.kept

    def run(self, sequences: list[Run]) -> Iterator[tuple[Run, Tensor]]:
        """Every sequence with its states `[answer, width]`."""
        kept = self.kept[0].first(self.prompt) if self.kept else Prefix()
        ready = [run for run in sequences if self._agreed([kept, run]) >= WORTH_SHARING]
        if ready:
            yield from self._below(ready, kept.first(self._agreed([kept, *ready])))
        yield from self._below([run for run in sequences if run not in ready], Prefix())

    def _below(self, group: list[Run], prefix: Prefix) -> Iterator[tuple[Run, Tensor]]:
        """All sequences of a group that agrees on `prefix`."""
        done = len(prefix.rows)
        alone: list[Run] = []
        together: list[list[Run]] = []
        for some in alike(group, done, self.sighted):
            if (len(some) - 1) * (self._agreed(some) - done) >= WORTH_SHARING:
                together.append(some)
            else:
                alone += some
        yield from self._packed(alone, prefix)
        for some in together:
            yield from self._below(some, self._extended(prefix, some))

    def _agreed(self, group: Sequence[Run | Prefix]) -> int:
        """How many first rows a group can compute once: those that it computes alike, up to where they can be cut."""
        runs = [Run(one.rows, (True,) * len(one.rows), 0, ()) if isinstance(one, Prefix) else one for one in group]
        cuts = range(common(runs, self.sighted), 0, -1)
        return next(
            (n for n in cuts if all(self.inputs.cut_before(row) for run in runs for row in run.rows[n : n + 1])),
            0,
        )

    def _extended(self, prefix: Prefix, group: list[Run]) -> Prefix:
        first, length = group[0], self._agreed(group)
        shared = Run(first.rows[:length], first.seen[:length], 0, ())
        cache = self.forward([shared], prefix, keep=True)[1]
        assert cache is not None and length > len(prefix.rows)
        return Prefix(shared.rows, tuple((layer.keys, layer.values) for layer in cache.layers))

    def _packed(self, sequences: list[Run], prefix: Prefix) -> Iterator[tuple[Run, Tensor]]:
        waiting = list(sequences)
        while waiting:
            pack = fitting(waiting, len(prefix.rows), self.at_once)
            try:
                found = self.forward(pack, prefix)[0]
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if len(pack) == 1 or not out_of_memory(error):
                    raise
                self.at_once //= 2
                continue
            del waiting[: len(pack)]
            yield from zip(pack, found, strict=True)

    def forward(self, pack: list[Run], prefix: Prefix, keep: bool = False) -> tuple[list[Tensor], DynamicCache | None]:
        """One forward pass over the rows that the sequences of a pack have beyond the prefix: what each one reads."""
        done, device = len(prefix.rows), self.inputs.embeds.device
        numbers, nodes = tree(pack, done, self.inputs.cut_before)
        whole = self._whole(pack)
        cache = DynamicCache() if prefix.rows or keep or whole is not None else None
        for layer, (keys, values) in enumerate(prefix.states):
            cache.update(keys, values, layer)  # type: ignore[union-attr]
        masks = [self._mask(pack, prefix, nodes, len(numbers), kind) for kind in self.inputs.sight.kinds]
        states = run_rows(self.vlm, self.inputs, torch.tensor(numbers, device=device), masks, cache, done)
        self.rows += len(numbers)
        if self.kept is not None and whole is not None:
            at = torch.tensor([*range(done), *(done + n for n in nodes[whole])], device=device)[: self.prompt]
            layers = cache.layers  # type: ignore[union-attr]
            states_kept = tuple((layer.keys[:, :, at], layer.values[:, :, at]) for layer in layers)
            self.kept.append(Prefix(tuple(range(self.prompt)), states_kept))
        return [states[at[len(at) - run.reads :]] for run, at in zip(pack, nodes, strict=True)], cache

    def _whole(self, pack: list[Run]) -> int | None:
        """Which sequence of a pack begins with the prompt, nothing hidden, where that is wanted and not known yet."""
        if self.kept is None or self.kept:
            return None
        prompt, seen = tuple(range(self.prompt)), (True,) * self.prompt
        firsts = ((run.rows[: self.prompt], run.seen[: self.prompt]) for run in pack)
        return next((n for n, first in enumerate(firsts) if first == (prompt, seen)), None)

    def _mask(
        self, pack: list[Run], prefix: Prefix, nodes: list[list[int]], count: int, kind: LayerKind
    ) -> Tensor | None:
        """What to add to the scores `[1, 1, row, key]`; None where plain causal attention says the same.

        Rows with a gap need a mask: without one, transformers takes a jump in the position ids for the start of another
        packed sequence, and cuts off what stands before it.
        """
        done = len(prefix.rows)
        alone = len(pack) == 1 and not done and all(pack[0].seen)
        if self.inputs.sight.causal and alone and self._gapless(pack[0].rows):
            return None
        see = torch.zeros(count, done + count, dtype=torch.bool)
        for sequence, at in zip(pack, nodes, strict=True):
            position = self.inputs.index[torch.tensor(sequence.rows)]
            block = kind.see[position[done:, None], position]
            if not all(sequence.seen):
                self._hide(block, sequence, done)
            own = torch.tensor(at)
            see[own[:, None], torch.cat([torch.arange(done), done + own])] = block
        dtype, device = self.inputs.embeds.dtype, self.inputs.embeds.device
        mask = torch.zeros(1, 1, count, done + count, dtype=dtype)
        return mask.masked_fill_(~see, torch.finfo(dtype).min).to(device)

    def _gapless(self, rows: tuple[int, ...]) -> bool:
        """Whether no row is left out, and position ids count on, as they do unless a user gave others."""
        positions = self.inputs.positions[:, self.inputs.index[: len(rows)]]
        steady = len(positions) > 1 or bool((positions.diff() == 1).all())
        return steady and rows == tuple(range(len(rows)))

    def _hide(self, block: Tensor, sequence: Run, done: int) -> None:
        """Take hidden keys out of the sight of all rows; where image rows go on seeing, they see hidden image rows.

        Rows still see themselves. Hidden text, which stands among the rows under an edit, is seen by nobody.
        """
        seen = torch.tensor(sequence.seen)
        sighted = torch.tensor([row in self.sighted for row in sequence.rows])
        block &= seen | (sighted[done:, None] & sighted)
        own = torch.arange(len(block))
        block[own, done + own] = True


def run_rows(
    vlm: HookedVLM,
    inputs: DecoderInputs,
    rows: Int[Tensor, " row"],
    masks: Sequence[Tensor | None],
    cache: DynamicCache | None,
    done: int,
) -> Float[Tensor, "row width"]:
    """One call of the decoder: the states of some rows behind those that the cache holds, of which there are `done`.

    Args:
        vlm: the model.
        inputs: what it is called with.
        rows: which of its rows.
        masks: for each kind of layer, what to add to the scores `[1, 1, row, key]`.
        cache: is read, and gets the rows' keys and values.
        done: how many rows a layer that counts them has had.
    """
    direct, kinds = vlm.family.own_masks, inputs.sight.kinds
    positions = inputs.positions[:, inputs.index.to(rows.device)[rows]]
    pairs = () if inputs.sight.causal and not direct else zip(kinds, masks, strict=True)
    by_module = {m: mask for kind, mask in pairs if mask is not None for m in kind.modules}
    with masking(by_module), _told(vlm, inputs, rows, done), passing(vlm.model, vlm.decoder):
        out = vlm.decoder(
            inputs_embeds=inputs.embeds[rows][None],
            position_ids=positions if len(positions) == 1 else positions[:, None],
            attention_mask=masks[0] if masks and not direct else None,
            past_key_values=cache,
            use_cache=cache is not None,
            **inputs.extras_of(rows),
        )
    states: Tensor = out.last_hidden_state[0]
    return states


@contextlib.contextmanager
def _told(vlm: HookedVLM, inputs: DecoderInputs, rows: Tensor, done: int) -> Iterator[None]:
    """Within the `with`, layers that count rows or know the length are told of the whole; none is compiled."""
    places = inputs.index.to(rows.device)[rows]
    with contextlib.ExitStack() as stack:
        stack.enter_context(uncompiled(vlm.decoder))
        stack.enter_context(rescaling(recounted(vlm.family, itertools.chain(*vlm.attention_kinds), places, done)))
        if inputs.last is not None:
            rotaries = following(vlm.decoder)
            forget(rotaries)
            stack.enter_context(lengthened(rotaries, inputs.last))
        yield


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out, on a device or beside it."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
