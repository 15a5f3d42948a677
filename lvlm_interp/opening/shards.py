"""Weights in several files, and their index: what the files themselves say they hold, by their headers.

transformers reads all that stands in the files that an index names, and of two weights of one name it takes the last.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

NUMBERED = re.compile(r"(?P<name>.*)-\d+-of-(?P<count>\d+)\.safetensors")


def wrong_shards(folder: Path, weights: Mapping[str, str]) -> str | None:
    """What is wrong with an index: a weight that no file holds, one that two hold with other values, a file too many.

    Args:
        folder: of the index and the files.
        weights: what the index has, the file of each weight.
    """
    try:
        holders = _holders(folder, sorted({*weights.values()}))
    except (OSError, SafetensorError):  # which says itself that it is damaged
        return None
    if lost := next((weight for weight in weights if weight not in holders), None):
        return f"names {weights[lost]!r} as the file of {lost!r}, and neither it nor another file holds that"
    for weight, files in holders.items():
        if other := next((file for file in files[1:] if not _same(folder, weight, files[0], file)), None):
            return f"is of files that do not agree: {files[0]!r} and {other!r} both hold {weight!r}, with other values"
    if unnamed := _unnamed(folder, {*weights.values()}):
        return f"does not name {unnamed!r}, which is one of its files by its name"
    return None


def _holders(folder: Path, files: list[str]) -> dict[str, list[str]]:
    """The files that hold each weight."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in files:
        with safe_open(folder / name, "pt") as file:
            for weight in file.keys():  # noqa: SIM118
                found[weight].append(name)
    return found


def _same(folder: Path, weight: str, first: str, second: str) -> bool:
    """Whether two files hold the same, bit by bit: NaN is like itself."""
    one, other = (_read(folder / name, weight) for name in (first, second))
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in (one, other)))


def _read(path: Path, weight: str) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        held: torch.Tensor = file.get_tensor(weight)
    return held


def _unnamed(folder: Path, files: set[str]) -> str | None:
    """A file that is counted among those of an index and is not in it: what it holds is not read."""
    series = {(found["name"], found["count"]) for file in files if (found := NUMBERED.fullmatch(file))}
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in files)
    matches = ((name, NUMBERED.fullmatch(name)) for name in others)
    return next((name for name, found in matches if found and (found["name"], found["count"]) in series), None)
