"""A row for a processor that is saved beside a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.families.shared.tiny import named

QWEN_SIZES = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 56**2, "longest_edge": 112**2}}
SMOL = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
WHOLE = {"size": {"height": 56, "width": 56}}
ONEVISION = {"size": {"height": 28, "width": 28}}
CROPPED = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}


@dataclass(frozen=True)
class Saved:
    """How the processor of a family is made, and what its template writes for an image and for a video.

    Attributes:
        kind: what transformers calls its class.
        pixels: makes its image processor.
        options: its other arguments.
        marker: what stands for an image.
        clip: what stands for a video.
        frames: makes its video processor, if it reads videos too; transformers opens those with torchvision only.
    """

    kind: str
    pixels: Callable[[], Any]
    options: Mapping[str, Any]
    marker: str = "<image>"
    clip: str = "<video>"
    frames: Callable[[], Any] | None = None


def pil(name: str, **settings: Any) -> Any:
    """An image or video processor of transformers."""
    return named(name)(**settings)


def later(name: str, **settings: Any) -> Callable[[], Any]:
    """Makes one once it is asked for."""
    return partial(pil, name, **settings)
