"""Where features are kept while they are collected: in memory; or on disk, in a zarr group, if they outgrow it.

On disk, what was cut off goes on. Layout: one array `[row, site, dim]` for each name, whose attribute `sites` names
its sites (heads one by one); `examples`, a digest of what each row is of, written after the row; attributes of the
group say which model they are of. zarr replaces files whole, so a process that is killed leaves each as it was or as it
should be: rows without a digest count as not written, and the next run writes them anew. Chunks carry a checksum, which
reading them checks; `places` knows which belongs where, which is compared when a store is opened; a chunk without a
file would be read as NaN, so files are counted, and `stored` refuses NaN. One process at a time writes to a store.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt64
from torch import Tensor

from lvlm_interp.errors import InputError, LvlmInterpError, OutputError
from lvlm_interp.inputs.called import digest
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.probes.damage import damaged, gone, unspoilt
from lvlm_interp.probes.places import PLACES, forget, misplaced, names_of, placed

ROWS_AT_ONCE = 256  # of one chunk
DIGESTS = "examples"
LOCK = ".lock"
TAKEN = (DIGESTS, PLACES, LOCK, "zarr.json")


Stacked = tuple[Float[Tensor, "row site dim"], tuple[str, ...]]
"""Features, and the names of their sites."""
Digests = UInt64[np.ndarray, " row"]
"""What tells each row from others."""


@runtime_checkable
class Store(Protocol):
    """What features are put into, row by row."""

    def __len__(self) -> int:
        """How many rows are there."""
        ...

    def holds(self, digests: Digests, start: int) -> bool:
        """Whether the rows from a number on are there already."""
        ...

    def add(self, digests: Digests, stacked: Mapping[str, Stacked]) -> None:
        """Keep rows of features and their sites' names."""
        ...

    def close(self, count: int) -> None:
        """All `count` rows were given."""
        ...

    def __getitem__(self, name: str) -> tuple[Any, tuple[str, ...]]:
        """The features of a name, and the names of their sites."""
        ...


class InMemory:
    """Features as tensors."""

    def __init__(self) -> None:
        self.sites: dict[str, tuple[str, ...]] = {}
        self.rows: dict[str, list[Tensor]] = defaultdict(list)
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def holds(self, digests: Digests, start: int) -> bool:
        """Nothing was there before."""
        return False

    def add(self, digests: Digests, stacked: Mapping[str, Stacked]) -> None:
        """Keep rows of features and their sites' names."""
        for name, (rows, self.sites[name]) in stacked.items():
            self.rows[name].append(rows)
        self.count += len(digests)

    def close(self, count: int) -> None:
        """Nothing is left to do."""

    def __getitem__(self, name: str) -> Stacked:
        """The features of a name, and the names of their sites."""
        return torch.cat(self.rows[name]), self.sites[name]


