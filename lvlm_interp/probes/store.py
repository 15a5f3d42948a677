"""Where features are kept while they are collected: in memory; or on disk, in a zarr group, if they outgrow it.

On disk, what was cut off goes on. Layout: one array `[example, site, dim]` for each name, whose attribute `sites` names
its sites (heads one by one); `examples`, a digest of every example whose features are there, written after them;
attributes of the group say which model they are of. What a run wrote after its last digest is overwritten by the next.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.inputs.example import Inputs, digest
from lvlm_interp.model.vlm import HookedVLM

EXAMPLES_AT_ONCE = 256  # examples of one chunk
DIGESTS = "examples"


Stacked = tuple[Float[Tensor, "example site dim"], tuple[str, ...]]
"""Features, and the names of their sites."""


class InMemory:
    """Features as tensors."""

    def __init__(self) -> None:
        self.sites: dict[str, tuple[str, ...]] = {}
        self.rows: dict[str, list[Tensor]] = defaultdict(list)
        self.done = 0

    def remaining(self, examples: Iterable[Inputs]) -> Iterator[Inputs]:
        """All of them."""
        return iter(examples)

    def add(self, examples: Sequence[Inputs], stacked: Mapping[str, Stacked]) -> None:
        """Keep features `[example, site, dim]` and their sites' names."""
        for name, (rows, self.sites[name]) in stacked.items():
            self.rows[name].append(rows)
        self.done += len(examples)

    def __getitem__(self, name: str) -> Stacked:
        """The features of a name, and the names of their sites."""
        return torch.cat(self.rows[name]), self.sites[name]


class OnDisk:
    """A zarr group of features, opened for going on.

    Args:
        path: a directory; made if it is not there.
        vlm: the model that the features are of.
        sites: name → sites of its array.

    Raises:
        InputError: the directory holds something else, features of another model, or of other sites.
    """

    def __init__(self, path: str | os.PathLike[str], vlm: HookedVLM, sites: Mapping[str, Sequence[str]]) -> None:
        self.path = os.fspath(path)
        if DIGESTS in sites:
            raise InputError(f"features cannot be called {DIGESTS!r}: a store keeps its digests under that name")
        if os.path.isdir(path) and os.listdir(path) and not os.path.exists(os.path.join(path, "zarr.json")):
            raise InputError(f"{self.path} is not empty and holds no features; give another directory")
        import zarr

        self.group: Any = zarr.open_group(self.path, mode="a")
        wanted: dict[str, Any] = {
            "model": vlm.name,
            "weights": vlm.fingerprint,
            "sites": {k: list(v) for k, v in sites.items()},
        }
        for what, value in wanted.items():
            if (found := self.group.attrs.setdefault(what, value)) != value:
                raise InputError(f"{self.path} holds features of other {what}: {_short(found)}, not {_short(value)}")
        if DIGESTS not in self.group:
            self.group.create_array(DIGESTS, shape=(0,), chunks=(1 << 16,), dtype=np.uint64)

    @property
    def done(self) -> int:
        """How many examples are there."""
        return int(self.group[DIGESTS].shape[0])

    def remaining(self, examples: Iterable[Inputs]) -> Iterator[Inputs]:
        """The examples whose features are not there yet.

        Raises:
            InputError: those that are there are of other examples.
        """
        known, count = self.group[DIGESTS][:], 0
        for count, x in enumerate(examples, 1):
            if count > len(known):
                yield x
            elif _number(x) != int(known[count - 1]):
                raise InputError(f"{self.path} holds features of other examples, from number {count} on")
        if count < len(known):
            raise InputError(f"{self.path} holds features of {len(known)} examples, more than the {count} given")

    def add(self, examples: Sequence[Inputs], stacked: Mapping[str, Stacked]) -> None:
        """Write features `[example, site, dim]` and their sites' names; they count once all of them are written."""
        start = self.done
        for name, (rows, sites) in stacked.items():
            array = self._array(name, rows, sites)
            array.resize((start + len(rows), *rows.shape[1:]))
            array[start:] = rows.numpy()
        self.group[DIGESTS].append(np.array([_number(x) for x in examples], np.uint64))

    def _array(self, name: str, rows: Tensor, sites: Sequence[str]) -> Any:
        if name not in self.group:
            count, width = rows.shape[1:]
            chunks = (EXAMPLES_AT_ONCE, 1, width)  # they are read site by site
            made = self.group.create_array(name, shape=(0, count, width), chunks=chunks, dtype=np.float32)
            made.attrs["sites"] = list(sites)
        return self.group[name]

    def __getitem__(self, name: str) -> tuple[Any, tuple[str, ...]]:
        """The zarr array of a name, without what was not written to the end, and the names of its sites.

        Raises:
            InputError: nothing was written under it.
        """
        if name not in self.group:
            raise InputError(f"{self.path} holds no features {name!r}; it has {sorted(self.group.array_keys())}")
        array = self.group[name]
        if array.shape[0] != self.done:
            array.resize((self.done, *array.shape[1:]))
        return array, tuple(array.attrs["sites"])


def _number(x: Inputs) -> int:
    """The first 64 bits of an example's digest."""
    return int(digest(x)[:16], 16)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:76]} …"
