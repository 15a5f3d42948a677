"""The engine: scores of the answer tokens under many coalitions, where a coalition says which positions may be seen.

    score(vlm, x, visible)        visible: bool [coalition, position]

Promise: the same numbers as one masked forward pass per coalition, to float error, at a fraction of the cost:

- a hidden position that no visible row reads is not computed; the others keep their position ids;
- what several coalitions compute alike (a prefix of equal rows) is computed once;
- what is left is packed, coalition after coalition, into rows of one forward pass under a block mask, in which rows
  that several sequences compute alike stand once (a tree, as in speculative decoding: Miao et al. 2023);
- the unembedding runs on the rows that predict answer tokens only.

The plan is made first, from row numbers alone; then it is carried out.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DynamicCache

from lvlm_interp.errors import VisibilityError
from lvlm_interp.model.capture import masking
from lvlm_interp.model.inputs import Inputs
from lvlm_interp.model.readout import Readout
from lvlm_interp.model.sight import Kind, Sight, look

if TYPE_CHECKING:
    from lvlm_interp.model.vlm import HookedVLM

HideFrom = Literal["all", "text"]

LOOKAHEAD = 32  # rows that two coalitions must compute alike before they are kept together
WORTH_SHARING = 32  # rows that a shared prefix must save
ROWS_AT_ONCE = 512  # rows of one packed forward pass; halved when memory runs out
LOGITS_AT_ONCE = 1 << 24  # elements of logits held at once
ROOM = 8  # positions beyond the example for which masks and position ids are taken down

# Arguments of a decoder that have an axis of rows, besides embeddings, positions and masks.
ROW_AXIS = {
    "visual_pos_masks": 1,
    "vision_mask": 1,
    "per_layer_inputs": 1,
    "cross_attention_mask": 2,
    "full_text_row_masked_out_mask": 2,
}
# One for each layer, with a row for each image token; and the argument that says where image tokens are.
IMAGE_ROWS = {"deepstack_visual_embeds": "visual_pos_masks", "deepstack_features": "vision_mask"}


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
        positions: position ids `[axis, position]`; one axis, or three where time, height and width have their own.
        image: which rows are image tokens.
        extras: other arguments of the decoder, for all positions.
        sight: what the model's own masks let every position see.
        index: the position that each row stands at; several rows stand at one where answers are alternatives.
        prefixes: beginnings of the prompt that were computed for one call and that later calls go on from; one for each
            coalition at the most. None keeps nothing.
    """

    embeds: Float[Tensor, "row width"]
    positions: Int[Tensor, "axis position"]
    image: Bool[Tensor, " row"]
    extras: dict[str, Any]
    sight: Sight
    index: Int[Tensor, " row"]
    prefixes: dict[tuple[int, ...], Prefix] | None = None

    def extras_of(self, rows: Int[Tensor, " some"]) -> dict[str, Any]:
        """The other arguments of the decoder for some rows."""
        at = self.index.to(rows.device)[rows]
        cut = {k: v.index_select(ROW_AXIS[k], at) if k in ROW_AXIS else v for k, v in self.extras.items()}
        for name in IMAGE_ROWS.keys() & cut.keys():
            mask = self.extras[IMAGE_ROWS[name]]
            where = mask[0].reshape(mask.shape[1], -1)[:, 0]  # some repeat it along the width
            shown, layers = (where.cumsum(0) - 1)[at[where[at]]], cut[name]
            by_layer = isinstance(layers, Mapping)  # only some layers, by number
            cut[name] = {n: layers[n][shown] for n in layers} if by_layer else [layer[shown] for layer in layers]
        return cut

    def cut_before(self, row: int) -> bool:
        """Whether what stands before a row can be computed without it and what follows."""
        return self.cuts is None or self.cuts[row]

    @functools.cached_property
    def cuts(self) -> list[bool] | None:
        """`cut_before` for every row; None where it is always true."""
        return None if self.sight.causal and not self.sight.whole else [self.sight.cuts[i] for i in self.index.tolist()]


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
def decoder_inputs(vlm: HookedVLM, x: Inputs, keep_prefixes: bool = False, room: int = ROOM) -> DecoderInputs:
    """Run the model up to its decoder: the vision tower and projector are computed once for all coalitions.

    With `keep_prefixes`, calls of `score_answers` that are given the result leave the keys and values of their prompts
    to each other: faster where one prompt is scored many times, at the price of that memory. Answers may be longer than
    that of `x` by `room`.
    """
    filler = next(i for i in reversed(x.input_ids[0].tolist()) if i != vlm.image_token_id)
    ids = [*x.answer_ids.tolist(), *[filler] * room]
    longer = x.with_answer(ids, [""] * len(ids), "")
    called, sight = look(vlm.decoder, vlm.attention_kinds, longer.length, lambda: vlm.call(longer.model_inputs))
    sight = dataclasses.replace(sight, whole=bool(vlm.family.carriers))
    embeds, ids_called = called.pop("inputs_embeds", None), called.pop("input_ids", None)
    embeds = vlm.decoder.get_input_embeddings()(ids_called) if embeds is None else embeds
    positions = called.pop("position_ids", None)
    if positions is None:
        positions = torch.arange(embeds.shape[1], device=embeds.device)
    dropped = (
        "attention_mask",
        "past_key_values",
        "use_cache",
        "output_hidden_states",
        "output_attentions",
        "return_dict",
    )
    extras = {k: v for k, v in called.items() if k not in dropped and v is not None}
    prefixes: dict[tuple[int, ...], Prefix] | None = {} if keep_prefixes else None
    positions = positions.reshape(-1, embeds.shape[1])
    return DecoderInputs(
        embeds[0], positions, longer.where("image"), extras, sight, torch.arange(longer.length), prefixes
    )


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
    reads: Sequence[int] | None = None,
) -> list[Scores]:
    """As `score`, for several answers to the same prompt: what they share is computed once.

    Columns of `visible` beyond the prompt are not looked at: every answer sees itself so far. Where the same prompt, or
    a beginning of it, is scored many times, `given` hands in its `decoder_inputs`. `reads` says how many of the last
    tokens of each answer are scored; all, if it is not given.
    """
    start = x.answer_start
    if not answers or any(not len(ids) for ids in answers):
        x.need_answer()
        raise VisibilityError("an answer to score has no tokens")
    _check(x, visible, hide_from)
    longest = max(map(len, answers))
    if given is None or start + longest > given.positions.shape[1]:
        given = decoder_inputs(vlm, x, room=max(ROOM, longest))
    given, paths = _with_answers(vlm, given, start, answers)
    ends = [ids[-n:] for ids, n in zip(answers, reads or map(len, answers), strict=True)]
    seen = visible[:, :start] & x.model_inputs["attention_mask"][:, :start].bool().cpu()
    found: dict[tuple[int, int], Tensor] = {}
    sequences = _sequences(seen, given.image[:start], paths, [len(ids) for ids in ends], hide_from)
    with tqdm(total=len(seen) * len(answers), desc="coalitions", disable=not progress, leave=False) as bar:
        runners = _runners(vlm, given, start, sequences, hide_from)
        for sequence, states in itertools.chain(*(runner.run(some) for runner, some in runners)):
            for coalition, answer in sequence.owners:
                found[coalition, answer] = states
                bar.update()
    hidden = [torch.stack([found[c, a] for c in range(len(seen))]) for a in range(len(answers))]
    return _read(vlm.readout, hidden, [ids.to(vlm.device) for ids in ends], sum(runner.rows for runner, _ in runners))


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


