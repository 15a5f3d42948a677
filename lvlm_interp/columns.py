"""A column that a user gives, an entry for each example: in whatever it comes, nothing missing and nothing mixed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.fields import shown

Column = Sequence[Any] | np.ndarray | Tensor | pd.Series


def numbered(given: Column, what: str = "groups") -> Int[Tensor, " example"]:
    """Equal things get equal numbers, from 0.

    Raises:
        InputError: some are missing, or not one is given for each example.
    """
    values = plain(given, what)
    if not values.ndim:
        raise InputError(f"{what} {given!r}: give one for each example")
    return torch.from_numpy(np.unique(values, axis=0, return_inverse=True)[1].reshape(len(values)))


def native(values: Any) -> np.ndarray:
    """An array that torch takes: of this machine's numbers, no longer than doubles, laid out forwards."""
    array = np.asarray(values)
    longer = array.dtype.kind == "f" and array.dtype.itemsize > 8
    return np.ascontiguousarray(array, np.float64 if longer else array.dtype.newbyteorder("="))


def plain(given: Any, what: str) -> np.ndarray:
    """Numbers, truth values or strings, none of them missing: NumPy would make a class `"None"` of what is."""
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable) or isinstance(given, Iterator):
        raise InputError(f"{what} are a list or an array, one for each example; got {shown(given)}")
    need_unmasked(given, what)
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    try:
        as_given = np.asarray(given, object)
        values = np.array(as_given.tolist()) if np.asarray(given).dtype == object else np.asarray(given)
    except ValueError as error:
        raise InputError(f"{what} are not all of one shape: {error}") from error
    missing = ~np.isfinite(values) if values.dtype.kind == "f" else pd.isna(as_given)
    if missing.any():
        raise InputError(f"{int(missing.sum())} {what} are NaN or infinite, or missing")
    _need_one_kind(as_given, what)
    _need_kept(as_given, values, what)
    return values.astype(str) if values.dtype == object else values


def need_unmasked(given: Any, what: str) -> None:
    """Raise where entries of an array of numpy are masked, which are missing: it hands on what stands behind a mask."""
    if np.ma.is_masked(given):
        raise InputError(f"{int(np.ma.getmaskarray(given).sum())} {what} are masked: leave them out")


def _need_one_kind(given: np.ndarray, what: str) -> None:
    """Raise where NumPy would make one of 7 and "7", or of 1 and True."""
    of_each = {_kind(value): value for value in given.flat}
    if what == "labels" and "other" in of_each:  # which results could not keep; groups are only told apart
        raise InputError(f"{what} are texts, numbers or truth values; got {of_each['other']!r}")
    if len(of_each) > 1:
        some = " and ".join(f"{value!r} ({kind})" for kind, value in sorted(of_each.items()))
        raise InputError(f"{what} are of several kinds, {some}: make them all of one")


def _need_kept(given: np.ndarray, values: np.ndarray, what: str) -> None:
    """Raise where NumPy makes another of one: it drops zeros behind a text, and counts to 2⁵³ beside fractions."""
    pairs = zip(given.ravel().tolist(), values.ravel().tolist(), strict=True)
    told = ((one, kept) for one, kept in pairs if isinstance(one, str | int | float))  # dates become numbers
    if values.dtype != object and (lost := next((one for one, kept in told if one != kept), None)) is not None:
        why = "ends with NUL, which NumPy drops" if isinstance(lost, str) else "is rounded beside fractions"
        raise InputError(f"{what} such as {lost!r} cannot be kept as they are: it {why}; number them, or name them")


def _kind(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "truth value"
    return "text" if isinstance(value, str) else "number" if isinstance(value, (int, float, np.number)) else "other"
