"""What was read of one model is told again without reading it anew.

A method that runs for a quarter of a second cannot read all of a model each time. So what a module says is remembered
until one of its attributes is set anew, and the contents of tensors until torch counts a change. Weights may be written
to behind torch's back too (`weight.data.mul_(2)`, an array of numpy): so `Known` looks into every page each time, and
at a part of all tensors, another one each time.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from operator import is_
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel
from xxhash import xxh3_128

from lvlm_interp.inputs.touched import counted, holder_of, state_of
from lvlm_interp.model.compiled import original
from lvlm_interp.model.identity import (
    Said,
    content_of,
    fingerprint,
    grows,
    is_ordinary,
    parts_of,
    put_back,
    said_by,
    tensors_of,
)
from lvlm_interp.model.settings import configurations_of, held_for, is_settled
from lvlm_interp.model.walking import looked_up, named_modules

PAGE, TURNS = 1 << 14, 32
STEP = 2039 * 8  # bytes from one look to the next, in each page: a prime number of words, so that it meets every column
SMALL = 1 << 16  # bytes of a tensor that is read whole each time
LOOK = np.dtype(np.int64)  # what is looked at of each page


class Read(NamedTuple):
    """A tensor as it was read.

    Attributes:
        tensor: which it was; another may stand where one was given back.
        place: where its bytes are, and what they are.
        counted: how often torch counted a change.
        view: of all its bytes, or of a few of each page: of memory that it does not keep, good while `place` is right.
        seen: what was in the view.
        content: the digest of all.
    """

    tensor: Callable[[], Tensor | None]
    place: Any
    counted: int
    view: Any
    seen: bytes
    content: bytes


class Known:
    """The settings and contents of one model, as they were read.

    Noticed at the next call: an attribute that was set, a change that torch counts, in a tensor up to `SMALL` bytes, or
    that fills `PAGE` bytes; columns of a head too, where a tensor has a page for each. What else was written behind
    torch's back in a larger tensor (a number, a column): after `TURNS` calls at the latest.
    """

    def __init__(self) -> None:
        self._said: dict[int, Said] = {}
        self._stated = frozenset[int]()
        self._read: list[Read] = []
        self._turn = 0

    def fingerprint(self, model: PreTrainedModel) -> str:
        """As `identity.fingerprint`, faster."""
        said, before = self._said, iter(self._read)
        self._said, self._read, self._turn = {}, [], self._turn + 1

        def content(tensor: Tensor) -> bytes:
            self._read.append(found := self._looked_at(tensor, next(before, None)))
            return found.content

        return fingerprint(model, lambda module, stated: self._told(module, stated, said), content)

    def changes(self, model: PreTrainedModel, anew: bool = False) -> list[Any]:
        """Settings, where tensors are, how often torch counted a change, a few of their bytes: quicker still.

        What torch does not count is seen in the tensors, and at the places, that `inputs.touched` looks at.

        Args:
            model: the model.
            anew: walk through its modules whoever has done so: it may run now.
        """
        walked = named_modules(model) if anew else looked_up(named_modules, model)
        modules = [module for _, module in walked if original(module) is module]
        stated, last = configurations_of(modules), put_back(modules)
        said, self._said = self._said, {}
        told = [self._told(module, stated, said) for module in modules]
        states = [
            state_of(part, stays=id(own) not in last and not grows(type(module)))  # type: ignore[arg-type]
            for module, one in zip(modules, told, strict=True)
            for _, own in tensors_of(module, last, one.held is not None, fetch=False)
            for part in ((own,) if is_ordinary(own) else parts_of(own))
        ]
        return [states, *(one.text for one in told)]

    def _told(self, module: nn.Module, stated: frozenset[int], before: dict[int, Said]) -> Said:
        """What a module says: as before, if it holds the same, and its model's configurations are the same objects."""
        if stated is not self._stated:
            if stated != self._stated:
                before.clear()
            self._stated = stated
        held, known = held_for(module), before.get(id(module))
        if known is None or not _same(known.held or (), held):
            known = said_by(module, stated)
            if not is_settled(module, held[2:], stated):
                return known
            known = known._replace(held=held)
        self._said[id(module)] = known
        return known

    def _looked_at(self, tensor: Tensor, before: Read | None) -> Read:
        """The content of a tensor: as before, if it seems to be the same, and it is not its turn."""
        place = _place(tensor)
        if place is None:
            return Read(weakref.ref(tensor), None, 0, None, b"", content_of(tensor))
        same = before is not None and before.place == place and before.tensor() is tensor
        view = before.view if before is not None and same else _view(*place)
        if tensor.nbytes <= SMALL:
            return Read(weakref.ref(tensor), place, 0, view, b"", xxh3_128(view).digest())
        count, seen = counted(tensor), view.tobytes()
        due = count < 0 or len(self._read) % TURNS == self._turn % TURNS
        if before is not None and same and not due and (before.counted, before.seen) == (count, seen):
            return before
        return Read(weakref.ref(tensor), place, count, view, seen, content_of(tensor))


def _same(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return len(before) == len(now) and all(map(is_, before, now))


def _place(tensor: Tensor) -> tuple[Any, ...] | None:
    """Where the bytes of a tensor are, what holds them and what they are; None where that tells too little, or there
    are none."""
    if not tensor.is_cpu or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    if not (start := tensor.data_ptr()):
        return None
    return start, tensor.nbytes, tensor.shape, tensor.dtype, holder_of(tensor)


def _view(start: int, size: int, *_: Any) -> Any:
    """Of memory, without keeping it: a view of a tensor takes ten times as long, and would keep the tensor."""
    memory: Any = (ctypes.c_char * size).from_address(start)
    return memory if size <= SMALL else np.ndarray(((size - LOOK.itemsize) // STEP + 1,), LOOK, memory, 0, (STEP,))
