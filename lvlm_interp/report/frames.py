"""Frames as files that other programs read."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from lvlm_interp.errors import OutputError
from lvlm_interp.files import aside, told

KINDS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".json": lambda frame, path: frame.to_json(path, orient="records", force_ascii=False, indent=1),
    ".jsonl": lambda frame, path: frame.to_json(path, orient="records", force_ascii=False, lines=True),
    ".parquet": lambda frame, path: frame.to_parquet(path, index=False),
}


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


def save_frame(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a frame in the way that the file's name asks for, whole or not at all.

    Raises:
        OutputError: a kind that is not known, or the file cannot be written.
    """
    target, write = Path(path), KINDS[frame_kind(path)]
    with told("write", target), aside(target.parent) as partial:
        write(frame, partial / target.name)
        os.replace(partial / target.name, target)
    return target