class OnDisk:
    """A zarr group of features, opened for going on; `on_disk` sees to it that nobody else writes to it.

    Args:
        path: a directory.
        about: what the features are of, by name: `sites` (name → sites of its array) and what else must be the same.

    Raises:
        InputError: it holds features of something else.
        OutputError: it cannot be written to, or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        import zarr

        self.path, self.sites = os.fspath(path), about["sites"]
        with _told(self.path):
            with unspoilt(self.path, "what it says of itself"):
                self.group: Any = zarr.open_group(self.path, mode="a")
                self._need_same(about)
            with unspoilt(self.path, "the digests of its rows"):
                self.known: np.ndarray = self._digests()
            self._cut()

    def _digests(self) -> np.ndarray:
        """Those of whole rows: an array that was made longer and is not filled yet has zeros."""
        if DIGESTS not in self.group:
            self._make(DIGESTS, (0,), (1 << 16,), np.uint64, 0)
        kept = np.asarray(self.group[DIGESTS][:])
        if kept.ndim != 1 or kept.dtype != np.uint64:
            raise ValueError(f"it holds {kept.dtype} {list(kept.shape)}")
        whole = len(kept) if kept.all() else int((kept == 0).argmax())
        self.group[DIGESTS][whole:] = 0
        return kept[:whole]

    def _need_same(self, about: Mapping[str, Any]) -> None:
        """Raise where features of something else are kept; one that does not say (of an older release) knew nothing."""
        new = DIGESTS not in self.group
        own = {"zarr.json", LOCK}
        if (
            new
            and not {*about} & {*self.group.attrs}
            and (others := sorted(one.name for one in Path(self.path).iterdir() if one.name not in own))
        ):
            raise InputError(f"{self.path} is a zarr group of something else ({others[0]!r}); give another directory")
        for what, value in about.items():
            if (found := self.group.attrs.setdefault(what, value if new else type(value)())) != value:
                raise InputError(f"{self.path} holds features of other {what}: {_short(found)}, not {_short(value)}")

    def _make(
        self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: Any, fill: float, **about: Any
    ) -> Any:
        from zarr.codecs import Crc32cCodec, ZstdCodec

        codecs = [ZstdCodec(), Crc32cCodec()]
        return self.group.create_array(
            name, shape=shape, chunks=chunks, dtype=dtype, compressors=codecs, fill_value=fill, attributes=about
        )

    def _cut(self) -> None:
        """Leave out rows that were not written to the end.

        Raises:
            OutputError: some that were are lost, or are not where they were written.
        """
        for name in self.sites if len(self) else ():
            with unspoilt(self.path, f"the features {name!r}"):
                array = self.group.get(name)
                if array is not None and array.shape[0] > len(self):
                    forget(self.group, array, len(self))
                    array.resize((len(self), *array.shape[1:]))
            if array is None or array.shape[0] < len(self) or array.nchunks_initialized < array.nchunks:
                raise gone(self.path, name)
            with unspoilt(self.path, f"the features {name!r}"):
                self._need_in_place(name, array)

    def _need_in_place(self, name: str, array: Any) -> None:
        """Raise where features stand in the place of others, or under their names."""
        if names_of(array, asked := self.sites[name]) is None:
            raise damaged(self.path, f"the features {name!r} do not say that they are of the sites {_short(asked)}")
        if misplaced(self.group, array):
            raise damaged(self.path, f"a file of the features {name!r} is not the one that was written there")

    def __len__(self) -> int:
        return len(self.known)

    def holds(self, digests: Digests, start: int) -> bool:
        """Whether the rows of an example, from a number on, are there already.

        Raises:
            InputError: other rows are there.
        """
        there = self.known[start : start + len(digests)]
        if len(other := np.flatnonzero(there != digests[: len(there)])):
            raise InputError(f"{self.path} holds features of other examples, from number {start + other[0] + 1} on")
        if len(there) < len(digests):
            self.known = self.known[:start]  # some rows of an example are none
        return len(there) == len(digests)

    def add(self, digests: Digests, stacked: Mapping[str, Stacked]) -> None:
        """Write rows of features and their sites' names; they count once all of them are written."""
        start = len(self)
        with _told(self.path):
            for name, (rows, sites) in stacked.items():
                if name not in self.group:
                    count, width = rows.shape[1:]
                    chunks = (ROWS_AT_ONCE, 1, width)  # they are read site by site
                    self._make(name, (0, count, width), chunks, np.float32, np.nan, sites=list(sites))
                self._write(name, rows.numpy(), start)
            self._write(DIGESTS, digests, start)
        self.known = np.concatenate([self.known, digests])

    def _write(self, name: str, rows: np.ndarray, start: int) -> None:
        """Write rows behind those that are there; of a chunk that is not full, these are read again."""
        array = self.group[name]
        array.resize((start + len(rows), *rows.shape[1:]))
        if name == DIGESTS:
            array[start:] = rows
            return
        with unspoilt(self.path, f"the features {name!r}"), placed(self.group, array, start):
            array[start:] = rows

    def close(self, count: int) -> None:
        """Leave out what was not written to the end.

        Raises:
            InputError: there are more rows than were given.
            OutputError: files of them are gone.
        """
        if len(self) > count:
            raise InputError(f"{self.path} holds {len(self)} rows of features, more than the {count} given")
        with _told(self.path):
            self.group[DIGESTS].resize((len(self),))
            self._cut()

    def __getitem__(self, name: str) -> tuple[Any, tuple[str, ...]]:
        """The zarr array of a name, and the names of its sites.

        Raises:
            InputError: nothing was written under it.
        """
        from lvlm_interp.probes.stored import StoredArray

        if name not in self.group:
            raise InputError(f"{self.path} holds no features {name!r}; it is for {[*self.sites]}")
        array = self.group[name]
        return StoredArray(array._async_array), tuple(array.attrs["sites"])


