"""Whether the fields of a dataclass are what its annotations say, and whether two are equal: files may hold anything.

Tests check annotations at every call; users pay for it only where a result is made.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jaxtyping import AbstractArray, jaxtyped

from lvlm_interp.causes import unread
from lvlm_interp.errors import InputError
from lvlm_interp.storing import KINDS, is_array, is_frame, is_tensor

SURROGATE = re.compile("[\ud800-\udfff]")
NUMBERS = {int: numbers.Integral, float: numbers.Real}
Range = tuple[float, float]
"""The least and the largest number that a field may hold; an end that is infinite may be held too."""
MOST = sys.float_info.max
FINITE: Range = (-MOST, MOST)
ANY: Range = (-math.inf, math.inf)  # and NaN
POSITIVE: Range = (0, MOST)  # and 0
SHARE: Range = (0, 1)
LOGPROB: Range = (-MOST, 0)
ROUNDING = 1e-2  # by which a number may miss its range: a log-probability is a difference of logits


def check_fields(value: Any, along: Mapping[str, str], among: Mapping[str, Iterable[str]]) -> None:
    """Raise unless all fields fit.

    Args:
        value: a dataclass.
        along: fields that have as many members as an axis of its tensors is long, and the name of that axis.
        among: fields of which each member is one of these.

    Raises:
        InputError: names the field, what it holds and what it should.
    """
    kind, sizes = type(value).__name__, dict[str, int]()
    for name, hint in _hints(value).items():
        held = getattr(value, name)
        if is_tensor(held) and (told := unread(held)):
            raise InputError(f"{kind}.{name} is {told}")
        if not fits(held, hint):
            raise InputError(f"{kind}.{name} is {shown(held)}; it should be {named(hint)}")
        for axis, size in _axes(held, hint):
            if sizes.setdefault(axis, size) != size:
                raise InputError(f"{kind}.{name} has {size} along its axis {axis!r}, where others have {sizes[axis]}")
    for name, axis in along.items():
        if (count := len(getattr(value, name))) != sizes.get(axis, count):
            raise InputError(f"{kind}.{name} has {count} members, where the axis {axis!r} is {sizes[axis]} long")
    for name, allowed in among.items():
        if unknown := [member for member in getattr(value, name) if member not in allowed]:
            raise InputError(f"{kind}.{name} holds {unknown[0]!r}; it should hold {list(allowed)}")


def check_numbers(value: Any) -> None:
    """Raise for a number that cannot be: NaN or infinity, or one out of its field's range.

    What a class allows stands in it: `ranges`, by field, of all that need not be finite or may not be any number; and
    `blank`, the fields in which NaN says that there is no number. Fields that may hold anything are judged by a range
    only. Results in it have been looked at when they were made.

    Raises:
        InputError: names the field, the number and what it may be.
    """
    kind: Any = type(value)
    ranges, blank = getattr(kind, "ranges", {}), getattr(kind, "blank", ())
    for name in _numeric(kind):
        if (allowed := ranges.get(name, FINITE)) is not ANY:
            need_within(getattr(value, name), f"{kind.__name__}.{name}", allowed, name in blank)


@functools.cache
def _numeric(kind: Any) -> tuple[str, ...]:
    """Fields that hold numbers by their annotation, or have a range: texts, of which there are many, are not gone
    through."""
    unsaved, ranges = getattr(kind, "unsaved", ()), getattr(kind, "ranges", {})
    counting = (name for name, hint in _annotations(kind).items() if name in ranges or _may_count(hint))
    return tuple(name for name in counting if name not in unsaved)


def _may_count(hint: Any) -> bool:
    parts = get_args(hint)
    if get_origin(hint) is Literal or hint in (Any, str, bool, type(None), ...):
        return False
    return any(map(_may_count, parts)) if parts else True


def need_within(held: Any, where: str, allowed: Range, blank: bool = False) -> None:
    """Raise for a number, in what is held, that is out of a range; NaN is in none, unless it may say that there is no
    number."""
    if KINDS.get(type(held).__name__) is type(held):
        if not hasattr(held, "__post_init__"):
            check_numbers(held)
    elif isinstance(held, Mapping):
        for one in held.values():
            need_within(one, where, allowed, blank)
    elif isinstance(held, (list, tuple)):
        for one in held:
            need_within(one, where, allowed, blank)
    elif (wrong := next(_outside(held, allowed, blank), None)) is not None:
        told = "NaN" if wrong != wrong else f"{wrong:g}"
        raise InputError(f"{where} holds {told}; it should hold {_told(allowed)}")


def _outside(held: Any, allowed: Range, blank: bool) -> Iterator[float]:
    """The least and the largest number where they are out of a range, and NaN."""
    low, high = allowed
    for one in _ends(held, allowed, blank):
        if one != one:
            yield from () if blank else (one,)
        elif one < low - ROUNDING or one > high + ROUNDING:
            yield one


def _ends(held: Any, allowed: Range, blank: bool) -> tuple[Any, ...]:
    """The least and the largest number, which are NaN where one is."""
    if not is_tensor(held):
        return (held,) if isinstance(held, (int, float)) else ()
    if held.is_complex() or not held.numel() or (allowed is FINITE and not held.is_floating_point()):
        return ()
    found = held.detach().float() if held.dtype.itemsize == 1 else held.detach()
    if blank:
        found = found[found == found]
    return tuple(one.item() for one in found.aminmax()) if found.numel() else ()


def _told(allowed: Range) -> str:
    low, high = allowed
    if abs(low) >= MOST:
        return "finite numbers" if high >= MOST else f"numbers up to {high:g}"
    return f"numbers from {low:g} on" if high >= MOST else f"numbers from {low:g} to {high:g}"


def _hints(value: Any) -> dict[str, Any]:
    """The annotation of every field."""
    kind: Any = type(value)
    return _annotations(kind)


@functools.cache
def _annotations(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def fits(value: Any, hint: Any, strict: bool = True) -> bool:
    """Whether a value is what an annotation says.

    Args:
        value: the value.
        hint: the annotation; one that cannot be judged is taken as kept.
        strict: as in results; else as for arguments, where numbers may be numpy's, and arrays stand for sequences.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if origin is Literal:
        return value in parts
    if origin in (Union, types.UnionType):
        return any(fits(value, part, strict) for part in parts)
    if origin is Callable:
        return callable(value)
    if origin is tuple and strict:
        return isinstance(value, tuple) and _members_fit(value, parts)
    if isinstance(origin, type):
        return _is_made_of(value, origin, parts, strict)
    return _is_a(value, hint, strict)


