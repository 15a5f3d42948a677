"""Talks about one scene, packed into rows: those that begin alike share their beginning, pictures included.

Each talk sees the shared beginning and itself, at the positions that it would have alone, less what is hidden from it.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from lvlm_interp.reference.architecture import END, IMAGE_TOKEN, START
from lvlm_interp.reference.learner import GRID, Batch, Learner, Stage
from lvlm_interp.reference.missing import answer_without
from lvlm_interp.reference.rule import Source
from lvlm_interp.reference.scenes import Scene
from lvlm_interp.reference.talk import Talk
from lvlm_interp.reference.talks import talks

IGNORED = -100
PICTURE = -1  # in the place of a token's id: here a patch of a picture stands
SOURCES: dict[Source, int] = {"image": 1, "question": 2, "context": 4, "system": 8}
"""What may be hidden from an answer, as bits."""
ROWS = 1024  # of all talks that are computed together, filled up to the longest


class Written(NamedTuple):
    """Tokens, and which source each is part of (0: the template)."""

    ids: list[int]
    source: list[int]


class Packed(NamedTuple):
    """A shared beginning and the talks behind it.

    `block` is the number of the talk (0: the beginning), `source` what each position is part of, `hidden` which sources
    it does not see (their sum), `kinds` those of the talks, `pictures` what is shown, in its order.
    """

    ids: list[int]
    positions: list[int]
    block: list[int]
    labels: list[int]
    source: list[int]
    hidden: list[int]
    kinds: list[str]
    pictures: tuple[Scene, ...]


def parts_of(talk: Talk) -> Iterator[tuple[int, int, int]]:
    """Where each source stands in a talk's text: start, end, and the source's bit."""
    told = [" ".join(talk.context), *(text for turn in talk.turns for text in turn)]
    shown = [(IMAGE_TOKEN, "image")] * len(talk.pictures)
    sources = [
        (talk.system or "", "system"),
        *shown,
        *((text, "context") for text in told),
        (talk.question, "question"),
    ]
    text, at = talk.text(), 0
    for part, source in sources:
        if part:
            start = text.index(part, at)
            at = start + len(part)
            yield start, at, SOURCES[source]  # type: ignore[index]


def shared_length(talk: Talk) -> int:
    """How much of a talk's text others have too: up to its last picture, or to where the user begins."""
    text = talk.text()
    begin = text.index(f"{START}user\n") + len(f"{START}user\n")
    return text.rindex(IMAGE_TOKEN) + len(IMAGE_TOKEN) if talk.pictures else begin


def written(learner: Learner, talk: Talk, start: int, end: int) -> Written:
    """A piece of a talk's text as tokens."""
    parts, found = list(parts_of(talk)), Written([], [])
    for piece in re.finditer(f"{IMAGE_TOKEN}|(?:(?!{IMAGE_TOKEN}).)+", talk.text()[start:end], re.DOTALL):
        if piece.group() == IMAGE_TOKEN:
            found.ids.extend([PICTURE] * GRID**2)
            found.source.extend([SOURCES["image"]] * GRID**2)
            continue
        tokens = learner.tokenizer(piece.group(), add_special_tokens=False, return_offsets_mapping=True)
        places = [start + piece.start() + a for a, _ in tokens.offset_mapping]
        found.ids.extend(tokens.input_ids)
        found.source.extend(next((bit for a, b, bit in parts if a <= place < b), 0) for place in places)
    return found


def pack(learner: Learner, some: Sequence[Talk], stage: Stage, seed: int) -> Packed:
    """Talks that begin alike, as one row; what is hidden from each is drawn from the seed.

    The system message is hidden from all of them, or from none: the pictures behind it, which they share, read it too.
    """
    rng, first = random.Random(f"hide:{seed}:{some[0].text()}"), some[0]
    unheard = _hidden(rng, stage, ("system",))
    row = Packed([], [], [], [], [], [], [], first.pictures)
    _append(row, 0, 0, written(learner, first, 0, shared_length(first)), unheard)
    shared = len(row.ids)
    for number, talk in enumerate(some, 1):
        hidden = [*unheard, *_hidden(rng, stage, ("image", "question", "context"))]
        own = written(learner, talk, shared_length(talk), len(talk.text()))
        answer = learner.ids(answer_without(talk, hidden) + END)
        _append(row, number, shared, own, hidden)
        _append(row, number, shared + len(own.ids), Written(answer, [0] * len(answer)), hidden, answer)
        row.kinds.append(talk.kind)
    return row


def _append(
    row: Packed, block: int, position: int, own: Written, hidden: Sequence[Source], labels: Sequence[int] | None = None
) -> None:
    length = len(own.ids)
    row.ids.extend(own.ids)
    row.positions.extend(range(position, position + length))
    row.block.extend([block] * length)
    row.labels.extend(labels or [IGNORED] * length)
    row.source.extend(own.source)
    row.hidden.extend([sum(SOURCES[source] for source in hidden)] * length)


def _hidden(rng: random.Random, stage: Stage, sources: Sequence[Source]) -> list[Source]:
    return [source for source in sources if rng.random() < stage.hidden.get(source, 0.0)]


def pack_all(learner: Learner, seed: int, stage: Stage) -> list[Packed]:
    """All talks of a seed, in as few rows as they have beginnings."""

    def beginning(talk: Talk) -> tuple[str, int]:
        return talk.text()[: shared_length(talk)], len(talk.pictures)

    alike = itertools.groupby(sorted(talks(seed), key=beginning), beginning)
    return [pack(learner, list(some), stage, seed) for _, some in alike]


def batches(packed: Sequence[Packed]) -> Iterator[list[Packed]]:
    """Rows of about one length together, so that little is filled up."""
    waiting: list[Packed] = []
    for row in sorted(packed, key=lambda row: len(row.ids), reverse=True):
        if waiting and len(waiting[0].ids) * (len(waiting) + 1) > ROWS:
            yield waiting
            waiting = []
        waiting.append(row)
    if waiting:
        yield waiting


def collate(learner: Learner, packed: Sequence[Packed]) -> Batch:
    """Rows side by side."""
    length = max(len(row.ids) for row in packed)
    ids, positions, block, labels, source, hidden = (
        torch.tensor([[*one, *[fill] * (length - len(one))] for one in column])
        for column, fill in zip(zip(*(row[:6] for row in packed), strict=True), (0, 0, -1, IGNORED, 0, 0), strict=True)
    )
    same = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])
    shown = (source[:, None, :] & hidden[:, :, None]) == 0
    see = torch.tril(torch.ones(length, length, dtype=torch.bool)) & same & shown
    features = learner.features([scene for row in packed for scene in row.pictures])
    return Batch(features, ids, positions, labels, see[:, None], [row.kinds for row in packed])
