"""What tells one model from another: every weight, buffer and setting.

`fingerprint` reads all of it, at the speed of memory. What asks for it with each result is in `known`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn
from transformers import PreTrainedModel
from xxhash import xxh3_128

from lvlm_interp.errors import ModelError
from lvlm_interp.model.acting import OF_ONE, rewritten
from lvlm_interp.model.compiled import WRAPPED, as_written
from lvlm_interp.model.settings import DEEP, PLAIN, configurations_of, settings_of, telling
from lvlm_interp.model.weights import fetched

# Rotary frequencies that follow the length of what is read; what they start from stands beside them.
LENGTHENED, ORIGINAL, FOLLOWING = "inv_freq", "original_inv_freq", ("dynamic", "longrope")
FIRST = "num_positions"  # how many rows a table of sinusoids began with: a longer pass makes it anew, with more
FEW = 128  # numbers of a tensor that a module holds as it is: more are taken for activations that somebody kept there
ORDINARY, MARKS = frozenset({Tensor, nn.Parameter}), frozenset({"_is_hf_initialized"})
# How sparse layouts name where their numbers stand.
COMPRESSED = {
    "crow_indices": ("col_indices", torch.sparse_csr, torch.sparse_bsr),
    "ccol_indices": ("row_indices", torch.sparse_csc, torch.sparse_bsc),
}
WORDS = 1 << 22  # 32-bit words of a tensor on a device that are summed together
MOST_FETCHED = 1 << 16
_fetched: dict[tuple[int, ...], bytes] = {}  # digests of contents that were on a device, by their length and sums


class Said(NamedTuple):
    """What a module says of itself.

    Attributes:
        text: its kind and settings.
        moved: scales of 8-bit weights that it keeps apart from them.
        held: what the text follows from, where that changes only by being set anew; then it keeps nothing else.
    """

    text: bytes
    moved: tuple[Any, ...] = ()
    held: tuple[Any, ...] | None = None


Saying = Callable[[nn.Module, frozenset[int]], Said]
Content = Callable[[Tensor], bytes]


def said_by(module: nn.Module, stated: frozenset[int]) -> Said:
    """What a module says, read anew; `stated` are `configurations_of` its model."""
    moved = tuple(value for value in vars(module).values() if hasattr(value, "SCB"))
    return Said(f"{settings_of(module, stated)}{[state.threshold for state in moved]}".encode(), moved)


def content_of(tensor: Tensor) -> bytes:
    """A digest of a tensor's bytes, the same on every device.

    From a device they are fetched once: after that, sums computed there tell whether they are still the same.
    """
    flat = _bytes(tensor)
    if flat.device.type == "cpu":
        return xxh3_128(flat.numpy().data).digest()
    key = len(flat), *sums(flat)
    if key not in _fetched:
        if len(_fetched) >= MOST_FETCHED:  # of a model that is being trained
            _fetched.clear()
        _fetched[key] = xxh3_128(flat.cpu().numpy().data).digest()
    return _fetched[key]


def fingerprint(model: PreTrainedModel, said: Saying = said_by, content: Content = content_of) -> str:
    """A hash over all that decides what a model computes: 32 hexadecimal digits.

    Over names, shapes and bytes of all parameters and buffers, those of adapters, of quantised and of offloaded weights
    among them (of rotary frequencies, which are computed at opening, their thousandths); over the classes of modules,
    the numbers and texts that they hold (an epsilon, an adapter's scale), their activation functions, and the
    configurations; over which adapters are on. The same on every device, with every
    attention implementation, compiled or not, and wherever the files are kept. What hooks do is not in it, nor what
    modules hold under private names but for numbers with a point, in objects of other classes (see `settings`), or in
    tensors that their own code does not speak of, such as what a hook keeps there.

    Args:
        model: a model.
        said: gives what a module says of itself; by default it is read.
        content: gives the digest of a tensor's bytes; by default all are read.
    """
    digest, walked = xxh3_128(), [*as_written(model)]
    modules = [module for _, module in walked]
    stated, last = configurations_of(modules), put_back(modules)
    for path, module in walked:
        own = said(module, stated)
        digest.update(path.encode())
        digest.update(own.text)
        for name, tensor in tensors_of(module, last, own.held is not None):
            digest.update(_headed(name, tensor))
            if name.endswith(LENGTHENED):
                digest.update(_coarsely(tensor))
                continue
            plain = is_ordinary(tensor) and not own.moved
            for part in (tensor,) if plain else _each_once((*parts_of(tensor), *_scales(own, name))):
                digest.update(content(part))
    for place in _again(model, modules):
        digest.update(place.encode())
    return digest.hexdigest()


def _coarsely(frequencies: Tensor) -> bytes:
    """Rotary frequencies to a thousandth: no file holds them, and each kind of processor rounds powers otherwise."""
    value = frequencies.detach().cpu().double()
    steps = value.abs().clamp(min=1e-300).log().mul(1000).round()
    return (steps * value.sign()).nan_to_num(0.0).long().numpy().tobytes()


def _again(model: nn.Module, modules: Sequence[nn.Module]) -> list[str]:
    """The other places of modules that stand at several, and where each was met first: a walk meets it once."""
    if sum(len(module._modules) for module in modules) < len(modules):  # each but the first stands at one
        return []
    first: dict[nn.Module, str] = {}
    walked = ((path.replace(f".{WRAPPED}", ""), module) for path, module in model.named_modules(remove_duplicate=False))
    return [f"{path}={first[module]}" for path, module in walked if first.setdefault(module, path) != path]


def put_back(modules: Iterable[nn.Module]) -> frozenset[int]:
    """By identity, the weights that an adapter takes out and puts back in each pass: they stand behind others then."""
    return frozenset(id(weight) for module in modules if OF_ONE in vars(module) for weight in rewritten(module))


def tensors_of(
    module: nn.Module, last: frozenset[int], settled: bool = False, fetch: bool = True
) -> list[tuple[str, Tensor]]:
    """A module's own weights and buffers, those that are not saved among them.

    Args:
        module: a module.
        last: of its weights, those that are named last, by identity.
        settled: it is known to hold no other tensors.
        fetch: those that are kept elsewhere (on a disk) are read; else what stands in their place is given.
    """
    # A module's `getattr` is slow, above all for what is not there, and this is done for each result.
    held = vars(module)
    own = [(name, tensor) for name, tensor in held["_parameters"].items() if tensor is not None]
    if last:
        own.sort(key=lambda one: id(one[1]) in last)
    if held["_buffers"]:
        rows = getattr(module, FIRST, 0) if grows(type(module)) else None  # type: ignore[arg-type]
        buffers = ((name, tensor) for name, tensor in held["_buffers"].items() if tensor is not None)
        own += [(name, tensor if rows is None else tensor[:rows]) for name, tensor in buffers]
    own += () if settled else _few(module)
    follows = held.get("rope_type") in FOLLOWING and hasattr(module, ORIGINAL)
    if not follows and not any(tensor.is_meta for _, tensor in own):
        return own
    there = [(name, ORIGINAL if follows and name == LENGTHENED else name, tensor) for name, tensor in own]
    return [(n, fetched(module, at) if at != n or (tensor.is_meta and fetch) else tensor) for n, at, tensor in there]


def _few(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors, and arrays, of a few numbers that a module holds as they are, and that its code speaks of."""
    settings = ((name, vars(module)[name]) for name in telling(module))
    few = [(name, list(_held_in(name, value))) for name, value in settings if type(value) not in PLAIN]
    return [one for name, some in few if some and name in _spoken_of(type(module)) for one in some]  # type: ignore[arg-type]


def _held_in(name: str, value: Any, deep: int = DEEP) -> Iterator[tuple[str, Tensor]]:
    """Those of an attribute, alone or in lists and dictionaries."""
    if isinstance(value, Tensor) and value.numel() <= FEW:
        yield name, value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size <= FEW:
        yield name, torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, (list, tuple, Mapping)) and deep and len(value) <= FEW:
        for key, one in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _held_in(f"{name}.{key}", one, deep - 1)


