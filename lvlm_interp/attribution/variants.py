"""Examples with variants of their sources: another picture, hint, question or system message, or none of it.

They come as a table, a row for each version of an example. It is held against what it says of itself before any model
is asked: a row that changes nothing, or something else than it says, would make up a truth.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xxhash

from lvlm_interp.errors import InputError, LvlmInterpError
from lvlm_interp.given import explained, explaining
from lvlm_interp.inputs.chat import need_texts
from lvlm_interp.inputs.media import open_image, open_images
from lvlm_interp.storing import storable

ORIGINAL = "original"
SOURCES = ("image", "context", "question", "system")
GIVEN = ("image", "context", "system")  # what a question may come with, and without
REQUIRED = ("example", "source", "question")
OPTIONAL = ("picture", "context", "system", "says", "kind", "group")
JOINED = " + "  # of the sources that a row changes together
MARKERS = re.compile(r"<\|[^<>|\s]+\|>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>|<(?:image|video)>")


@storable
@dataclass(frozen=True)
class Variant:
    """One version of an example, and what the model answered.

    Attributes:
        source: `original`, or which source is changed; of several, joined by ` + `.
        image: what the picture is called (several in order); empty without one.
        context, question, system: the texts; empty where there are none.
        says: what the changed source itself says the answer is, where the table tells; else empty.
        row: of the table, counted from 1; 0 where the test added it, with a source taken away.
        answer: the model's, greedily; empty where it failed.
        failed: why there is no answer; empty where there is one.
    """

    source: str
    image: str
    context: str
    question: str
    system: str
    says: str = ""
    row: int = 0
    answer: str = ""
    failed: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that it changes."""
        return () if self.source == ORIGINAL else tuple(self.source.split(JOINED))

    @property
    def present(self) -> tuple[str, ...]:
        """The sources that it has."""
        return tuple(name for name in SOURCES if getattr(self, name))

    @property
    def removes(self) -> bool:
        """Whether what it changes is gone."""
        return not set(self.sources) & set(self.present)


@explaining
@dataclass(frozen=True)
class Version:
    """A variant with its pictures, before the model is asked.

    Attributes:
        told: all but the pictures.
        pictures: in any form that `prepare` takes.
        seen: a digest of their pixels.
    """

    told: Variant
    pictures: tuple[Any, ...]
    seen: str

    def content(self, source: str) -> str:
        """What the source holds, to be compared."""
        return self.seen if source == "image" else str(getattr(self.told, source))

    def without(self, sources: Sequence[str]) -> Version:
        """The same with these sources taken away."""
        told = dataclasses.replace(self.told, **dict.fromkeys(sources, ""), source=JOINED.join(sources), says="", row=0)
        return Version(told, *(((), "") if "image" in sources else (self.pictures, self.seen)))


@dataclass(frozen=True)
class Case:
    """One example: its versions, the original first.

    Attributes:
        name: in results.
        kind: of question, for tables; empty where it was not told.
        group: examples of one group, such as those about one picture, are not independent.
        versions: the original, the table's, and those that a test of every source lacks.
    """

    name: str
    kind: str
    group: str
    versions: tuple[Version, ...]


@explained
def cases_of(table: pd.DataFrame) -> list[Case]:
    """The examples of a table, checked whole.

    Each row is one version, whole: an empty cell means that there is none of it. One row of each example is the
    `original`. Where no row takes a source away that the original has (its picture, context or system message), a
    version without it is added; and one without all of them, where there are several: the question alone.

    Args:
        table: columns `example`, `source` and `question`, and those of `picture` (a path, an address, a PIL image, …,
            or several in a list), `context`, `system`, `says`, `kind` and `group` that are needed.

    Raises:
        InputError: unknown or missing columns, no rows, an example without an original or with two, a source that is
            none, a row that changes nothing or something else than it says, or a text that holds marks of a chat.
        ImageError: a picture that cannot be read.
    """
    _need_columns([str(name) for name in table.columns])
    if table.empty:
        raise InputError("the table of variants has no rows")
    seen: dict[str, str] = {}
    rows: dict[str, list[tuple[Version, dict[str, str]]]] = {}
    for number, row in enumerate(table.to_dict("records"), 1):
        try:
            texts = {name: _text(name, row.get(name)) for name in (*REQUIRED, *OPTIONAL) if name != "picture"}
            version = _version(number, texts, _pictures(row.get("picture")), seen)
        except LvlmInterpError as error:
            raise type(error)(f"row {number}: {error}") from error
        rows.setdefault(texts["example"], []).append((version, texts))
    return [_case(name, some) for name, some in rows.items()]


def need_no_markers(cases: Iterable[Case], special: Iterable[str]) -> None:
    """Raise where a text holds what a model's tokenizer reads as a mark.

    Raises:
        InputError: names the row.
    """
    marks = [mark for mark in special if mark.strip()]
    for case in cases:
        for version in case.versions:
            for source in ("context", "question", "system"):
                text = getattr(version.told, source)
                if found := next((mark for mark in marks if mark in text), None):
                    raise InputError(f"row {version.told.row}: {_marked(source, found)}")


# --- one row --------------------------------------------------------------------------------------


def _need_columns(names: Sequence[str]) -> None:
    known = (*REQUIRED, *OPTIONAL)
    if unknown := [name for name in names if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1)
        meant = f": did you mean {near[0]!r}?" if near else ""
        raise InputError(f"a table of variants has no column {unknown[0]!r}{meant}; its columns are {list(known)}")
    if missing := [name for name in REQUIRED if name not in names]:
        raise InputError(f"a table of variants needs the columns {list(REQUIRED)}; this has no {missing[0]!r}")


