"""The engine: scores of the answer tokens under many coalitions, where a coalition says which positions may be seen.

    score(vlm, x, visible)        visible: bool [coalition, position]

Promise: the same numbers as one masked forward pass per coalition, to float error, at a fraction of the cost:

- a hidden position that no visible row reads is not computed; the others keep their position ids;
- what several coalitions compute alike (a prefix of equal rows) is computed once;
- what is left is packed, coalition after coalition, into rows of one forward pass under a block mask;
- the unembedding runs on the rows that predict answer tokens only.

The plan is made first, from row numbers alone; then it is carried out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DynamicCache

from lvlm_interp.errors import VisibilityError
from lvlm_interp.model.capture import arguments_of
from lvlm_interp.model.inputs import Inputs
from lvlm_interp.model.readout import Readout

if TYPE_CHECKING:
    from lvlm_interp.model.vlm import HookedVLM

HideFrom = Literal["all", "text"]

LOOKAHEAD = 32  # rows that two coalitions must compute alike before they are kept together
WORTH_SHARING = 32  # rows that a shared prefix must save
ROWS_AT_ONCE = 512  # rows of one packed forward pass; halved when memory runs out
LOGITS_AT_ONCE = 1 << 24  # elements of logits held at once


@dataclass(frozen=True, eq=False)
class Scores:
    """What the engine found.

    Attributes:
        hidden: state that predicts each answer token, after the final norm, `[coalition, answer, width]`.
        ids: the answer tokens.
        logit: raw logit of each answer token, `[coalition, answer]`, float32.
        logprob: its log-probability in nats, `[coalition, answer]`, float32.
        logodds: its log-odds log p − log(1 − p) in nats, `[coalition, answer]`, float32: goes on telling coalitions
            apart where p is nearly 1.
        rows: rows that were computed for it (a plain forward pass per coalition would compute T each).
    """

    hidden: Float[Tensor, "coalition answer width"]
    ids: Int[Tensor, " answer"]
    logit: Float[Tensor, "coalition answer"]
    logprob: Float[Tensor, "coalition answer"]
    logodds: Float[Tensor, "coalition answer"]
    rows: int
    readout: Readout = field(repr=False)

    def logits(self, coalition: int | slice = slice(None)) -> Float[Tensor, "*coalition answer vocabulary"]:
        """Logits over the whole vocabulary, float32; take few coalitions at a time where it is large."""
        with torch.no_grad():
            return self.readout.logits(self.hidden[coalition]).float()


@dataclass(frozen=True, eq=False)
class DecoderInputs:
    """What the language model is called with, once the image has become embeddings.

    Attributes:
        embeds: `[row, width]`.
        positions: position ids `[axis, row]`; one axis, or three where time, height and width have their own.
        image: which rows are image tokens.
        extras: other arguments of the decoder, handed on as they are.
        prefixes: beginnings of the prompt that were computed for one call and that later calls go on from; one for each
            coalition at the most. None keeps nothing.
    """

    embeds: Float[Tensor, "row width"]
    positions: Int[Tensor, "axis row"]
    image: Bool[Tensor, " row"]
    extras: dict[str, Any]
    prefixes: dict[tuple[int, ...], Prefix] | None = None


@dataclass(frozen=True, eq=False)
class Prefix:
    """Rows that are computed already, with their keys and values of every layer."""

    rows: tuple[int, ...] = ()
    states: tuple[tuple[Tensor, Tensor], ...] = ()


@dataclass(frozen=True, eq=False)
class Run:
    """The rows that one coalition computes, in order, and which of them text rows may see."""

    rows: tuple[int, ...]
    seen: tuple[bool, ...]
    reads: int  # how many of the last rows are read out
    owners: tuple[tuple[int, int], ...]  # (coalition, answer) pairs that this answers


@torch.no_grad()
def decoder_inputs(vlm: HookedVLM, x: Inputs, keep_prefixes: bool = False) -> DecoderInputs:
    """Run the model up to its decoder: the vision tower and projector are computed once for all coalitions.

    With `keep_prefixes`, calls of `score_answers` that are given the result leave the keys and values of their prompts
    to each other: faster where one prompt is scored many times, at the price of that memory.
    """
    called = arguments_of(vlm.decoder, lambda: vlm.model(**x.model_inputs, use_cache=False))
    embeds = called.pop("inputs_embeds")[0]
    positions = called.pop("position_ids", None)
    if positions is None:
        positions = torch.arange(embeds.shape[0], device=embeds.device)
    dropped = ("attention_mask", "past_key_values", "use_cache", "input_ids", "output_hidden_states", "return_dict")
    extras = {k: v for k, v in called.items() if k not in dropped and v is not None}
    prefixes: dict[tuple[int, ...], Prefix] | None = {} if keep_prefixes else None
    return DecoderInputs(embeds, positions.reshape(-1, embeds.shape[0]), x.where("image"), extras, prefixes)


@torch.no_grad()
def score(
    vlm: HookedVLM,
    x: Inputs,
    visible: Tensor,
    hide_from: HideFrom = "all",
    progress: bool = False,
) -> Scores:
    """Score the answer of `x` under every coalition.

    Args:
        vlm: the model.
        x: one example with an answer.
        visible: which positions each coalition sees, bool `[coalition, position]`.
        hide_from: `"all"`: a hidden position is seen by nobody; `"text"`: image rows go on seeing every image position,
            and only the other rows lose sight of it.
        progress: show a progress bar.

    Returns:
        Scores, one row a coalition.

    Raises:
        VisibilityError: a matrix that does not fit, or that hides what an answer is read from.
        InputError: there is no answer.
    """
    return score_answers(vlm, x, visible, [x.answer_ids], hide_from, progress)[0]


@torch.no_grad()
def score_answers(
    vlm: HookedVLM,
    x: Inputs,
    visible: Tensor,
    answers: Sequence[Tensor],
    hide_from: HideFrom = "all",
    progress: bool = False,
    given: DecoderInputs | None = None,
) -> list[Scores]:
    """As `score`, for several answers to the same prompt: what they share is computed once.

    Columns of `visible` beyond the prompt are not looked at: every answer sees itself so far. Where the same prompt, or
    a beginning of it, is scored many times, `given` hands in its `decoder_inputs`.
    """
    start = x.answer_start
    if not answers or any(not len(ids) for ids in answers):
        x.need_answer()
        raise VisibilityError("an answer to score has no tokens")
    _check(x, visible, hide_from)
    given = _with_answers(vlm, given or decoder_inputs(vlm, x), start, answers)
    lengths = [len(ids) for ids in answers]
    seen = visible[:, :start] & x.model_inputs["attention_mask"][:, :start].bool().cpu()
    runner = _Runner(vlm, given, start, hide_from)
    found: dict[tuple[int, int], Tensor] = {}
    sequences = _sequences(seen, given.image[:start], lengths, hide_from)
    with tqdm(total=len(seen) * len(lengths), desc="coalitions", disable=not progress, leave=False) as bar:
        for sequence, states in runner.run(sequences):
            for coalition, answer in sequence.owners:
                found[coalition, answer] = states
                bar.update()
    hidden = [torch.stack([found[c, a] for c in range(len(seen))]) for a in range(len(answers))]
    return _read(vlm.readout, hidden, [ids.to(vlm.device) for ids in answers], runner.rows)


def _check(x: Inputs, visible: Tensor, hide_from: str) -> None:
    if hide_from not in ("all", "text"):
        raise VisibilityError(f"hide_from is 'all' or 'text', got {hide_from!r}")
    if visible.dtype != torch.bool or visible.ndim != 2 or visible.shape[1] not in (x.length, x.answer_start):
        raise VisibilityError(
            f"visible is a bool tensor [coalition, position] with {x.length} positions, "
            f"got {visible.dtype} {tuple(visible.shape)}"
        )
    if not len(visible):
        raise VisibilityError("no coalition was given: visible has no rows")
    if not visible[:, x.answer_start - 1].all():
        role = x.roles[x.answer_start - 1]
        raise VisibilityError(
            f"position {x.answer_start - 1} ({role}) predicts the first answer token and cannot be hidden"
        )
    if not visible[:, x.answer_start :].all():
        raise VisibilityError("the answer so far cannot be hidden from itself")


def _with_answers(vlm: HookedVLM, given: DecoderInputs, start: int, answers: Sequence[Tensor]) -> DecoderInputs:
    """The rows of the prompt, then the rows of every answer, each at the positions that follow the prompt."""
    ids = torch.cat([torch.as_tensor(a) for a in answers]).to(given.embeds.device)
    embedded = vlm.model.get_input_embeddings()(ids).to(given.embeds.dtype)
    steps = torch.cat([torch.arange(1, len(a) + 1) for a in answers]).to(given.positions.device)
    after = given.positions[:, start - 1 : start].max(0, keepdim=True).values + steps
    return DecoderInputs(
        torch.cat([given.embeds[:start], embedded]),
        torch.cat([given.positions[:, :start], after.expand(len(given.positions), -1)], 1),
        torch.cat([given.image[:start], torch.zeros(len(ids), dtype=torch.bool)]),
        given.extras,
        given.prefixes,
    )


def _sequences(
    seen: Bool[Tensor, "coalition prompt"], image: Bool[Tensor, " prompt"], lengths: Sequence[int], hide_from: str
) -> list[Run]:
    """One sequence of rows for each different coalition and answer; equal ones are computed once."""
    owners: dict[tuple[tuple[int, ...], tuple[bool, ...]], list[tuple[int, int]]] = defaultdict(list)
    starts = [seen.shape[1] + sum(lengths[:a]) for a in range(len(lengths))]
    reads = {}
    for c, row in enumerate(seen):
        present = row | image if hide_from == "text" else row
        rows, flags = present.nonzero().flatten().tolist(), row[present].tolist()
        for a, (first, length) in enumerate(zip(starts, lengths, strict=True)):
            tail = range(first, first + length - 1)  # the last token's own row predicts nothing that is scored
            key = (*rows, *tail), (*flags, *(True for _ in tail))
            owners[key].append((c, a))
            reads[key] = length
    return [Run(rows, flags, reads[rows, flags], tuple(who)) for (rows, flags), who in owners.items()]


def _read(readout: Readout, hidden: list[Tensor], answers: list[Tensor], rows: int) -> list[Scores]:
    """Logit and log-probability of the tokens of every answer, a few rows at a time, those of all answers together."""
    states = torch.cat([h.flatten(0, 1) for h in hidden])  # unembedding a few rows costs as much as unembedding many
    labels = torch.cat([ids.repeat(len(h)) for h, ids in zip(hidden, answers, strict=True)])
    vocabulary = getattr(readout.unembed, "out_features", 1 << 16)
    some, numbers = max(1, LOGITS_AT_ONCE // vocabulary), []
    for part, label in zip(states.split(some), labels.split(some), strict=True):
        logits, place = readout.logits(part).float(), label[:, None]
        chosen = logits.gather(-1, place)[:, 0]
        others = logits.scatter(-1, place, -torch.inf).logsumexp(-1)
        numbers.append(torch.stack([chosen, chosen - logits.logsumexp(-1), chosen - others]).cpu())
    split = torch.cat(numbers, 1).split([h.shape[0] * h.shape[1] for h in hidden], 1)
    scores = []
    for h, ids, found in zip(hidden, answers, split, strict=True):
        logit, logprob, logodds = found.view(3, *h.shape[:2])
        scores.append(Scores(h, ids, logit, logprob, logodds, rows, readout))
    return scores


# --- the plan and its execution -------------------------------------------------------------------


class _Runner:
    """Carries sequences out: shares prefixes, packs the rest."""

    def __init__(self, vlm: HookedVLM, given: DecoderInputs, prompt: int, hide_from: str) -> None:
        self.vlm, self.given, self.prompt = vlm, given, prompt
        self.rows, self.at_once = 0, ROWS_AT_ONCE
        # Image rows, where they go on seeing what is hidden from text.
        self.sighted = frozenset(given.image.nonzero().flatten().tolist() if hide_from == "text" else ())
        # Row numbers alone say what a row is only where no row sees more than the others.
        self.kept = None if self.sighted else given.prefixes

    def run(self, sequences: list[Run]) -> Iterator[tuple[Run, Tensor]]:
        """Every sequence with its states `[answer, width]`."""
        kept = self.kept or {}
        groups: dict[tuple[int, ...], list[Run]] = defaultdict(list)
        for run in sequences:
            fits = [rows for rows in kept if run.rows[: len(run.rows) - run.reads][: len(rows)] == rows]
            groups[max(fits, key=len, default=())].append(run)
        for prefix, group in [(kept.get(rows, Prefix()), group) for rows, group in groups.items()]:
            yield from self._below(group, prefix)

    def _below(self, group: list[Run], prefix: Prefix) -> Iterator[tuple[Run, Tensor]]:
        """All sequences of a group that agrees on `prefix`."""
        done = len(prefix.rows)
        alone: list[Run] = []
        together: list[list[Run]] = []
        for some in _alike(group, done, self.sighted):
            longest = _common(some, self.sighted)
            if len(some) > 1 and (len(some) - 1) * (longest - done) >= WORTH_SHARING:
                together.append(some)
            else:
                alone += some
        yield from self._packed(alone, prefix)
        for some in together:
            longer = self._extended(prefix, some)
            self._keep(prefix, longer)
            yield from self._below(some, longer)

    def _keep(self, prefix: Prefix, longer: Prefix) -> None:
        """Hand a prefix to later calls, in the place of the one that it goes on from."""
        if self.kept is not None and longer.rows[-1] < self.prompt:  # rows of answers have other numbers in each call
            self.kept.pop(prefix.rows, None)
            self.kept[longer.rows] = longer

    def _extended(self, prefix: Prefix, group: list[Run]) -> Prefix:
        first, done = group[0], len(prefix.rows)
        shared = Run(first.rows[: _common(group, self.sighted)], first.seen, 0, ())
        cache = self._forward([shared], prefix)[1]
        assert cache is not None and len(shared.rows) > done
        return Prefix(shared.rows, tuple((layer.keys, layer.values) for layer in cache.layers))

    def _packed(self, sequences: list[Run], prefix: Prefix) -> Iterator[tuple[Run, Tensor]]:
        waiting = list(sequences)
        while waiting:
            pack = _fitting(waiting, len(prefix.rows), self.at_once)
            try:
                states = self._forward(pack, prefix)[0]
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if len(pack) == 1 or not _out_of_memory(error):
                    raise
                self.at_once //= 2
                continue
            del waiting[: len(pack)]
            ends = torch.tensor([len(s.rows) - len(prefix.rows) for s in pack]).cumsum(0).tolist()
            for sequence, end in zip(pack, ends, strict=True):
                yield sequence, states[end - sequence.reads : end]

    def _forward(self, pack: list[Run], prefix: Prefix) -> tuple[Tensor, DynamicCache | None]:
        """One forward pass over the rows that the sequences of a pack have beyond the prefix."""
        done, given, device = len(prefix.rows), self.given, self.given.embeds.device
        rows = torch.tensor([row for s in pack for row in s.rows[done:]], device=device)
        cache = DynamicCache() if prefix.rows or not pack[0].reads else None
        for layer, (keys, values) in enumerate(prefix.states):
            cache.update(keys, values, layer)  # type: ignore[union-attr]
        positions = given.positions[:, rows]
        out = self.vlm.decoder(
            inputs_embeds=given.embeds[rows][None],
            position_ids=positions if len(positions) == 1 else positions[:, None],
            attention_mask=self._mask(pack, prefix),
            past_key_values=cache,
            use_cache=cache is not None,
            **given.extras,
        )
        self.rows += len(rows)
        return out.last_hidden_state[0], cache

    def _mask(self, pack: list[Run], prefix: Prefix) -> Tensor | None:
        """What to add to the scores `[1, 1, row, key]`; None where plain causal attention says the same.

        Rows with a gap need a mask: without one, transformers takes a jump in the position ids for the start of another
        packed sequence, and cuts off what stands before it.
        """
        done = len(prefix.rows)
        gapless = pack[0].rows == tuple(range(len(pack[0].rows)))
        if len(pack) == 1 and not done and gapless and all(pack[0].seen):
            return None
        lengths = [len(s.rows) - done for s in pack]
        keys, see = done + sum(lengths), []
        for n, (sequence, length) in enumerate(zip(pack, lengths, strict=True)):
            block = torch.zeros(length, keys, dtype=torch.bool)
            first = done + sum(lengths[:n])
            block[:, :done] = True
            block[:, first : first + length] = torch.ones(length, length, dtype=torch.bool).tril()
            if not all(sequence.seen):
                self._hide(block, sequence, done, first)
            see.append(block)
        dtype, device = self.given.embeds.dtype, self.given.embeds.device
        mask = torch.zeros(1, 1, sum(lengths), keys, dtype=dtype)
        return mask.masked_fill_(~torch.cat(see), torch.finfo(dtype).min).to(device)

    def _hide(self, block: Tensor, sequence: Run, done: int, first: int) -> None:
        """Take hidden keys out of the sight of all rows but the image's (rows still see themselves)."""
        rows = torch.tensor(sequence.rows)
        hidden = ~torch.tensor(sequence.seen[: len(rows)])
        sighted = self.given.image[rows[done:]]
        columns = torch.cat([torch.arange(done), first + torch.arange(len(rows) - done)])
        block[(~sighted).nonzero(), columns[hidden]] = False
        own = torch.arange(len(rows) - done)
        block[own, first + own] = True


