"""Values as JSON and tensors, and back: what the file of a result holds. Nothing that stands in a file is ever run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

K = TypeVar("K", bound=type)
MISSING = ("NAType", "NaTType")  # pandas' own, beside the number that is none
EXACT = 2**53  # up to here every whole number has a number with a point
MOST_LETTERS = 1 << 28  # of an array of texts, which is as wide as its longest
# Types of numbers that a file may hold: torch computes little with others.
NUMBERS = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
WHOLE_NUMBERS = ("bool", "uint8", "int8", "int16", "int32", "int64")
KINDS: dict[str, type] = {}
"""Name → the dataclass that a file may hold under it."""


def storable(kind: K) -> K:
    """Let files hold values of a dataclass."""
    KINDS[kind.__name__] = kind
    return kind


def is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "numpy")


def is_array(value: Any) -> bool:
    """Whether it is numpy's or zarr's, of numbers, with axes."""
    kind = getattr(getattr(value, "dtype", None), "kind", "none")
    return kind in "biuf" and bool(getattr(value, "ndim", 0))


def is_frame(value: Any) -> bool:
    return hasattr(value, "itertuples")


def need_numbers(tensors: Mapping[str, Any]) -> None:
    """Raise for a type of numbers that no result holds.

    Raises:
        ValueError: names the tensor.
    """
    known = {f"torch.{kind}" for kind in (*NUMBERS, *WHOLE_NUMBERS)}
    if foreign := [f"{name!r} is {tensor.dtype}" for name, tensor in tensors.items() if str(tensor.dtype) not in known]:
        raise ValueError(f"{foreign[0]}, numbers that no result holds")


def packed(value: Any, path: str, tensors: dict[str, Any]) -> Any:
    """A value as JSON; its tensors go to `tensors`, under where they stand in it.

    Arrays of numbers come back as tensors. What is neither a number, a text, a tensor, a frame, a storable dataclass
    nor made of these is kept as its text.
    """
    if is_array(value):
        import torch

        if getattr(value, "mask", None) is not None and value.mask.any():
            raise ValueError("entries of an array are masked, and would be numbers again: fill them, array.filled(…)")

        numbers = value[:]  # zarr's are read from disk
        if getattr(value, "nchunks_initialized", 0) < getattr(value, "nchunks", 0):
            raise ValueError("files of the store that these numbers are kept in are gone")
        value = torch.tensor(numbers)
    if is_tensor(value):
        while path in tensors:  # {"a.b": …} and {"a": {"b": …}} stand in one place
            path += "'"
        tensors[path] = value.detach().cpu().contiguous().clone()  # safetensors refuses memory that is shared
        return {"tensor": path}
    if is_frame(value):
        return _framed(value)
    if getattr(value, "ndim", 0):  # an array of texts
        return {"texts": [scalar(one) for one in value.flat], "shape": value.shape, "kind": value.dtype.kind}
    if dataclasses.is_dataclass(value) and KINDS.get(type(value).__name__) is type(value):
        names = [f.name for f in dataclasses.fields(value) if f.name not in getattr(value, "unsaved", ())]
        return {"kind": type(value).__name__, "fields": _named(((n, getattr(value, n)) for n in names), path, tensors)}
    if isinstance(value, Mapping):
        return {"mapping": [[_key(k, value), packed(v, f"{path}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple, set, frozenset)):
        each = [packed(one, f"{path}.{n}", tensors) for n, one in enumerate(value)]
        return {"list": each} if isinstance(value, list) else each
    return scalar(value)


def _framed(frame: Any) -> dict[str, Any]:
    """A frame's columns, those of its index first, where it is more than the numbers of rows.

    Raises:
        ValueError: two columns, or a column and a part of the index, share a name.
    """
    if len(frame) and not len(frame.columns):
        raise ValueError(f"a table of {len(frame)} rows has no columns, which are what is kept")
    names = list(frame.index.names)
    numbered = names == [None] and frame.index.dtype.kind in "iu" and list(frame.index) == list(range(len(frame)))
    _need_names(frame, [] if numbered else names)
    flat = frame if numbered else frame.reset_index()
    columns = {str(name): [scalar(one) for one in flat[name]] for name in flat.columns}
    return {"frame": columns} if numbered else {"frame": columns, "index": [scalar(name) for name in names]}


def settled(frame: Any) -> Any:
    """A frame as it is read from a file again: dates as text, categories as what they stand for.

    One that cannot be kept stays as it is.
    """
    try:
        held = _framed(frame)
        return _unframed(held["frame"], held.get("index", []))
    except (TypeError, ValueError):
        return frame


def _need_names(frame: Any, index: list[Any]) -> None:
    """Raise where columns, or a column and a part of the index, would be one in a file."""
    unnamed = "index" if len(index) == 1 and "index" not in frame else None  # as pandas calls what has no name
    parts = [(unnamed or f"level_{n}") if name is None else str(name) for n, name in enumerate(index)]
    columns = [str(name) for name in frame.columns]
    if shared := [name for name in parts if parts.count(name) > 1 or name in columns]:
        raise ValueError(
            f"the index of a table is called {shared[0]!r}, as a column or another part of it is: rename it, "
            "frame.rename_axis(…), or leave it out, frame.reset_index(drop=True)"
        )
    if len({*columns}) < len(columns):
        raise ValueError(f"columns of a table share a name: {columns}")


def _unframed(columns: Mapping[str, list[Any]], index: list[Any]) -> Any:
    import pandas as pd

    frame = pd.DataFrame({name: pd.Series(cells, dtype=_kept_as(cells)) for name, cells in columns.items()})
    return frame.set_index([*columns][: len(index)]).rename_axis(index) if index else frame


def _kept_as(cells: Sequence[Any]) -> type | None:
    """Objects, where pandas would round whole numbers beside an empty cell; else what pandas takes."""
    large = any(isinstance(cell, int) and abs(cell) > EXACT for cell in cells)
    return object if large and None in cells else None


def _named(fields: Iterable[tuple[str, Any]], path: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: packed(value, f"{path}.{name}" if path else name, tensors) for name, value in fields}


def _key(key: Any, mapping: Mapping[Any, Any]) -> Any:
    """A key as it is kept.

    Raises:
        ValueError: another one would be kept alike.
    """
    kept = scalar(key)
    if kept is not key and kept != key and kept in mapping:
        raise ValueError(f"the keys {key!r} and {kept!r} of a mapping would be one")
    return kept


def scalar(value: Any) -> Any:
    """A number, a text, a truth or None; numpy's as Python's, what is missing as None, and all else as its text."""
    if type(value).__name__ in MISSING:
        return None
    value = value.item() if hasattr(value, "item") and not getattr(value, "ndim", 0) else value
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def unpacked(value: Any, tensors: Mapping[str, Any]) -> Any:
    """What `packed` took apart.

    Raises:
        KeyError: a tensor or a kind that is not there.
        TypeError: fields that the kind does not have.
    """
    match value:
        case {"tensor": path}:
            return tensors[path]
        case {"frame": columns}:
            return _unframed(columns, value.get("index", []))
        case {"texts": each, "shape": shape, "kind": kind}:
            import numpy as np

            if kind != "O" and (size := len(each) * max(map(len, each), default=0)) > MOST_LETTERS:
                raise ValueError(f"{len(each)} texts, padded to the longest, have {size} letters")
            texts = np.empty(len(each), dtype=object)
            texts[:] = each
            return (texts if kind == "O" else texts.astype(str)).reshape(shape)
        case {"kind": name, "fields": fields}:
            return KINDS[name](**{k: unpacked(v, tensors) for k, v in fields.items()})
        case {"mapping": pairs}:
            return {k: unpacked(v, tensors) for k, v in pairs}
        case {"list": each}:
            return [unpacked(one, tensors) for one in each]
        case list():
            return tuple(unpacked(one, tensors) for one in value)
        case _:
            return value
