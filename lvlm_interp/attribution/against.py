"""What a user wants parts of an answer compared with, in whatever form it is given."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from lvlm_interp.errors import InputError
from lvlm_interp.fields import fits, shown
from lvlm_interp.inputs.words import Word

SHOWN = 6  # parts, or alternatives, that a message lists


@runtime_checkable
class Compared(Protocol):
    """A result that says what each part of an answer was compared with: a `CreditSplit`, a `PatchMap`."""

    @property
    def tokens(self) -> tuple[str, ...]: ...
    @property
    def alternatives(self) -> tuple[tuple[str, ...], ...]: ...


Against = str | Sequence[str] | Sequence[str | Sequence[str]] | Mapping[int, str | Sequence[str]] | Compared
"""Alternatives to one part of an answer: a text, or several. To each: a list of texts (or of lists) with an entry for
every part, a mapping from the numbers of parts, or an earlier result, whose alternatives are taken. Where a part has
none, they are found."""


def of_each(against: Against | None) -> bool:
    """Whether it says what each part is compared with, rather than one."""
    if against is None or isinstance(against, str):
        return False
    return not isinstance(against, Sequence) or any(not isinstance(one, str) for one in against)


def listed(against: Against) -> tuple[str, ...]:
    """The alternatives to one part.

    Raises:
        InputError: one that is empty.
    """
    assert isinstance(against, Sequence)  # what is not is of each part
    found = (against,) if isinstance(against, str) else tuple(map(str, against))
    if "" in found:
        raise InputError("against holds an empty text, which no answer is; give words, or leave it out")
    return found


def need_word(word: int, against: Against | None) -> None:
    """Raise where a word is named, and there is nothing that stands against it alone."""
    if word and (against is None or of_each(against)):
        raise InputError(f"word={word} says which word against= stands against: give against= its text, or several")


def by_part(against: Against, parts: Sequence[Word]) -> dict[int, tuple[str, ...]]:
    """The alternatives to each part, by its number; parts that are compared with nothing in particular are left out.

    Raises:
        InputError: another number of parts, numbers that there are not, or a result that is of another answer or
            compared with nothing.
    """
    if isinstance(against, (bytes, bytearray)):
        raise InputError(f"against is texts, and these are bytes: {against!r}")
    if not isinstance(against, (Sequence, Mapping)):
        return _earlier(against, parts)
    named: Mapping[Any, Any] = against if isinstance(against, Mapping) else dict(enumerate(against))
    if mixed := [texts for texts in named.values() if not (texts is None or fits(texts, str | Sequence[str], False))]:
        raise InputError(f"the alternatives to a part are a text, or a list of texts; got {shown(mixed[0])}")
    if isinstance(against, Sequence) and len(against) != len(parts):
        raise InputError(
            f"against has alternatives to {len(against)} parts, and the answer has {len(parts)}: "
            f"{_texts(parts)}; give a list for each, empty where they are to be found"
        )
    if wrong := [n for n in named if n not in range(len(parts))]:
        raise InputError(f"there is no part {wrong[0]!r}: the answer has {len(parts)}, counted from 0, {_texts(parts)}")
    return {int(n): listed(texts) for n, texts in named.items() if texts}


def _earlier(result: Any, parts: Sequence[Word]) -> dict[int, tuple[str, ...]]:
    """The alternatives of an earlier result; those of a diagnosis are its credit's."""
    found = getattr(result, "credit", result)
    if not isinstance(found, Compared):
        raise InputError(f"against is texts or a result with alternatives, got {type(result).__name__}")
    own, its = [part.text.strip() for part in parts], [token.strip() for token in found.tokens]
    if its != own:
        alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(its, own, strict=False)))
        raise InputError(
            f"the alternatives of a result fit the same answer, by the same unit: it is of {its[:SHOWN]} ({len(its)})"
            f", and here the parts are {own[:SHOWN]} ({len(own)}); they differ from number {alike} on"
        )
    if not any(found.alternatives):
        raise InputError("this result was compared with nothing: its value needs no alternatives; value='odds' does")
    return by_part(found.alternatives, parts)


def ids_by_part(against: Against) -> dict[int, tuple[tuple[int, ...], ...]]:
    """The token ids of the alternatives of an earlier result, by the number of the part, where it has them."""
    found = getattr(getattr(against, "credit", against), "alternative_ids", ())
    return dict(enumerate(found))


def _texts(parts: Sequence[Word]) -> list[str]:
    return [part.text.strip() for part in parts[:SHOWN]]


def plain(against: Against) -> Any:
    """As results tell it."""
    if isinstance(against, Mapping):
        return {str(n): list(listed(texts)) for n, texts in against.items()}
    if isinstance(against, Sequence):
        entries = (against,) if isinstance(against, str) else against
        return [one if isinstance(one, str) else list(one) for one in entries]
    return [list(texts) for texts in getattr(against, "credit", against).alternatives]


def rather_than(alternatives: Sequence[Sequence[str]]) -> str:
    """The alternatives to each part, for the end of a note; empty if there are none."""
    told = [", ".join(_first([repr(one) for one in some])) or "none" for some in alternatives]
    return f"; rather than {' | '.join(_first(told))}" if told else ""


def _first(some: list[str]) -> list[str]:
    return [*some[:SHOWN], *["…"] * (len(some) > SHOWN)]
