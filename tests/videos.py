"""Videos for tiny models, and processors that read them without torchvision."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import Tensor
from transformers import processing_utils

from tests import processors
from tests.families import collected
from tests.families.shared.clips import Base, Clip, Film, Still
from tests.families.shared.tiny import ANSWER, IMAGE, QUESTION, VIDEO
from tests.saved import processor

CLIPS: dict[str, Clip] = collected("CLIPS")
PICTURES: dict[str, Still] = {name: clip.still for name, clip in CLIPS.items() if clip.still}
FILMS: dict[str, Film] = collected("FILMS")
READERS: dict[str, Callable[[], tuple[Any, Any]]] = collected("READERS")
"""Each makes an image processor, and what stands in for the video processor."""


def clip_example(vlm: Any, name: str, seed: int = 1, picture: bool = False) -> Any:
    """An example with a video (and a picture before it), a question and an answer, as `vlm.inputs` takes it."""
    row, generator = CLIPS[name], torch.Generator().manual_seed(seed)
    shapes, before = PICTURES[name] if picture else ({}, ())
    pixels = {
        k: v if isinstance(v, Tensor) else torch.randn(v, generator=generator)
        for k, v in {**shapes, **row.pixels}.items()
    }
    prompt = [1, *before, *row.tokens, *QUESTION]
    ids = torch.tensor([[*prompt, *ANSWER]])
    if "video_grid_thw" in pixels:
        pixels["mm_token_type_ids"] = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
    return vlm.inputs(input_ids=ids, answer_start=len(prompt), **pixels)


@cache
def camera(name: str) -> Any:
    """What makes pixels of frames."""
    return FILMS[name].pictures()


@torch.no_grad()
def filmed(name: str, clip: list[Image.Image]) -> tuple[Tensor, dict[str, Tensor]]:
    """Features of a video in the order of its tokens, and the model inputs that they are made of."""
    made = FILMS[name].together(camera(name)(clip, return_tensors="pt"))
    return FILMS[name].features(processors.tower(name), made), made


def without_torchvision(name: str) -> Any:
    """The family's own processor with these. Its check of their classes looks in lists that are not there either."""
    pixels, frames = READERS[name]()
    known = {"VideoProcessorMixin": Base, "BaseVideoProcessor": Base}
    with mock.patch.multiple(processing_utils.transformers_module, create=True, **known):
        return processor(name, pixels, frames)
