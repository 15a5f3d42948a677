"""Examples from a table: a CSV or JSONL file with a row for each."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd

from lvlm_interp.errors import InputError
from lvlm_interp.given import explained

REQUIRED = ("image", "question")
OPTIONAL = ("answer", "context", "system")  # of the example itself; empty where a cell is
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
    frame = _read(file)
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
    frame["image"] = [name if _is_address(name) else str(file.parent / name) for name in frame["image"]]
    _need_pictures(file, frame["image"].tolist())
    return frame


def _texts(column: pd.Series) -> list[str | None]:
    """The cells as texts, None where they are empty."""
    return [None if pd.isna(value) else str(value) for value in column]


def _is_address(name: str) -> bool:
    from lvlm_interp.inputs.sources import ADDRESS

    return ADDRESS.match(name) is not None


def _need_pictures(file: Path, names: list[str]) -> None:
    """Raise where one is not there, with the first row of each."""
    rows: dict[str, int] = {}
    for row, name in enumerate(names, 1):
        rows.setdefault(name, row)
    if lost := [f"{name} (row {row})" for name, row in rows.items() if not (_is_address(name) or _is_file(name))]:
        more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        raise InputError(f"{file} names pictures that are not there: {', '.join(lost[:SHOWN])}{more}")


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a name that is too long, or has a zero byte
        return False


def _read(file: Path) -> pd.DataFrame:
    if file.suffix not in (".csv", ".jsonl"):
        raise InputError(f"a table of examples is a .csv or a .jsonl file, got {str(file)!r}")
    if not os.path.isfile(file):
        raise InputError(f"no table at {str(file)!r}")
    try:
        return _csv(file) if file.suffix == ".csv" else _jsonl(file)
    except (ValueError, OSError, csv.Error, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _csv(file: Path) -> pd.DataFrame:
    """The table, with numbers where a column is written as numbers are."""
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
    told = {name: cells if name in (*REQUIRED, *OPTIONAL) else _valued(cells) for name, cells in columns.items()}
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


def _jsonl(file: Path) -> pd.DataFrame:
    """The table, with values as they are written; a column of nothing but numbers has their type."""
    with file.open(encoding="utf-8-sig") as lines:
        rows = [_object(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError("it is empty")
    texts = pd.DataFrame(rows, dtype=object)
    return pd.DataFrame(rows).assign(**{name: texts[name] for name in (*REQUIRED, *OPTIONAL) if name in texts})


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
