"""Weights that may be kept elsewhere: of a `device_map` model, accelerate fetches a part only while that part runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn


def fetched(module: nn.Module, name: str) -> Tensor:
    """A weight of a module, fetched if it is on disk or in main memory while others are on a GPU."""
    if not getattr(module, name).is_meta:
        return getattr(module, name)
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]  # there, since it put it there

    with align_module_device(module):
        return getattr(module, name)


def all_fetched(model: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """These weights of a model with their names, one at a time, so that memory holds no more of them than it must."""
    for name in names:
        path, _, last = name.rpartition(".")
        yield name, fetched(model.get_submodule(path), last)