@functools.lru_cache(maxsize=4096)
def grows(kind: Any) -> bool:
    """Whether its buffers are made longer when that is needed: sinusoids."""
    return hasattr(kind, "make_weights")


@functools.lru_cache(maxsize=4096)
def _spoken_of(kind: Any) -> frozenset[str]:
    """The names that the code of a class speaks of; what somebody else keeps on a module has another."""
    return frozenset(name for one in kind.__mro__ for held in vars(one).values() for name in _names_in(held))


def _names_in(held: Any) -> Iterator[str]:
    code = getattr(inspect.unwrap(getattr(held, "fget", held)), "__code__", held)
    if isinstance(code, CodeType):
        yield from code.co_names
        for inner in code.co_consts:
            yield from _names_in(inner)


def is_ordinary(value: Any) -> bool:
    """Whether it is a tensor and no more, all its numbers one behind another, as most are."""
    return type(value) in ORDINARY and value.__dict__.keys() <= MARKS and _is_dense(value)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def parts_of(value: Any) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of: a quantised one has scales, a sharded one a shard."""
    if is_ordinary(value):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from parts_of(one)
    elif hasattr(value, "__tensor_flatten__"):
        yield from parts_of([getattr(value, name) for name in value.__tensor_flatten__()[0]])
    elif isinstance(value, Tensor):
        yield from (value,) if _is_dense(value) else _pieces(value)
        yield from parts_of(list(getattr(value, "__dict__", {}).values()))
    elif hasattr(value, "absmax"):  # how bitsandbytes says what the bytes of a 4-bit weight stand for
        yield from parts_of(list(vars(value).values()))


def _pieces(tensor: Tensor) -> list[Tensor]:
    """What a sparse tensor is made of: its numbers, and where they stand.

    Raises:
        ModelError: its layout keeps them where nobody can look.
    """
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    for rows, columns in COMPRESSED.items():
        if tensor.layout in columns[1:]:
            return [getattr(tensor, rows)(), getattr(tensor, columns[0])(), tensor.values()]
    kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    raise ModelError(
        f"a {kind} tensor of the model cannot be read: lay it out as most are (to_dense(), to_padded_tensor(0))"
    )


def _headed(name: str, tensor: Tensor) -> bytes:
    """What stands before the bytes of a tensor."""
    if is_ordinary(tensor):
        return _heading(name, tensor.shape, tensor.dtype)
    shape = () if tensor.is_nested else tuple(tensor.shape)
    return f"{name}{shape}{tensor.dtype}{_scheme(tensor)}".encode()


@functools.lru_cache(maxsize=4096)
def _heading(name: str, shape: torch.Size, dtype: torch.dtype) -> bytes:
    return f"{name}{tuple(shape)}{dtype}".encode()


def _scheme(tensor: Tensor) -> str:
    """What a weight of a type of its own says of how it is used (its blocks, how activations are rounded)."""
    about = tensor.__tensor_flatten__()[1] if hasattr(tensor, "__tensor_flatten__") else None
    said = about if isinstance(about, Mapping) else {}
    return "".join(f"{k}{v}" for k, v in said.items() if not isinstance(v, torch.device) and " at 0x" not in f"{v}")


def _each_once(parts: Iterable[Tensor]) -> list[Tensor]:
    """Without those that are the same numbers in the same memory."""
    found: dict[tuple[int, int], Tensor] = {}
    for part in parts:
        found.setdefault((part.data_ptr(), part.nbytes), part)
    return list(found.values())


def _scales(said: Said, name: str) -> Iterator[Tensor]:
    """Where bitsandbytes keeps the scales of 8-bit weights from a layer's first pass on."""
    return parts_of([state.SCB for state in said.moved] if name == "weight" else [])


def _bytes(tensor: Tensor) -> UInt8[Tensor, " byte"]:
    return tensor.data.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def sums(flat: UInt8[Tensor, " byte"]) -> list[int]:
    """Sums of 32-bit words, each times a number of its own, modulo 2^64: exact, in any order.

    Two contents share a sum with a chance of 2^-32 (multilinear hashing: Carter and Wegman 1979).
    """
    words = nn.functional.pad(flat, (0, -len(flat) % 4)).view(torch.int32)
    factors = _factors(flat.device)
    found = [(some.long() * factors[: len(some)]).sum() for some in words.split(WORDS)]
    return torch.stack(found).tolist()


@functools.lru_cache(maxsize=8)
def _factors(device: torch.device) -> Int64[Tensor, " word"]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**63), 2**63 - 1, (WORDS,), generator=generator).to(device)