def _with_answers(
    vlm: HookedVLM, given: DecoderInputs, start: int, answers: Sequence[Tensor]
) -> tuple[DecoderInputs, list[tuple[int, ...]]]:
    """The rows of the prompt, then those of the answers, and which of them each answer is.

    A row stands for a token after certain other tokens: answers that begin alike share rows. The last token of an
    answer has none, since what it predicts is not scored.
    """
    nodes: dict[tuple[int, int], int] = {}  # (row before, token) → row
    paths, tokens, steps = [], [], []
    for answer in answers:
        path, row = [], start - 1
        for step, token in enumerate(answer.tolist()[:-1], 1):
            if (row, token) not in nodes:
                nodes[row, token] = start + len(nodes)
                tokens.append(token)
                steps.append(step)
            row = nodes[row, token]
            path.append(row)
        paths.append(tuple(path))
    device = given.embeds.device
    embedded = vlm.model.get_input_embeddings()(torch.tensor(tokens, dtype=torch.long, device=device))
    longer = dataclasses.replace(
        given,
        embeds=torch.cat([given.embeds[:start], embedded.to(given.embeds.dtype)]),
        image=torch.cat([given.image[:start], torch.zeros(len(tokens), dtype=torch.bool)]),
        index=torch.cat([torch.arange(start), start - 1 + torch.tensor(steps, dtype=torch.long)]),
    )
    return longer, paths


