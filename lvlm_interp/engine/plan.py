"""The plan of a scoring call, made from row numbers alone: which rows are computed, together with which others."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

LOOKAHEAD = 32  # rows that two coalitions must compute alike before they are kept together


@dataclass(frozen=True, eq=False)
class Run:
    """The rows that one coalition computes, in order, and which of them text rows may see."""

    rows: tuple[int, ...]
    seen: tuple[bool, ...]
    reads: int  # how many of the last rows are read out
    owners: tuple[tuple[int, int], ...]  # (coalition, answer) pairs that this answers


def sequences_of(
    seen: Bool[Tensor, "coalition prompt"],
    image: Bool[Tensor, " prompt"],
    paths: Sequence[tuple[int, ...]],
    reads: Sequence[int],
    hide_from: str,
    standing: bool = False,
) -> list[Run]:
    """One sequence of rows for each different coalition and answer; equal ones are computed once.

    Hidden rows are left out; with `standing` they stay, unseen, so that every row stands at its position.
    """
    owners: dict[tuple[tuple[int, ...], tuple[bool, ...], int], list[tuple[int, int]]] = defaultdict(list)
    for c, row in enumerate(seen):
        present = torch.ones_like(row) if standing else row | image if hide_from == "text" else row
        rows, flags = present.nonzero().flatten().tolist(), row[present].tolist()
        for a, (path, read) in enumerate(zip(paths, reads, strict=True)):
            owners[(*rows, *path), (*flags, *(True for _ in path)), read].append((c, a))
    return [Run(rows, flags, read, tuple(who)) for (rows, flags, read), who in owners.items()]


def tree(pack: list[Run], done: int, cut_before: Callable[[int], bool]) -> tuple[list[int], list[list[int]]]:
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


def alike(group: list[Run], done: int, image: Collection[int]) -> list[list[Run]]:
    """Split a group by what its sequences compute in the next rows."""
    parts: dict[Any, list[Run]] = defaultdict(list)
    for run in group:
        following = run.rows[done : done + LOOKAHEAD]
        # Image rows see everything, so what is hidden before them makes no difference to them.
        last = max((n for n, row in enumerate(following, done + 1) if row not in image), default=0)
        parts[following, run.seen[:last]].append(run)
    return list(parts.values())


def common(group: list[Run], image: Collection[int]) -> int:
    """How many first rows all sequences of a group compute alike; each keeps at least the rows that it reads."""
    first, others, parted = group[0], group[1:], False
    limit = min(len(run.rows) - run.reads for run in group)
    for n in range(limit):
        row, seen = first.rows[n], first.seen[n]
        if (parted and row not in image) or any(run.rows[n] != row for run in others):
            return n
        parted = parted or any(run.seen[n] != seen for run in others)
    return limit


def fitting(sequences: list[Run], done: int, at_once: int) -> list[Run]:
    """The first sequences that fit into one pass, at least one."""
    pack: list[Run] = []
    rows = 0
    for sequence in sequences:
        rows += len(sequence.rows) - done - (_agreeing(pack[-1], sequence, done) if pack else 0)
        if pack and rows > at_once:
            break
        pack.append(sequence)
    return pack


def _agreeing(one: Run, other: Run, done: int) -> int:
    """How many of the rows beyond the prefix two sequences compute alike."""
    if one.seen[:done] != other.seen[:done]:
        return 0
    pairs = zip(zip(one.rows, one.seen, strict=True), zip(other.rows, other.seen, strict=True), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)) - done
