"""What transformers itself does not say about a family of vision-language models: one table.

Everything else (decoder, unembedding, chat template, image token) is asked of transformers at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image
from transformers import PretrainedConfig

from lvlm_interp.model.inputs import Box

Grid = tuple[int, int]
PixelMap = Callable[[Any, Image, tuple[int, int], Grid], tuple[Box, ...]]
"""(image processor, original image, processed (height, width), grid) → box of every token in original pixels."""


@dataclass(frozen=True)
class Family:
    """One row of the table. Every field has a default that holds for most families.

    Attributes:
        prompt: used when the processor has no chat template; `{image}`, `{question}`.
        vision: attribute path of the vision tower inside the base model, where `get_encoder("image")` does not find it.
        projector: attribute path of what maps its features to embeddings, where its name is not a usual one.
        image_token: the config's name of the id of image tokens, where it is not `image_token_id`.
        carriers: arguments of the decoder that bring the image to it where its tokens do not: hidden by leaving them
            out. Elsewhere the image is hidden by hiding its positions.
        image_inputs: the model inputs that bring such an image; without them the model runs without one.
        fills: model inputs that run along the positions and what an answer gets in them; see `Inputs.fills`.
        tiled: the first axis of the pixels counts tiles, not images.
        pixel_map: where the image processor took the pixels of each token from.
        note: what a user should know about the family.
    """

    prompt: str = "{image}\n{question}"
    vision: str | None = None
    projector: str | None = None
    image_token: str = "image_token_id"
    carriers: tuple[str, ...] = ()
    image_inputs: tuple[str, ...] = ()
    fills: Mapping[str, int | None] = field(default_factory=dict)
    tiled: bool = False
    pixel_map: PixelMap | None = None
    note: str = ""


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


USER = "USER: {image}\n{question} ASSISTANT:"
READS_QUESTION = "the Q-Former reads the question too, so image tokens carry some of it"
FAMILIES: dict[str, Family] = {
    "llava": Family(prompt=USER, pixel_map=resized_and_cropped),
    "llava_next": Family(prompt=USER, tiled=True),
    "llava_onevision": Family(tiled=True),
    "idefics3": Family(tiled=True),
    "smolvlm": Family(tiled=True),
    "qwen2_vl": Family(projector="visual.merger"),
    "qwen2_5_vl": Family(projector="visual.merger"),
    "qwen3_vl": Family(projector="visual.merger"),
    "gemma3": Family(),
    # The prompt sees itself in both directions, the answer does not: type 1.
    "paligemma": Family(prompt="{image}{question}\n", fills={"token_type_ids": 1}),
    "internvl": Family(tiled=True),
    # A masked image leaks: transformers lets a row whose whole image is masked attend to all of it.
    "mllama": Family(
        vision="vision_model.transformer",
        carriers=("cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask"),
        image_inputs=("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask"),
        fills={"cross_attention_mask": None},
        tiled=True,
    ),
    "instructblip": Family(prompt="{image}{question}", note=READS_QUESTION),
}


def family_of(config: PretrainedConfig) -> Family:
    """The row of a model; a type outside the table gets what holds for most, and must pass the checks."""
    return FAMILIES.get(config.model_type, Family())
