"""Whether a tensor was written to since: what torch counts, and a few of its bytes, since torch does not count all.

`weight.data.mul_(2)`, an array of numpy that shares the memory, and tensors of inference mode are not counted. A change
of all numbers is seen in any few of them; looking at a few takes the hundredth part of what a pass takes.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

WHOLE = 1 << 12  # bytes of a tensor that is looked at whole
PLACES, LOOK = 4, 8  # of a larger one: how many places, from its first byte to its last, and how many bytes there
Holder = tuple["weakref.ref[torch.UntypedStorage] | None", int]
"""What holds a tensor, which it does not keep, and from where: a place in memory is given again, a storage is not."""
State = tuple[Holder, int, bytes]
"""What holds a tensor; how often it was written to, as torch counts it; bytes that were looked at."""
NOWHERE: Holder = (None, 0)


def state_of(tensor: Tensor, stays: bool = True) -> State:
    """What tells that a tensor was written to; of one on a device, or in pieces, only what torch counts.

    A storage is the same when `share_memory()` moves its bytes. Of a tensor that does not `stay`, since each pass puts
    it anew, only bytes are looked at.
    """
    start = tensor.data_ptr()
    looked_at = _looked_at(start, tensor.nbytes) if tensor.is_cpu and tensor.is_contiguous() else b""
    if not stays:
        return NOWHERE, -1, looked_at
    return holder_of(tensor) if start else NOWHERE, counted(tensor), looked_at


def holder_of(tensor: Tensor) -> Holder:
    return weakref.ref(tensor.untyped_storage()), int(tensor.storage_offset())


def counted(tensor: Tensor) -> int:
    """How often torch counted a change; -1 where it counts none.

    It counts none of tensors of inference mode; parameters that are made of one say that they are no such tensors.
    """
    try:
        return tensor._version
    except RuntimeError:
        return -1


def states_of(model_inputs: Mapping[str, Any]) -> tuple[State, ...]:
    """The same of all that a model is called with."""
    return tuple(state_of(value) for value in model_inputs.values() if isinstance(value, Tensor))


def _looked_at(start: int, size: int) -> bytes:
    """Bytes of memory: read where they are, since a view of a tensor takes ten times as long."""
    if not start:  # memory that was given back, or none
        return b""
    if size <= WHOLE:
        return ctypes.string_at(start, size)
    return b"".join([ctypes.string_at(start + place, LOOK) for place in _places(size)])


@functools.lru_cache(maxsize=4096)
def _places(size: int) -> tuple[int, ...]:
    return tuple(at * (size - LOOK) // (PLACES - 1) for at in range(PLACES))
