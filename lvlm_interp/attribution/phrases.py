"""Where a text stands in what the user wrote: the positions of a phrase of the question, the context or the system."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from lvlm_interp.errors import InputError
from lvlm_interp.fields import shown
from lvlm_interp.inputs.example import CREDITED, Inputs, Written
from lvlm_interp.inputs.spelling import Decode, Spelled, spelled
from lvlm_interp.inputs.words import by_unicode


def written_in(x: Inputs) -> list[Written]:
    """The pieces of text that the user wrote; where that is not known, runs of positions of one role."""
    if x.written:
        return list(x.written)
    runs = itertools.groupby(range(x.length), key=lambda p: x.roles[p])
    spans = [(role, list(run)) for role, run in runs if role in CREDITED and role != "image"]
    return [Written(role, 0, span[0], span[-1] + 1) for role, span in spans]


def positions_in(x: Inputs, piece: Written) -> list[int]:
    """Where a piece stands; images in it are no part of it."""
    return [p for p in range(piece.start, piece.stop) if x.roles[p] == piece.role]


def phrase_in(x: Inputs, text: str, decode: Decode | None = None) -> list[int]:
    """The positions of the tokens that read as a text, which stands in the prompt once, as whole words.

    Raises:
        InputError: it stands there not at all, or several times, or a token holds letters of other words too.
    """
    wanted, read = text.strip(), [(piece, *_read(x, piece, decode)) for piece in written_in(x)]
    found = [places for _, positions, said in read for places in _places(positions, said, wanted)]
    if len(found) != 1:
        there = ", ".join(f"{piece.role} {shown(said.text.strip())}" for piece, _, said in read) or "none"
        often = f"stands there {len(found)} times" if found else "stands nowhere there as whole words and tokens"
        raise InputError(
            f"{wanted!r} is to be one place of the text of the prompt, and {often}. That text is, by role: {there}. "
            f"Give a longer text, or positions by name, as in {{'my phrase': [5, 6]}}"
        )
    return found[0]


def _read(x: Inputs, piece: Written, decode: Decode | None) -> tuple[list[int], Spelled]:
    """The positions of a piece, and what they read as; nothing where the texts of tokens are not known."""
    positions = positions_in(x, piece) if x.tokens else []
    return positions, spelled([x.tokens[p] for p in positions], x.input_ids[0, positions].tolist(), decode)


def _places(positions: list[int], said: Spelled, wanted: str) -> Iterator[list[int]]:
    """Every place where a text stands in a piece, from one end of a word to another."""
    edges = set(itertools.accumulate(map(len, by_unicode(said.text)), initial=0))
    start = said.text.find(wanted) if wanted else -1
    while start >= 0:
        stop = start + len(wanted)
        if {start, stop} <= edges and (held := _holding(said, start, stop)):
            yield [positions[i] for i in held]
        start = said.text.find(wanted, start + 1)


def _holding(said: Spelled, start: int, stop: int) -> list[int]:
    """The tokens of a span of the text; none where the first or the last has letters of what stands beside it."""
    ends = [next((s for s in said.starts[i:] if s > begin), len(said.text)) for i, begin in enumerate(said.starts)]
    spans = list(zip(said.starts, ends, strict=True))
    held = [i for i, (a, b) in enumerate(spans) if said.text[max(a, start) : min(b, stop)].strip()]
    beside = said.text[spans[held[0]][0] : start] + said.text[stop : spans[held[-1]][1]]
    return [] if any(sign.isalnum() for sign in beside) else [*range(held[0], held[-1] + 1)]