def _sequences(
    seen: Bool[Tensor, "coalition prompt"],
    image: Bool[Tensor, " prompt"],
    paths: Sequence[tuple[int, ...]],
    reads: Sequence[int],
    hide_from: str,
) -> list[Run]:
    """One sequence of rows for each different coalition and answer; equal ones are computed once."""
    owners: dict[tuple[tuple[int, ...], tuple[bool, ...], int], list[tuple[int, int]]] = defaultdict(list)
    for c, row in enumerate(seen):
        present = row | image if hide_from == "text" else row
        rows, flags = present.nonzero().flatten().tolist(), row[present].tolist()
        for a, (path, read) in enumerate(zip(paths, reads, strict=True)):
            owners[(*rows, *path), (*flags, *(True for _ in path)), read].append((c, a))
    return [Run(rows, flags, read, tuple(who)) for (rows, flags, read), who in owners.items()]


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


def _runners(
    vlm: HookedVLM, given: DecoderInputs, start: int, sequences: list[Run], hide_from: str
) -> list[tuple[_Runner, list[Run]]]:
    """Who runs what: where the image is not among the rows (Mllama), sequences that hide it run without its carriers.

    Raises:
        VisibilityError: a part of the images is hidden, where only all or none can be.
    """
    carriers = vlm.family.carriers
    if not carriers:
        return [(_Runner(vlm, given, start, hide_from), sequences)]
    image, groups = set(given.image.nonzero().flatten().tolist()), defaultdict(list)
    for run in sequences:
        shown = {row for row, seen in zip(run.rows, run.seen, strict=True) if seen} & image
        if shown and shown != image:
            raise VisibilityError(
                "this model reads its images by cross-attention: they can be hidden only all together"
            )
        groups[bool(shown)].append(run)
    without = {k: v for k, v in given.extras.items() if k not in carriers}
    blind = dataclasses.replace(given, extras=without, prefixes=None)
    return [(_Runner(vlm, given if shown else blind, start, hide_from), runs) for shown, runs in groups.items()]


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
            fits = [rows for rows in kept if self._goes_on(run, rows)]
            groups[max(fits, key=len, default=())].append(run)
        for prefix, group in [(kept.get(rows, Prefix()), group) for rows, group in groups.items()]:
            yield from self._below(group, prefix)

    def _goes_on(self, run: Run, rows: tuple[int, ...]) -> bool:
        """Whether a sequence goes on from these rows, and they could be computed without the rest of it."""
        done = len(rows)
        return run.rows[:done] == rows and done <= len(run.rows) - run.reads and self.given.cut_before(run.rows[done])

    def _below(self, group: list[Run], prefix: Prefix) -> Iterator[tuple[Run, Tensor]]:
        """All sequences of a group that agrees on `prefix`."""
        done = len(prefix.rows)
        alone: list[Run] = []
        together: list[list[Run]] = []
        for some in _alike(group, done, self.sighted):
            longest = self._shared(some)
            if len(some) > 1 and (len(some) - 1) * (longest - done) >= WORTH_SHARING:
                together.append(some)
            else:
                alone += some
        yield from self._packed(alone, prefix)
        for some in together:
            longer = self._extended(prefix, some)
            self._keep(prefix, longer)
            yield from self._below(some, longer)

    def _shared(self, group: list[Run]) -> int:
        """How many first rows a group can compute once: those that it computes alike, up to where they can be cut."""
        cuts = range(_common(group, self.sighted), 0, -1)
        return next((n for n in cuts if all(self.given.cut_before(run.rows[n]) for run in group)), 0)

    def _keep(self, prefix: Prefix, longer: Prefix) -> None:
        """Hand a prefix to later calls, in the place of the one that it goes on from."""
        if self.kept is not None and longer.rows[-1] < self.prompt:  # rows of answers have other numbers in each call
            self.kept.pop(prefix.rows, None)
            self.kept[longer.rows] = longer

    def _extended(self, prefix: Prefix, group: list[Run]) -> Prefix:
        first, done = group[0], len(prefix.rows)
        common = self._shared(group)
        shared = Run(first.rows[:common], first.seen[:common], 0, ())
        cache = self._forward([shared], prefix)[1]
        assert cache is not None and len(shared.rows) > done
        return Prefix(shared.rows, tuple((layer.keys, layer.values) for layer in cache.layers))

    def _packed(self, sequences: list[Run], prefix: Prefix) -> Iterator[tuple[Run, Tensor]]:
        waiting = list(sequences)
        while waiting:
            pack = _fitting(waiting, len(prefix.rows), self.at_once)
            try:
                found = self._forward(pack, prefix)[0]
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if len(pack) == 1 or not _out_of_memory(error):
                    raise
                self.at_once //= 2
                continue
            del waiting[: len(pack)]
            yield from zip(pack, found, strict=True)

    def _forward(self, pack: list[Run], prefix: Prefix) -> tuple[list[Tensor], DynamicCache | None]:
        """One forward pass over the rows that the sequences of a pack have beyond the prefix: what each one reads."""
        done, given, device = len(prefix.rows), self.given, self.given.embeds.device
        numbers, nodes = _tree(pack, done, given.cut_before)
        rows = torch.tensor(numbers, device=device)
        cache = DynamicCache() if prefix.rows or not pack[0].reads else None
        for layer, (keys, values) in enumerate(prefix.states):
            cache.update(keys, values, layer)  # type: ignore[union-attr]
        positions = given.positions[:, given.index.to(device)[rows]]
        masks = [self._mask(pack, prefix, nodes, len(rows), kind) for kind in given.sight.kinds]
        pairs = () if given.sight.causal else zip(given.sight.kinds, masks, strict=True)
        with masking({m: mask for kind, mask in pairs if mask is not None for m in kind.modules}):
            out = self.vlm.decoder(
                inputs_embeds=given.embeds[rows][None],
                position_ids=positions if len(positions) == 1 else positions[:, None],
                attention_mask=masks[0],
                past_key_values=cache,
                use_cache=cache is not None,
                **given.extras_of(rows),
            )
        self.rows += len(rows)
        states = out.last_hidden_state[0]
        return [states[at[len(at) - run.reads :]] for run, at in zip(pack, nodes, strict=True)], cache

    def _mask(self, pack: list[Run], prefix: Prefix, nodes: list[list[int]], count: int, kind: Kind) -> Tensor | None:
        """What to add to the scores `[1, 1, row, key]`; None where plain causal attention says the same.

        Rows with a gap need a mask: without one, transformers takes a jump in the position ids for the start of another
        packed sequence, and cuts off what stands before it.
        """
        done = len(prefix.rows)
        gapless = pack[0].rows == tuple(range(len(pack[0].rows)))
        if self.given.sight.causal and len(pack) == 1 and not done and gapless and all(pack[0].seen):
            return None
        see = torch.zeros(count, done + count, dtype=torch.bool)
        for sequence, at in zip(pack, nodes, strict=True):
            position = self.given.index[torch.tensor(sequence.rows)]
            block = kind.see[position[done:, None], position]
            if not all(sequence.seen):
                self._hide(block, sequence, done)
            own = torch.tensor(at)
            see[own[:, None], torch.cat([torch.arange(done), done + own])] = block
        dtype, device = self.given.embeds.dtype, self.given.embeds.device
        mask = torch.zeros(1, 1, count, done + count, dtype=dtype)
        return mask.masked_fill_(~see, torch.finfo(dtype).min).to(device)

    def _hide(self, block: Tensor, sequence: Run, done: int) -> None:
        """Take hidden keys out of the sight of all rows but the image's (rows still see themselves)."""
        hidden = ~torch.tensor(sequence.seen)
        sighted = self.given.image[torch.tensor(sequence.rows[done:])]
        block &= ~hidden | sighted[:, None]
        own = torch.arange(len(block))
        block[own, done + own] = True


