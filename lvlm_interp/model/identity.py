"""What tells one model from another: every weight, buffer and setting.

`fingerprint` reads all of it, at the speed of memory. A method that runs for a quarter of a second cannot do so each
time: `Known` remembers what it read, and looks again where torch has counted a change. Weights may be written to behind
torch's back too (`weight.data.mul_(2)`, an array of numpy): so it looks into every page each time, and at a part of
all tensors, another one each time.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn
from transformers import PreTrainedModel
from xxhash import xxh3_128

from lvlm_interp.inputs.touched import state_of
from lvlm_interp.model.acting import rewritten
from lvlm_interp.model.compiled import as_written, original
from lvlm_interp.model.settings import configurations_of, held_by, settings_of, telling
from lvlm_interp.model.walking import looked_up, named_modules
from lvlm_interp.model.weights import fetched

# Rotary frequencies that follow the length of what is read; what they start from stands beside them.
LENGTHENED, ORIGINAL, FOLLOWING = "inv_freq", "original_inv_freq", ("dynamic", "longrope")
FIRST = "num_positions"  # how many rows a table of sinusoids began with: a longer pass makes it anew, with more
FEW = 128  # numbers of a tensor that a module holds as it is: more are taken for activations that somebody kept there
PAGE, TURNS = 1 << 14, 32
SMALL = 1 << 16  # bytes of a tensor that is read whole each time
ORDINARY, MARKS = frozenset({Tensor, nn.Parameter}), frozenset({"_is_hf_initialized"})
Content = Callable[[Tensor], bytes]
WORDS = 1 << 22  # 32-bit words of a tensor on a device that are summed together
MOST_FETCHED = 1 << 16
_fetched: dict[tuple[int, ...], bytes] = {}  # digests of contents that were on a device, by their length and sums


def fingerprint(model: PreTrainedModel, content: Content | None = None) -> str:
    """A hash over all that decides what a model computes: 32 hexadecimal digits.

    Over names, shapes and bytes of all parameters and buffers, those of adapters, of quantised and of offloaded weights
    among them; over the classes of modules, the numbers and texts that they hold (an epsilon, an adapter's scale),
    their activation functions, and the configurations; over which adapters are on. The same on every device, with every
    attention implementation, compiled or not, and wherever the files are kept. What hooks do is not in it, nor what
    modules hold under private names but for numbers with a point, in objects of other classes (see `settings`), or in
    tensors that their own code does not speak of, such as what a hook keeps there.

    Args:
        model: a model.
        content: gives the digest of a tensor's bytes; by default all are read.
    """
    digest, content = xxh3_128(), content or content_of
    stated, last = configurations_of(model.modules()), _put_back(model.modules())
    for path, module in as_written(model):
        digest.update(f"{path}{settings_of(module, stated)}{[state.threshold for state in _states(module)]}".encode())
        for name, tensor in _own(module, last):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{_scheme(tensor)}".encode())
            for part in _each_once((*parts_of(tensor), *_moved(module, name))):
                digest.update(content(part))
    return digest.hexdigest()


class Known:
    """The contents of one model's tensors, as they were read.

    Noticed at the next call: a change that torch counts, in a tensor up to `SMALL` bytes, or that fills `PAGE` bytes.
    A single number of a larger tensor that was written behind torch's back: after `TURNS` calls at the latest.
    """

    def __init__(self) -> None:
        self._read: dict[int, tuple[Any, bytes, bytes]] = {}
        self._turn = 0

    def fingerprint(self, model: PreTrainedModel) -> str:
        """As `fingerprint`, faster."""
        before, self._read, self._turn = self._read, {}, self._turn + 1
        return fingerprint(model, lambda tensor: self._content(tensor, before))

    @staticmethod
    def changes(model: PreTrainedModel, anew: bool = False) -> list[Any]:
        """Settings, where tensors are, how often torch counted a change, a few of their bytes: quicker still.

        What torch does not count is seen in the tensors, and at the places, that `inputs.touched` looks at.

        Args:
            model: the model.
            anew: walk through its modules whoever has done so: it may run now.
        """
        walked = named_modules(model) if anew else looked_up(named_modules, model)
        modules = [module for _, module in walked if original(module) is module]
        stated = configurations_of(modules)
        last = _put_back(modules)
        states = [
            state_of(part, stays=id(own) not in last and not _grows(type(module)))  # type: ignore[arg-type]
            for module in modules
            for _, own in _own(module, last, fetch=False)
            for part in ((own,) if _is_ordinary(own) else parts_of(own))
        ]
        return [states, *(held_by(one, stated) for one in modules)]

    def _content(self, tensor: Tensor, before: dict[int, tuple[Any, bytes, bytes]]) -> bytes:
        number = len(self._read)
        if tensor.nbytes <= SMALL or tensor.device.type != "cpu" or tensor.is_inference():  # quick, or not counted
            key, pages = None, b""
        else:
            key, pages = (tensor.data_ptr(), tensor._version, tensor.shape, tensor.dtype), pages_of(tensor)
        found = before.get(number)
        same = key is not None and found is not None and found[:2] == (key, pages)
        due = number % TURNS == self._turn % TURNS
        content = found[2] if found is not None and same and not due else content_of(tensor)
        self._read[number] = key, pages, content
        return content


def pages_of(tensor: Tensor) -> bytes:
    """A few bytes of every page that a tensor fills."""
    flat = _bytes(tensor)
    return flat[: len(flat) // PAGE * PAGE].view(-1, PAGE)[:, :8].contiguous().numpy().tobytes()


def _put_back(modules: Iterable[nn.Module]) -> frozenset[int]:
    """By identity, the weights that an adapter takes out and puts back in each pass: they stand behind others then."""
    return frozenset(id(weight) for module in modules for weight in rewritten(module))


def _own(module: nn.Module, last: frozenset[int], fetch: bool = True) -> list[tuple[str, Tensor]]:
    """A module's own weights and buffers, those that are not saved among them; of its weights, some are the `last`.

    Without `fetch`, those that are kept elsewhere (on a disk) as what stands in their place: they come anew each time.
    """
    # A module's `getattr` is slow, above all for what is not there, and this is done for each result.
    held = vars(module)
    own = [(name, tensor) for name, tensor in held["_parameters"].items() if tensor is not None]
    own.sort(key=lambda one: id(one[1]) in last)
    if held["_buffers"]:
        rows = getattr(module, FIRST, 0) if _grows(type(module)) else None  # type: ignore[arg-type]
        buffers = ((name, tensor) for name, tensor in held["_buffers"].items() if tensor is not None)
        own += [(name, tensor if rows is None else tensor[:rows]) for name, tensor in buffers]
    settings = ((name, held[name]) for name in telling(module))
    few = [(name, value) for name, value in settings if isinstance(value, Tensor) and value.numel() <= FEW]
    own += [(name, value) for name, value in few if name in _spoken_of(type(module))]  # type: ignore[arg-type]
    follows = held.get("rope_type") in FOLLOWING and hasattr(module, ORIGINAL)
    if not follows and not any(tensor.is_meta for _, tensor in own):
        return own
    there = [(name, ORIGINAL if follows and name == LENGTHENED else name, tensor) for name, tensor in own]
    return [(n, fetched(module, at) if at != n or (tensor.is_meta and fetch) else tensor) for n, at, tensor in there]


@functools.lru_cache(maxsize=4096)
def _grows(kind: Any) -> bool:
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


def _is_ordinary(value: Any) -> bool:
    """Whether it is a tensor and no more, as most are."""
    return type(value) in ORDINARY and value.__dict__.keys() <= MARKS


def parts_of(value: Any) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of: a quantised one has scales, a sharded one a shard."""
    if _is_ordinary(value):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from parts_of(one)
    elif hasattr(value, "__tensor_flatten__"):
        yield from parts_of([getattr(value, name) for name in value.__tensor_flatten__()[0]])
    elif isinstance(value, Tensor):
        yield value
        yield from parts_of(list(getattr(value, "__dict__", {}).values()))
    elif hasattr(value, "absmax"):  # how bitsandbytes says what the bytes of a 4-bit weight stand for
        yield from parts_of(list(vars(value).values()))


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


def _states(module: nn.Module) -> Iterator[Any]:
    """Where bitsandbytes keeps the scales of 8-bit weights from a layer's first pass on, and its threshold."""
    return (value for value in vars(module).values() if hasattr(value, "SCB"))


def _moved(module: nn.Module, name: str) -> Iterator[Tensor]:
    return parts_of([state.SCB for state in _states(module)] if name == "weight" else [])


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


def _bytes(tensor: Tensor) -> UInt8[Tensor, " byte"]:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


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