def _members_fit(value: tuple[Any, ...], parts: tuple[Any, ...]) -> bool:
    if parts[-1:] == (...,):
        return all(fits(one, parts[0]) for one in value)
    return len(value) == len(parts) and all(map(fits, value, parts))


def _is_made_of(value: Any, origin: type, parts: tuple[Any, ...], strict: bool) -> bool:
    """Whether a collection is of a kind, and its members are; what can be read only once is not read."""
    if not issubclass(origin, Iterable):  # os.PathLike[str], of which there is nothing to go through
        return isinstance(value, origin)
    if issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return False
        return all(fits(k, parts[0], strict) and fits(v, parts[1], strict) for k, v in value.items())
    if isinstance(value, (str, bytes)) or not isinstance(value, origin if strict else Iterable):
        return False
    if not strict and _has_no_order(value, origin, parts):
        return False
    if origin is tuple and parts[-1:] != (...,) and isinstance(value, Sized) and len(value) != len(parts):
        return False
    members: Any = value
    return isinstance(value, Iterator) or all(fits(one, parts[0], strict) for one in members)


def _has_no_order(value: Any, origin: type, parts: tuple[Any, ...]) -> bool:
    """Whether a value is given where order tells which is which, and has none, or can be gone through once only."""
    if isinstance(value, (set, frozenset)):
        return issubclass(origin, Sequence) or (origin is Iterable and parts[0] not in (str, int))
    return origin is Sequence and isinstance(value, Iterator)


def _is_a(value: Any, hint: Any, strict: bool) -> bool:
    """Whether a value is of a plain type, or a tensor of a kind of numbers and axes; a truth is no number."""
    if hint in (int, float):
        kind = int if hint is int else (int, float)
        return isinstance(value, kind if strict else NUMBERS[hint]) and not isinstance(value, bool)
    if strict and isinstance(value, str) and not value.isascii() and SURROGATE.search(value):
        return False  # no text that can be written
    try:
        with jaxtyped("context"):  # axes of a function of the user's, which calls ours, are none of ours
            if not isinstance(value, hint):
                return False
    except TypeError:
        return True
    return not strict or not dataclasses.is_dataclass(value) or hasattr(value, "__post_init__") or _all_fit(value)


def _all_fit(value: Any) -> bool:
    return all(fits(getattr(value, name), hint) for name, hint in _hints(value).items())


def _axes(value: Any, hint: Any) -> Iterator[tuple[str, int]]:
    """The names of a tensor's axes, and how long each is; also of one that may be missing."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next((part for part in get_args(hint) if fits(value, part)), hint)
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        named = zip(hint.dim_str.split(), value.shape, strict=False)
        yield from ((axis, size) for axis, size in named if axis.isidentifier())


def shown(value: Any) -> str:
    """A value in a message: a tensor by its kind and shape, others in a few letters."""
    if is_tensor(value):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    text = repr(value)
    return text if len(text) < 80 else f"{text[:76]} …"


def named(hint: Any) -> str:
    """An annotation in a message."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return f"{hint.__name__.partition('[')[0]} [{', '.join(hint.dim_str.split())}]"
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(map(named, get_args(hint)))
    plain = isinstance(hint, type) and not get_args(hint)
    return str(hint.__name__ if plain else hint).replace("typing.", "").replace("collections.abc.", "")


def _read(value: Any) -> Any:
    """An array of numbers, zarr's or numpy's, as a tensor; anything else as it is."""
    if not is_array(value):
        return value
    import torch

    return torch.as_tensor(value[:])


def equal(one: Any, other: Any) -> bool:
    """Whether two values hold the same, tensors number by number; what is no number is like itself.

    Numbers in a store are read; they are those of a tensor.
    """
    if hasattr(one, "nchunks") or hasattr(other, "nchunks"):
        return equal(_read(one), _read(other))
    if is_tensor(one) and is_tensor(other):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        other = other.to(one.device)
        return bool(((one == other) | ((one != one) & (other != other))).all())
    if is_tensor(one) or is_tensor(other):
        return False
    if is_frame(one) and is_frame(other):
        return bool(one.equals(other)) and list(one.index.names) == list(other.index.names)
    if getattr(one, "ndim", 0) and not is_tensor(one) and hasattr(one, "tolist"):  # numpy's
        return type(one) is type(other) and one.shape == other.shape and equal(one.tolist(), other.tolist())
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        names = (f.name for f in dataclasses.fields(one) if f.name not in getattr(one, "unsaved", ()))
        return all(equal(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, (list, tuple)) and type(one) is type(other):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    return bool(one == other) or (isinstance(one, float) and isinstance(other, float) and one != one and other != other)
