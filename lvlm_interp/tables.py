"""Examples from a table: a CSV or JSONL file with a row for each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from lvlm_interp.errors import InputError

REQUIRED = ("image", "question")
OPTIONAL = ("answer", "context", "system")  # of the example itself; empty where a cell is
SHOWN = 3  # missing pictures that a message names


def read_examples(path: str | Path) -> pd.DataFrame:
    """Read a table of examples.

    The columns `image` (a path, from the table's own folder) and `question` must be there; `answer`, `context` and
    `system` may be: texts, taken letter for letter. All other columns, such as a label and a group, ride along.

    Args:
        path: a `.csv`, or a `.jsonl` with an object on each line.

    Returns:
        A frame with a row for each example. `image` is the whole path; empty cells of the optional columns are None.

    Raises:
        InputError: the file is missing, empty or broken, lacks a column or a value, or names pictures that are not
            there.
    """
    file = Path(path)
    frame = _read(file)
    if missing := [name for name in REQUIRED if name not in frame]:
        raise InputError(f"{file} has no column {' and no column '.join(map(repr, missing))}; it has {list(frame)}")
    if frame.empty:
        raise InputError(f"{file} holds no examples")
    for name in REQUIRED:
        if (empty := frame[name].isna()).any():
            raise InputError(f"{file}: {name!r} is empty in row {int(empty.to_numpy().argmax()) + 1}")
        frame[name] = frame[name].astype(str)
    frame["image"] = [str(file.parent / name) for name in frame["image"]]
    if lost := [name for name in frame["image"].unique() if not os.path.isfile(name)]:
        more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        raise InputError(f"{file} names pictures that are not there: {', '.join(lost[:SHOWN])}{more}")
    for name in OPTIONAL:
        if name in frame:
            told = [None if pd.isna(value) else str(value) for value in frame[name]]
            frame[name] = pd.Series(told, index=frame.index, dtype=object)  # another type would make NaN of None
    return frame


def _read(file: Path) -> pd.DataFrame:
    if file.suffix not in (".csv", ".jsonl"):
        raise InputError(f"a table of examples is a .csv or a .jsonl file, got {str(file)!r}")
    if not os.path.isfile(file):
        raise InputError(f"no table at {str(file)!r}")
    try:
        frame, texts = _csv(file) if file.suffix == ".csv" else _jsonl(file)
        return frame.assign(**{name: texts[name] for name in (*REQUIRED, *OPTIONAL) if name in texts})
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _csv(file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table as pandas understands it, and as it is written: "007" and "None" are answers, not 7 and nothing."""
    return pd.read_csv(file), pd.read_csv(file, dtype=str, keep_default_na=False, na_values=[""])


def _jsonl(file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table with a type for each column, and with the values as they are written."""
    with file.open(encoding="utf-8-sig") as lines:
        rows = [_object(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    return pd.DataFrame(rows), pd.DataFrame(rows, dtype=object)


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
