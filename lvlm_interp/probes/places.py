"""Which file of a store belongs where, and what it is of: a checksum tells a file that was damaged, and not one that
stands in another's place.

A file of features ends with its checksum. The array `.places/NAME`, `[chunk of rows, site]`, holds that of each; its
attribute `rows` says of how many rows. What was written since, by a process that was killed or by an earlier release,
is not known, and taken as it is.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PLACES = ".places"
CHECKSUM = 4  # bytes at the end of a file


@contextlib.contextmanager
def placed(group: Any, array: Any, start: int) -> Iterator[None]:
    """Rows of an array from one on are written within the `with`: until it ends their files are not known."""
    forget(group, array, start)
    yield
    note(group, array, start)


def forget(group: Any, array: Any, start: int) -> None:
    """Files that have rows from one on are not known."""
    whole = start - start % array.chunks[0]
    if _noted(group, array) > whole:
        group[_path(array)].attrs["rows"] = whole


def note(group: Any, array: Any, start: int = 0) -> None:
    """Files that have rows from one on are where they belong."""
    path, (rows, sites) = _path(array), array.cdata_shape[:2]
    if path not in group:
        group.create_array(path, shape=(0, sites), chunks=(1, sites), dtype=np.uint32, fill_value=0)
    first = start // array.chunks[0]
    group[path].resize((rows, sites))
    group[path][first:] = _checksums(array, range(first, rows))
    group[path].attrs["rows"] = array.shape[0]


def misplaced(group: Any, array: Any) -> bool:
    """Whether a file of an array is not the one that was written there; those that were not known are from now on."""
    rows = _noted(group, array)
    known = array.cdata_shape[0] if rows == array.shape[0] else rows // array.chunks[0]
    if known and not np.array_equal(group[_path(array)][:known], _checksums(array, range(known))):
        return True
    if rows != array.shape[0]:
        note(group, array)
    return False


def _path(array: Any) -> str:
    return f"{PLACES}/{array.path}"


def _noted(group: Any, array: Any) -> int:
    """Of how many rows it is known which files are theirs."""
    return group[_path(array)].attrs.get("rows", 0) if _path(array) in group else 0


def _checksums(array: Any, rows: range) -> np.ndarray:
    folder, sites = Path(array.store.root, array.path, "c"), array.cdata_shape[1]
    ends = [_end(folder / f"{row}/{site}/0") for row in rows for site in range(sites)]
    return np.array(ends, np.uint32).reshape(len(rows), sites)


def _end(file: Path) -> int:
    with file.open("rb") as stream:
        stream.seek(-min(CHECKSUM, file.stat().st_size), 2)
        return int.from_bytes(stream.read(), "little")


def names_of(array: Any, asked: Sequence[str]) -> tuple[str, ...] | None:
    """The sites that an array says it has, heads one by one; None where they are not those that were asked."""
    found = array.attrs.get("sites")
    if not isinstance(found, list) or len(found) != array.shape[1] or not all(isinstance(name, str) for name in found):
        return None
    heads = Counter(name.rpartition(".")[0] for name in found)
    several = {site: [f"{site}.{head}" for head in range(heads[site])] for site in asked}
    expected = [name for site in asked for name in ([site] if site in found else several[site])]
    return tuple(found) if found == expected else None
