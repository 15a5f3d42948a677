"""Training by several processes, each with the whole model and one thread: its products are too small for two threads.

Every process computes its share of a step's losses; gradients are added up, so that all go the same way.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as processes
from torch.multiprocessing.spawn import spawn

T = TypeVar("T")


def number() -> int:
    """Of this process; 0 writes what is kept."""
    return processes.get_rank() if processes.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return processes.get_world_size() if processes.is_initialized() else 1


def mine(items: int) -> range:
    """Which of some items this process computes: each in turn, since they come by size."""
    return range(number(), items, count())


def added_up(value: Tensor) -> Tensor:
    """The sum over all processes, in the place of the value."""
    if count() > 1:
        processes.all_reduce(value)
    return value


def gathered(found: Sequence[T]) -> list[T]:
    """What all processes found."""
    if count() == 1:
        return list(found)
    every: list[Any] = [None] * count()
    processes.all_gather_object(every, list(found))
    return list(itertools.chain.from_iterable(every))


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        processes.barrier()


def run(work: Callable[[Any], None], given: Any, several: int) -> None:
    """Do the work in several processes, or, of one, in this one."""
    if several == 1:
        return work(given)
    with tempfile.TemporaryDirectory() as folder:
        met = (Path(folder) / "met").as_uri()
        spawn(_one, (work, given, several, met), several)
    return None


def _one(rank: int, work: Callable[[Any], None], given: Any, several: int, met: str) -> None:
    torch.set_num_threads(1)
    processes.init_process_group("gloo", init_method=met, rank=rank, world_size=several)
    try:
        work(given)
    finally:
        processes.destroy_process_group()
