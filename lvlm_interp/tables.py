"""Examples from a table: a CSV or JSONL file with a row for each, or for each of their variants."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import pandas as pd

from lvlm_interp.attribution import variants
from lvlm_interp.attribution.variants import cases_of
from lvlm_interp.errors import InputError, LvlmInterpError, LvlmInterpWarning
from lvlm_interp.given import explained

REQUIRED = ("image", "question")
OPTIONAL = ("answer", "context", "system")  # of the example itself; empty where a cell is
VARIANTS = (*variants.REQUIRED, *variants.OPTIONAL)
MISSPELT = 0.8  # likeness of a column's name to one of ours, from which on it may be meant
SHOWN = 3  # missing pictures that a message names
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")  # as JSON writes them: 007 is a text
LARGEST = int(sys.float_info.max)  # of a number with a point
MOST_DIGITS = 640  # of a number; of more Python makes no whole one, if it is set so
SURROGATE = re.compile("[\ud800-\udfff]")


@explained
def read_examples(path: str | Path) -> pd.DataFrame:
    """Read a table of examples.

    The columns `image` (a path, from the table's own folder, or an address) and `question` must be there; `answer`,
    `context` and `system` may be: texts, taken letter for letter. All other columns, such as a label and a group, ride
    along: those that hold nothing but numbers, written as JSON writes them, as numbers; all others of a CSV as texts,
    letter for letter, and of a JSONL as they are.

    No number becomes another one, and no two become one. A column is of texts, as it is written, where it would:
    `7` beside `7.0`; whole numbers beyond 2⁵³ in a column that has empty cells or decimals, since these make it one of
    floats; what is larger than floats are.

    Args:
        path: a `.csv`, or a `.jsonl` with an object on each line.

    Returns:
        A frame with a row for each example. `image` is the whole path, or the address; empty cells of the optional
        columns are None.

    Raises:
        InputError: the file is missing, empty or broken, has a row of more or fewer fields than its head or of a key
            twice, lacks a column or a value, names pictures that are not there, or has a column that is one of ours
            but for blanks and capitals. Rows are counted from 1, without the head; lines of a JSONL from 1.
    """
    file = Path(path)
    frame = _read(file, (*REQUIRED, *OPTIONAL))
    if missing := [name for name in REQUIRED if name not in frame]:
        raise InputError(
            f"{file} has no column {' and no column '.join(map(repr, missing))}; it has {list(frame)}{_parted(frame)}"
        )
    _need_own_names(file, [*frame])
    if frame.empty:
        raise InputError(f"{file} holds no examples")
    for name in REQUIRED:
        texts = _texts(frame[name])
        if empty := [row for row, text in enumerate(texts, 1) if not text or text.isspace()]:
            raise InputError(f"{file}: {name!r} is empty in row {empty[0]}")
        frame[name] = texts
    for name in OPTIONAL:
        if name in frame:
            # another type would make NaN of None
            frame[name] = pd.Series(_texts(frame[name]), index=frame.index, dtype=object)
    frame["image"] = [_from(file, name) for name in frame["image"]]
    _need_pictures(file, [(name, row) for row, name in enumerate(frame["image"], 1)])
    return frame


def _need_own_names(file: Path, names: Sequence[str]) -> None:
    """Raise for a column that is one of ours but for blanks and capitals; warn of one that nearly is, and of no use."""
    for name in names:
        (near,) = difflib.get_close_matches(name.strip().casefold(), OPTIONAL, 1, MISSPELT) or ("",)
        if near and near not in names:
            told = f"{file}: the column {name!r} is not read as {near!r}"
            if name.strip().casefold() == near:
                raise InputError(f"{told}, which is written so, in small letters without blanks: rename it")
            warnings.warn(f"{told}; rename it if that is what it holds", LvlmInterpWarning, stacklevel=3)


@explained
def read_variants(path: str | Path) -> pd.DataFrame:
    """Read a table of variants, for `swap_test`; it is checked whole.

    Columns are `example`, `source` and `question`, and those of `picture`, `context`, `system`, `says`, `kind` and
    `group` that are needed, all taken letter for letter. A picture is a path from the table's own folder, or an
    address; several in one prompt are joined by `|`.

    Args:
        path: a `.csv`, or a `.jsonl` with an object on each line.

    Returns:
        A frame with a row for each version of an example. `picture` is a list of whole paths and addresses; other cells
        are texts, None where they are empty.

    Raises:
        InputError: the file is missing, empty or broken, names pictures that are not there, or is not what
            `attribution.variants.cases_of` takes. Rows are counted from 1, without the head.
        ImageError: a picture that cannot be read.
    """
    file = Path(path)
    frame = _read(file, VARIANTS)
    for name in frame:
        frame[name] = pd.Series(_texts(frame[name]), index=frame.index, dtype=object)
    if "picture" in frame:
        several = [[_from(file, name) for name in (cell or "").split("|") if name] for cell in frame["picture"]]
        _need_pictures(file, [(name, row) for row, names in enumerate(several, 1) for name in names])
        frame["picture"] = several
    try:
        cases_of(frame)
    except LvlmInterpError as error:
        raise type(error)(f"{file}: {error}") from error
    return frame


def _from(file: Path, name: str) -> str:
    """A picture's whole path, from its table's folder, or its address."""
    return name if _is_address(name) else str(file.parent / name)


TRUTHS = {id(True): "true", id(False): "false"}  # as JSON writes them
"""By identity, since 1 equals True."""


def _texts(column: pd.Series) -> list[str | None]:
    """The cells as texts, None where they are empty."""
    return [None if pd.isna(value) else TRUTHS.get(id(value), str(value)) for value in column]


def _parted(frame: pd.DataFrame) -> str:
    """A hint where the columns are parted by something else than commas."""
    found = [mark for mark in (";", "\t", "|") if len(frame.columns) == 1 and mark in str(frame.columns[0])]
    return f": its columns are parted by {found[0]!r}; save it with commas" if found else ""


def _is_address(name: str) -> bool:
    from lvlm_interp.inputs.sources import ADDRESS

    return ADDRESS.match(name) is not None


def _need_pictures(file: Path, named: list[tuple[str, int]]) -> None:
    """Raise where one that a row names is not there, with the first row of each."""
    rows: dict[str, int] = {}
    for name, row in named:
        rows.setdefault(name, row)
    if lost := [f"{name} (row {row})" for name, row in rows.items() if not (_is_address(name) or _is_file(name))]:
        more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        raise InputError(f"{file} names pictures that are not there: {', '.join(lost[:SHOWN])}{more}")


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a name that is too long, or has a zero byte
        return False


def _read(file: Path, texts: Collection[str]) -> pd.DataFrame:
    if file.suffix.lower() not in (".csv", ".jsonl"):
        raise InputError(f"a table of examples is a .csv or a .jsonl file, got {str(file)!r}")
    if not os.path.isfile(file):
        raise InputError(f"no table at {str(file)!r}")
    try:
        return _csv(file, texts) if file.suffix.lower() == ".csv" else _jsonl(file, texts)
    except (ValueError, OSError, csv.Error, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _text(file: Path) -> io.StringIO:
    """The file's lines, as they end.

    Raises:
        ValueError: bytes that are no text.
    """
    written = file.read_bytes()
    try:
        return io.StringIO(written.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is no text in UTF-8, {error.reason}: save it in that encoding") from error


def _csv(file: Path, texts: Collection[str]) -> pd.DataFrame:
    """The table, with numbers where a column that is no text's is written as numbers are."""
    head, *rows = _fields(_text(file))
    if twice := [name for name in head if head.count(name) > 1]:
        raise ValueError(f"it has two columns {twice[0]!r}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(head):
            raise ValueError(
                f"row {number} has {len(row)} fields, but there are {len(head)} columns, {head}; a field that has a "
                'comma must stand in quotes: "yes, it is"'
            )
    columns = {name: [row[i] or None for row in rows] for i, name in enumerate(head)}
    told = {name: cells if name in texts else _valued(cells) for name, cells in columns.items()}
    return pd.DataFrame(told, columns=head)


def _fields(lines: io.StringIO) -> list[list[str]]:
    """The fields of each row, the head first; empty lines are none."""
    found: list[list[str]] = []
    try:
        found += (row for row in csv.reader(lines, strict=True) if row)  # those before an error are kept
    except csv.Error as error:
        where = f"row {len(found)}" if found else "the head"
        raise ValueError(f"{where}: {error}; is a quote left open? Long texts can stand in a .jsonl") from error
    if not found:
        raise ValueError("it is empty")
    return found


def _valued(cells: Sequence[str | None]) -> list[Any]:
    """Numbers, if all cells are written as such, and none is another number then; else the texts."""
    texts = {cell for cell in cells if cell is not None}
    if not all(NUMBER.fullmatch(text) and len(text) <= MOST_DIGITS for text in texts):
        return list(cells)
    whole = {text for text in texts if text.lstrip("-").isdigit()}
    values = {text: int(text) if whole == texts and None not in cells else float(text) for text in texts}
    return list(cells) if _lost(values, whole) else [math.nan if cell is None else values[cell] for cell in cells]


def _lost(values: Mapping[str, int | float], whole: Collection[str]) -> bool:
    """Whether numbers are not what was written: too large, rounded whole ones, or one for what differs."""
    if any(abs(value) > LARGEST for value in values.values()) or any(int(text) != values[text] for text in whole):
        return True
    try:
        exact = {text: Decimal(text) for text in values}
    except InvalidOperation:  # an exponent beyond what decimals have
        return True
    if any(value == 0 and exact[text] for text, value in values.items()):  # too small
        return True
    different = len({*values.values()})
    all_whole = all(float(value).is_integer() for value in values.values())  # 7 and 7.0 are two classes
    return different < (len(values) if all_whole else len({*exact.values()}))


def _jsonl(file: Path, texts: Collection[str]) -> pd.DataFrame:
    """The table, with values as they are written; a column of nothing but numbers as in a CSV."""
    rows = [_object(number, line) for number, line in enumerate(_text(file), 1) if line.strip()]
    if not rows:
        raise ValueError("it is empty")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pd.DataFrame({name: _column(cells, name in texts) for name, cells in columns.items()})


class _Number(str):
    """A number as JSON has it, letter for letter."""

    __slots__ = ()

    @property
    def value(self) -> int | float | str:
        return _valued([str(self)])[0]


def _column(cells: Sequence[Any], is_text: bool) -> pd.Series:
    """A column of texts has no other type; one of numbers is that of a CSV; in others each cell is what it is."""
    if is_text:
        return pd.Series(cells, dtype=object)
    if all(isinstance(cell, _Number | None) for cell in cells):
        return pd.Series(_valued([cell if cell is None else str(cell) for cell in cells]))
    values = [cell.value if isinstance(cell, _Number) else cell for cell in cells]
    large = any(isinstance(value, int) and value != float(value) for value in values)
    return pd.Series(values, dtype=object if large else None)


def _object(number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(
            line, parse_int=_Number, parse_float=_Number, parse_constant=_constant, object_pairs_hook=_once
        )
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"line {number} is no JSON, {error}") from error
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"line {number} is no object")
    for name, value in found.items():
        if isinstance(value, (list, dict)):
            raise ValueError(f"line {number}: {name!r} holds a {type(value).__name__}; a cell holds one value")
        if half := SURROGATE.search(f"{name}{value}"):
            raise ValueError(f"line {number}: {name!r} holds {half[0]!r}, half of a character, which is no text")
    return found


def _constant(text: str) -> float | str:
    """NaN is an empty cell, as pandas has it; Infinity is a text like other numbers that are larger than floats are."""
    return math.nan if text == "NaN" else text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        ValueError: a key stands in it twice, and one of the values would be lost.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands in it twice")
    return found