def _text(name: str, cell: Any) -> str:
    """A cell as text, empty where there is nothing."""
    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if not isinstance(cell, (str, int, float, np.integer, np.floating)):
        raise InputError(f"{name} holds a {type(cell).__name__}, {str(cell)[:40]!r}; a cell is a text, or empty")
    return str(cell)


def _pictures(cell: Any) -> tuple[Any, ...]:
    """The pictures of a cell: none, one, or several; paths as texts."""
    if isinstance(cell, (list, tuple)):
        return tuple(map(_as_text, cell))
    empty = cell is None or cell is pd.NA or (isinstance(cell, float) and cell != cell)
    return () if empty or (isinstance(cell, str) and not cell) else (_as_text(cell),)


def _as_text(picture: Any) -> Any:
    return os.fspath(picture) if isinstance(picture, os.PathLike) else picture


def _version(number: int, texts: Mapping[str, str], pictures: tuple[Any, ...], seen: dict[str, str]) -> Version:
    if not texts["example"]:
        raise InputError("'example' is empty; rows of one example have one name there")
    if not texts["question"].strip():
        raise InputError("the question is empty; every version of an example asks something")
    need_texts(texts["question"], None, context=texts["context"], system=texts["system"])
    for source in ("context", "question", "system"):
        if found := MARKERS.search(texts[source]):
            raise InputError(_marked(source, found[0]))
    named = ", ".join(_called(picture, n) for n, picture in enumerate(pictures))
    told = Variant(
        _source(texts["source"]),
        named,
        **{name: texts[name].strip() and texts[name] for name in ("context", "question", "system", "says")},
        row=number,
    )
    return Version(told, pictures, _looks(pictures, seen))


def _marked(source: str, mark: str) -> str:
    return (
        f"the {source} holds {mark!r}, a mark of chats: what a model makes of it is no change of the {source} alone; "
        "write it without"
    )


def _source(cell: str) -> str:
    """The sources of a cell, in one order."""
    names = [name.strip() for name in cell.split("+")]
    if names == [ORIGINAL]:
        return ORIGINAL
    for name in names:
        if name not in SOURCES:
            near = difflib.get_close_matches(name, (ORIGINAL, *SOURCES), 1)
            meant = f": did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"no source {name!r}{meant}; a row is {ORIGINAL!r} or changes one of {list(SOURCES)}, or several "
                "joined by '+'"
            )
    return JOINED.join(name for name in SOURCES if name in names)


def _called(picture: Any, number: int) -> str:
    """What a picture is called in results: its path or address, or its number in the prompt."""
    return picture if isinstance(picture, str) else getattr(picture, "filename", "") or f"picture {number}"


def _looks(pictures: tuple[Any, ...], seen: dict[str, str]) -> str:
    """A digest of all their pixels; a file is read once."""
    return " ".join([_digest(picture, seen) for picture in pictures])


def _digest(picture: Any, seen: dict[str, str]) -> str:
    if isinstance(picture, str) and picture in seen:
        return seen[picture]
    opened = open_images([picture])[0] if not isinstance(picture, str) else open_image(picture)
    found = f"{opened.size} {xxhash.xxh3_128(opened.tobytes()).hexdigest()}"
    if isinstance(picture, str):
        seen[picture] = found
    return found


# --- one example ----------------------------------------------------------------------------------


def _case(name: str, rows: Sequence[tuple[Version, Mapping[str, str]]]) -> Case:
    """The example, with the versions that a test of every source lacks."""
    originals = [version for version, _ in rows if version.told.source == ORIGINAL]
    if len(originals) != 1:
        raise InputError(
            f"the example {name!r} has {len(originals) or 'no'} rows whose source is {ORIGINAL!r}; it needs one, which "
            "the others are changes of"
        )
    original = originals[0]
    others = [version for version, _ in rows if version is not original]
    for version in others:
        _need_change(name, original, version)
    _need_once(name, others)
    told = {key: _one(name, key, [texts[key] for _, texts in rows]) for key in ("kind", "group")}
    group = told["group"] or original.seen or name
    return Case(name, told["kind"], group, (original, *others, *_lacking(original, others)))


def _need_change(name: str, original: Version, version: Version) -> None:
    """Raise unless a row changes what it says, and nothing else."""
    changed = [source for source in SOURCES if original.content(source) != version.content(source)]
    where = f"row {version.told.row}, of the example {name!r},"
    if not changed:
        raise InputError(f"{where} is no different from its original: change its {version.told.source}")
    if set(changed) != set(version.told.sources):
        raise InputError(
            f"{where} says that it changes {version.told.source}, and it changes {JOINED.join(changed)}: every other "
            "cell is as in the original, and an empty one means that there is none of it"
        )


def _need_once(name: str, others: Sequence[Version]) -> None:
    """Raise where a version stands twice, and would weigh so."""
    rows: dict[tuple[Any, ...], int] = {}
    for version in others:
        content = tuple(version.content(source) for source in SOURCES)
        if (first := rows.setdefault(content, version.told.row)) != version.told.row:
            raise InputError(f"rows {first} and {version.told.row} of the example {name!r} are the same: leave one out")


def _one(name: str, key: str, cells: Sequence[str]) -> str:
    """What all rows of an example that say something say."""
    found = list(dict.fromkeys(filter(None, cells)))
    if len(found) > 1:
        raise InputError(f"the example {name!r} has several values of {key!r}: {found}; it is of one")
    return found[0] if found else ""


def _lacking(original: Version, others: Sequence[Version]) -> list[Version]:
    """Versions without each source that no row takes away, and without all of them."""
    given = [source for source in GIVEN if source in original.told.present]
    away = {version.told.source for version in others if version.told.removes}
    wanted = [[source] for source in given] + [given] * (len(given) > 1)
    return [original.without(sources) for sources in wanted if JOINED.join(sources) not in away]