def need_store(path: str | os.PathLike[str]) -> Path:
    """The directory of a store, which is there or can be made.

    Raises:
        InputError: it holds something else.
        OutputError: no directory can be called so, or there is no right to look into it.
    """
    folder = Path(path)
    with _told(folder):
        inside = folder.iterdir() if folder.is_dir() and not (folder / "zarr.json").exists() else ()
        if any(one.name != LOCK for one in inside):
            raise InputError(f"{folder} is not empty and holds no features; give another directory")
        if _is_array(folder / "zarr.json"):
            raise InputError(f"{folder} is a zarr array of something else; give another directory")
    return folder


def _is_array(about: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return bool(json.loads(about.read_text("utf-8")).get("node_type") == "array")
    return False


def _need_names(names: Iterable[str]) -> None:
    """Raise for a name that says no place in a store, or one that is taken."""
    places = {name: tuple(name.split("/")) for name in names}
    for name, parts in places.items():
        if (first := name.strip("/").partition("/")[0]) in ("", *TAKEN):
            why = f"a store keeps what it knows of its rows under {first!r}" if first else "an array needs a name"
            raise InputError(f"features in a store cannot be called {name!r}: {why}")
        if {"", ".", ".."} & {*parts} or "\0" in name:
            raise InputError(f"features in a store cannot be called {name!r}: give a path such as 'a' or 'a/b'")
    for one, other in itertools.permutations(places, 2):
        if places[other][: len(places[one])] == places[one]:
            raise InputError(f"features in a store cannot be called {one!r} and {other!r}: an array holds no other")


@contextlib.contextmanager
def on_disk(path: str | os.PathLike[str], about: Mapping[str, Any]) -> Iterator[OnDisk]:
    """A store that nobody else writes to within the `with`.

    Raises:
        InputError: the directory holds something else, or features of something else; another process (or another call
            in this one) is writing to it.
        OutputError: it cannot be written to, or is damaged.
    """
    from filelock import FileLock, Timeout

    _need_names(about["sites"])
    folder = need_store(path)
    with contextlib.ExitStack() as held:
        try:
            with _told(folder):
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(folder / LOCK, timeout=0))
        except Timeout as error:
            raise InputError(
                f"another process is writing features to {folder}: wait until it is done, or give another directory"
            ) from error
        yield OnDisk(folder, about)


@contextlib.contextmanager
def _told(path: str | os.PathLike[str]) -> Iterator[None]:
    """What goes wrong in reading and writing, as an error that says where.

    Raises:
        OutputError: no right to write, or no room.
    """
    from filelock import Timeout

    try:
        yield
    except (LvlmInterpError, Timeout):
        raise
    except (OSError, ValueError) as error:
        raise OutputError(f"features cannot be kept in {os.fspath(path)}: {error}") from error


def row_digests(x: Inputs, positions: Sequence[int] | None) -> Digests:
    """64 bits for each row of an example: of its digest, and of the position, if positions were chosen; never 0."""
    named = digest(x)
    if positions is not None:
        return np.concatenate([_number(f"{named} {position}") for position in positions])
    return _number(named)


def _number(named: str) -> Digests:
    return np.array([int(hashlib.sha256(named.encode()).hexdigest()[:16], 16) or 1], np.uint64)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:76]} …"
