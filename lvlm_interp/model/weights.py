"""Weights that may be kept elsewhere or in another form: what is handed on is the map that the model computes.

Of a `device_map` model, accelerate fetches a part only while that part runs. Of a quantised one, a weight is stored as
packed integers; under an adapter (LoRA), it is a part of the map only. There the map is asked of the module itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvlm_interp.errors import ModelError
from lvlm_interp.model.acting import wrapped_by
from lvlm_interp.shown import gist

OF_TYPES = re.compile(r"dtype|scalar type|type \(.*\) and .*type \(")  # as torch's errors tell of them
AT_ONCE = 1024  # unit vectors that a module is given together


def fetched(module: nn.Module, name: str) -> Tensor:
    """A weight of a module, fetched if it is on disk or in main memory while others are on a GPU."""
    if not (value := getattr(module, name)).is_meta:
        return value
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]  # there, since it put it there

    with align_module_device(module):
        return getattr(module, name)


def all_fetched(model: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """These weights of a model with their names, one at a time, so that memory holds no more of them than it must."""
    for name in names:
        path, _, last = name.rpartition(".")
        yield name, fetched(model.get_submodule(path), last)


def need_one_type(model: nn.Module, error: BaseException) -> None:
    """Raise where an error of numbers of two types comes of weights of two types.

    Raises:
        ModelError: names them.
    """
    held: dict[torch.dtype, list[str]] = {}
    for name, weight in model.named_parameters():
        if weight.is_floating_point():
            held.setdefault(weight.dtype, []).append(name)
    if len(held) < 2 or not OF_TYPES.search(str(error)):
        return
    told = (f"{str(kind).removeprefix('torch.')} ({len(names)}, {names[0]!r} first)" for kind, names in held.items())
    raise ModelError(
        f"the weights are of several types: {', '.join(told)}; the model cannot be run so ({gist(error)}): "
        "model.to(dtype) makes them one, `with torch.autocast(…)` bridges them"
    ) from error


def sizes_of(module: nn.Module | None) -> tuple[int, int] | None:
    """How many numbers a linear map reads and gives; None if the module is none.

    Linear layers of adapters and of quantised models are not torch's, or their weights are not of these sizes; where
    they name none (trained tokens of an unembedding), those that they stand in the place of do.
    """
    sizes = tuple(getattr(module, name, None) for name in ("in_features", "out_features"))
    if all(isinstance(size, int) for size in sizes):
        return int(sizes[0]), int(sizes[1])  # type: ignore[arg-type]
    return None if (wrapped := wrapped_by(module)) is None else sizes_of(wrapped)


def is_stored(module: nn.Module) -> bool:
    """Whether the weight of a linear map is the map: torch's own layer, with numbers of a floating type."""
    return type(module) is nn.Linear and type(module.weight.data) is Tensor and module.weight.is_floating_point()


def map_of(module: nn.Module) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
    """The weight and the bias of the linear map that a module computes, adapters and all; None where it adds nothing.

    Raises:
        ModelError: the module computes no linear map.
    """
    if is_stored(module):
        return fetched(module, "weight"), None if module.bias is None else fetched(module, "bias")
    if (sizes := sizes_of(module)) is None:
        raise ModelError(f"{type(module).__name__} is no linear map: it names no in_features and out_features")
    return _probed(module, sizes[0])


@torch.no_grad()
def _probed(module: nn.Module, width: int) -> tuple[Tensor, Tensor]:
    """A map as it is computed: what it gives for nothing is its bias, what it gives for unit vectors its columns."""
    like = next((w for w in module.parameters() if w.is_floating_point() and not w.is_meta), torch.zeros(()))
    device = next((w.device for w in module.parameters() if not w.is_meta), like.device)
    dtype = like.dtype if like.dtype.itemsize > 1 else torch.float32
    bias = module.forward(torch.zeros(1, width, dtype=dtype, device=device))[0]  # past hooks: an edit is not the map
    unit = torch.eye(width, dtype=dtype, device=device)
    columns = torch.cat([module.forward(some) for some in unit.split(AT_ONCE)]) - bias
    return columns.T, bias
