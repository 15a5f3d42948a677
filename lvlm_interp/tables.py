"""Examples from a table: a CSV or JSONL file with a row for each, or for each of their variants."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from lvlm_interp.attribution import variants
from lvlm_interp.attribution.variants import cases_of
from lvlm_interp.errors import InputError, LvlmInterpError
from lvlm_interp.given import explained

REQUIRED = ("image", "question")
OPTIONAL = ("answer", "context", "system")  # of the example itself; empty where a cell is
VARIANTS = (*variants.REQUIRED, *variants.OPTIONAL)
SHOWN = 3  # missing pictures that a message names
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")  # as JSON writes them: 007 is a text


@explained
def read_examples(path: str | Path) -> pd.DataFrame:
    """Read a table of examples.

    The columns `image` (a path, from the table's own folder, or an address) and `question` must be there; `answer`,
    `context` and `system` may be: texts, taken letter for letter. All other columns, such as a label and a group, ride
    along: of a CSV those that hold nothing but numbers, written as numbers are, as numbers; all others as texts, letter
    for letter.

    Args:
        path: a `.csv`, or a `.jsonl` with an object on each line.

    Returns:
        A frame with a row for each example. `image` is the whole path, or the address; empty cells of the optional
        columns are None.

    Raises:
        InputError: the file is missing, empty or broken, has a row of more or fewer fields than its head, lacks a
            column or a value, or names pictures that are not there. Rows are counted from 1, without the head.
    """
    file = Path(path)
    frame = _read(file, (*REQUIRED, *OPTIONAL))
    if missing := [name for name in REQUIRED if name not in frame]:
        raise InputError(f"{file} has no column {' and no column '.join(map(repr, missing))}; it has {list(frame)}")
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


def _texts(column: pd.Series) -> list[str | None]:
    """The cells as texts, None where they are empty."""
    return [None if pd.isna(value) else str(value) for value in column]


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
    if file.suffix not in (".csv", ".jsonl"):
        raise InputError(f"a table of examples is a .csv or a .jsonl file, got {str(file)!r}")
    if not os.path.isfile(file):
        raise InputError(f"no table at {str(file)!r}")
    try:
        return _csv(file, texts) if file.suffix == ".csv" else _jsonl(file, texts)
    except (ValueError, OSError, csv.Error, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _csv(file: Path, texts: Collection[str]) -> pd.DataFrame:
    """The table, with numbers where a column that is no text's is written as numbers are."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        whole = [row for row in csv.reader(lines, strict=True) if row]
    if not whole:
        raise ValueError("it is empty")
    head, *rows = whole
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


def _valued(cells: list[str | None]) -> list[Any]:
    """Numbers, if all cells are written as such and those that are written differently differ; else the texts."""
    texts = {cell for cell in cells if cell is not None}
    if not all(NUMBER.fullmatch(text) for text in texts):
        return list(cells)
    whole = all(text.lstrip("-").isdigit() for text in texts)
    values = {text: int(text) if whole else float(text) for text in texts}
    if not all(math.isfinite(value) for value in values.values()):
        return list(cells)
    merged = len(set(values.values())) < len(texts)
    if merged and all(float(value).is_integer() for value in values.values()):  # 7 and 7.0 are two classes
        return list(cells)
    return [math.nan if cell is None else values[cell] for cell in cells]


def _jsonl(file: Path, texts: Collection[str]) -> pd.DataFrame:
    """The table, with values as they are written; a column of nothing but numbers has their type."""
    with file.open(encoding="utf-8-sig") as lines:
        rows = [_object(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError("it is empty")
    written = pd.DataFrame(rows, dtype=object)
    return pd.DataFrame(rows).assign(**{name: written[name] for name in texts if name in written})


def _object(number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is no JSON, {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"line {number} is no object")
    if nested := [name for name, value in found.items() if isinstance(value, (list, dict))]:
        raise ValueError(
            f"line {number}: {nested[0]!r} holds a {type(found[nested[0]]).__name__}; a cell holds one value"
        )
    return found