def _tree(pack: list[Run], done: int, cut_before: Callable[[int], bool]) -> tuple[list[int], list[list[int]]]:
    """The rows to compute, in order, and where among them each sequence finds its own.

    A row of two sequences is one if all before it is the same, and may be seen alike; rows that see each other (up to
    where a sequence can be cut) are one together or not at all.
    """
    nodes: dict[Any, int] = {}
    rows: list[int] = []
    places = []
    for run in pack:
        before: Any = run.seen[:done]
        place: list[int] = []
        for part in _cut(run.rows[done:], cut_before):
            first = done + len(place)
            key = before, part, run.seen[first : first + len(part)]
            if key not in nodes:
                nodes[key] = len(rows)
                rows += part
            before = nodes[key]
            place += range(before, before + len(part))
        places.append(place)
    return rows, places


def _cut(rows: Sequence[int], cut_before: Callable[[int], bool]) -> Iterator[tuple[int, ...]]:
    """Rows in parts that do not see what follows them."""
    part: list[int] = []
    for row in rows:
        if part and cut_before(row):
            yield tuple(part)
            part = []
        part.append(row)
    if part:
        yield tuple(part)


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
    last: tuple[tuple[int, bool], ...] = ()
    for sequence in sequences:
        new = tuple(zip(sequence.rows[done:], sequence.seen[done:], strict=True))
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(new, last, strict=False))
        rows += len(new) - sum(1 for _ in alike)
        if pack and rows > at_once:
            break
        pack.append(sequence)
        last = new
    return pack


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
