"""What transformers itself does not say about a family of vision-language models: one table.

Everything else (decoder, unembedding, chat template, image token) is asked of transformers at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image
from transformers import PretrainedConfig

from lvlm_interp.errors import ModelError
from lvlm_interp.model.inputs import Box

Grid = tuple[int, int]
PixelMap = Callable[[Any, Image, tuple[int, int], Grid], tuple[Box, ...]]
"""(image processor, original image, processed (height, width), grid) → box of every token in original pixels."""


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        vision: attribute path of the vision tower inside the base model.
        projector: attribute path of what maps its features to embeddings.
        pixel_map: where the image processor took the pixels of each token from.
        prompt: used when the processor has no chat template; `{image}`, `{question}`.
    """

    vision: str
    projector: str
    pixel_map: PixelMap
    prompt: str


def resized_and_cropped(processor: Any, image: Image, processed: tuple[int, int], grid: Grid) -> tuple[Box, ...]:
    """Boxes after CLIP's preprocessing: resize to a shortest edge or to a fixed size, then crop the centre."""
    width, height = image.size
    size = dict(processor.size or {}) if getattr(processor, "do_resize", True) else {}
    if shortest := size.get("shortest_edge"):
        factor = shortest / min(width, height)
        scaled = int(width * factor), int(height * factor)
    else:
        scaled = size.get("width") or width, size.get("height") or height
    left = (scaled[0] - processed[1]) // 2 if getattr(processor, "do_center_crop", False) else 0
    top = (scaled[1] - processed[0]) // 2 if getattr(processor, "do_center_crop", False) else 0
    across, down = width / scaled[0], height / scaled[1]
    wide, high = processed[1] / grid[1], processed[0] / grid[0]

    def box(row: int, column: int) -> Box:
        x, y = left + column * wide, top + row * high
        return x * across, y * down, (x + wide) * across, (y + high) * down

    return tuple(box(row, column) for row in range(grid[0]) for column in range(grid[1]))


FAMILIES: dict[str, Family] = {
    "llava": Family(
        vision="vision_tower",
        projector="multi_modal_projector",
        pixel_map=resized_and_cropped,
        prompt="USER: {image}\n{question} ASSISTANT:",
    ),
}


def family_of(config: PretrainedConfig) -> Family:
    """The row of a model.

    Raises:
        ModelError: the model's type is not in the table.
    """
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"models of type {config.model_type!r} cannot be read yet; these can: {sorted(FAMILIES)}. "
            "An unknown type is refused rather than read wrongly."
        )
    return FAMILIES[config.model_type]