def _alike(group: list[Run], done: int, image: Collection[int]) -> list[list[Run]]:
    """Split a group by what its sequences compute in the next rows."""
    parts: dict[Any, list[Run]] = defaultdict(list)
    for run in group:
        following = run.rows[done : done + LOOKAHEAD]
        # Image rows see everything, so what is hidden before them makes no difference to them.
        last = max((n for n, row in enumerate(following, done + 1) if row not in image), default=0)
        parts[following, run.seen[:last]].append(run)
    return list(parts.values())


def _common(group: list[Run], image: Collection[int]) -> int:
    """How many first rows all sequences of a group compute alike; each keeps at least the rows that it reads."""
    first, others, parted = group[0], group[1:], False
    limit = min(len(run.rows) - run.reads for run in group)
    for n in range(limit):
        row, seen = first.rows[n], first.seen[n]
        if (parted and row not in image) or any(run.rows[n] != row for run in others):
            return n
        parted = parted or any(run.seen[n] != seen for run in others)
    return limit


def _fitting(sequences: list[Run], done: int, at_once: int) -> list[Run]:
    """The first sequences that fit into one pass, at least one."""
    pack: list[Run] = []
    rows = 0
    for sequence in sequences:
        rows += len(sequence.rows) - done
        if pack and rows > at_once:
            break
        pack.append(sequence)
    return pack


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
