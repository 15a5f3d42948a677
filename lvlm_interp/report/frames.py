"""Frames as files that other programs read."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from lvlm_interp.errors import OutputError
from lvlm_interp.files import aside, told
from lvlm_interp.given import explained
from lvlm_interp.shown import json_text
from lvlm_interp.storing import scalar

KINDS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    ".csv": lambda frame, path: path.write_bytes(csv_of(frame)),
    ".json": lambda frame, path: path.write_text(json_text(_rows(frame), indent=1) + "\n", "utf-8"),
    ".jsonl": lambda frame, path: path.write_text("".join(json_text(row) + "\n" for row in _rows(frame)), "utf-8"),
    ".parquet": lambda frame, path: frame.to_parquet(path, index=False),
}


def csv_of(frame: pd.DataFrame) -> bytes:
    """A frame as CSV; where a text has a carriage return, rows end as RFC 4180 says, so that it stands in quotes."""
    text = frame.to_csv(index=False)
    return (frame.to_csv(index=False, lineterminator="\r\n") if "\r" in text else text).encode()


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One object for each row, its numbers with all their digits."""
    return [{str(name): scalar(value) for name, value in row.items()} for row in frame.to_dict("records")]


def frame_kind(path: str | Path) -> str:
    """What kind of table a file's name asks for, one of `KINDS`.

    Raises:
        OutputError: none that is known, or one that needs a package that is not there.
    """
    kind = Path(path).suffix.lower()
    if kind not in KINDS:
        raise OutputError(f"a table is written as {', '.join(KINDS)}; got {str(path)!r}")
    if kind == ".parquet" and not (find_spec("pyarrow") or find_spec("fastparquet")):
        raise OutputError("to write .parquet the package pyarrow is needed: pip install pyarrow; or write .csv")
    return kind


@explained
def save_frame(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a frame in the way that the file's name asks for, whole or not at all.

    Raises:
        OutputError: a kind that is not known, or the file cannot be written.
    """
    target, write = Path(path), KINDS[frame_kind(path)]
    names = [*map(str, frame.columns)]
    if len({*names}) < len(names):
        raise OutputError(f"could not write {target}: columns of the table share a name: {names}")
    with told("write", target), aside(target.parent) as partial:
        try:
            write(frame, partial / target.name)
        except (ArithmeticError, NotImplementedError, TypeError) as error:  # of pyarrow, say, for numbers it lacks
            raise OutputError(f"could not write {target}: {error}") from error
        os.replace(partial / target.name, target)
    return target
