"""A processor that looks at pictures once, however often it reads the text around them.

What a position is, is told by processing a prompt several times with one piece of text changed (`inputs.prompt`).
Pictures do not change meanwhile, and they are what takes time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

PIXELS = (Image.Image, np.ndarray, Tensor)
READERS = ("image_processor", "video_processor")


def once(processor: Any) -> Any:
    """A copy of a processor, for one prompt, whose readers of pictures remember; the processor itself stays."""
    made = copy.copy(processor)
    for name in READERS:
        if callable(reader := getattr(processor, name, None)):
            setattr(made, name, _Remembering(reader))
    return made


class _Remembering:
    """Stands for a reader: the same pictures with the same options give the same again; else it is the reader's."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._known: list[tuple[list[Any], Any]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of this object, not of the reader: copying asks for these
            raise AttributeError(name)
        return getattr(self._reader, name)

    def __call__(self, *pictures: Any, **options: Any) -> Any:
        return self._remembered("", self._reader, pictures, options)

    def preprocess(self, *pictures: Any, **options: Any) -> Any:
        return self._remembered("preprocess", self._reader.preprocess, pictures, options)

    def _remembered(self, name: str, read: Callable[..., Any], pictures: Any, options: Mapping[str, Any]) -> Any:
        given = [name, *_leaves(pictures), *_leaves(options)]
        made = next((made for leaves, made in self._known if _alike(leaves, given)), None)
        if made is None:
            made = read(*pictures, **options)
            self._known.append((given, made))
        return _fresh(made)


def _leaves(value: Any) -> list[Any]:
    """What is in lists and dictionaries, one after the other; the lengths tell how they were nested."""
    if isinstance(value, (list, tuple)):
        return [len(value), *(leaf for one in value for leaf in _leaves(one))]
    if isinstance(value, Mapping):
        return [len(value), *(leaf for key in sorted(value, key=str) for leaf in [key, *_leaves(value[key])])]
    return [value]


def _alike(leaves: list[Any], others: list[Any]) -> bool:
    """Whether all are the same: pictures and arrays the same objects, options equal."""
    pairs = zip(leaves, others, strict=False)
    return len(leaves) == len(others) and all(a is b or (not isinstance(a, PIXELS) and bool(a == b)) for a, b in pairs)


def _fresh(value: Any) -> Any:
    """A copy that can be changed: arrays are shared, what holds them is not."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value
    if isinstance(value, list):
        return [_fresh(one) for one in value]
    if isinstance(value, Mapping):
        made: Any = copy.copy(value)
        for key, inner in value.items():
            made[key] = _fresh(inner)
        return made
    return value
