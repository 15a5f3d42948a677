"""A row for an image processor with a tiny vision tower, so that image tokens can be traced back to pixels.

The towers are transformers' own, with random weights and the output of every attention layer set to zero: what one
patch shows then changes the features that are made of it, and no others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tests.families.shared.tiny import Tiny, named, need

PATCH = 4
TILE = 24
WIDTH = 16
TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": PATCH,
    "initializer_range": 0.5,
}
WORDS = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}
CLIP_TILE = dict(TOWER, model_type="clip_vision_model")
SIGLIP_TILE = dict(TOWER, model_type="siglip_vision_model", vision_use_head=False)
NEAREST = {"resample": Image.Resampling.NEAREST}


def by_image(model: nn.Module, made: Mapping[str, Tensor], pictures: int) -> list[Tensor]:
    """Features of models that keep images apart; in older releases of transformers, some do not where there is one."""
    found = model.get_image_features(**made).pooler_output
    if isinstance(found, Tensor) and found.ndim == 2:
        counts = [1] if pictures == 1 else merged_patches(made)
        return list(found.split([len(found) * count // sum(counts) for count in counts]))
    return [one.flatten(0, -2) for one in found]


def merged_patches(made: Mapping[str, Tensor]) -> list[int]:
    """How many patches each of several pictures has, as far as model inputs tell."""
    if "image_grid_thw" in made:
        return [int(count) for count in made["image_grid_thw"].prod(-1)]
    return [int(count) for count in (made["image_position_ids"][..., 0] >= 0).sum(-1)]


def by_tiles(model: nn.Module, made: Mapping[str, Tensor], pictures: int) -> list[Tensor]:
    """Features of models that take the tiles of all images as a batch, split by image."""
    made = dict(made)
    tiles = (
        [int(n) for n in made.pop("num_patches")]
        if "num_patches" in made
        else [1 + int(n) for n in made.pop("num_crops")]
    )
    features = model.get_image_features(**made).pooler_output
    return [one.flatten(0, -2) for one in features.split(tiles)]


def in_a_row(model: nn.Module, made: Mapping[str, Tensor], pictures: int) -> list[Tensor]:
    """Features of models that take the tiles of all images of a sample in a row; the images are of one size."""
    return list(torch.cat(list(model.get_image_features(**made).pooler_output)).chunk(pictures))


MERGED = {"patch_size": PATCH, "merge_size": 2, "size": {"shortest_edge": 32**2, "longest_edge": 80**2}}
SQUARE = {"size": {"height": TILE, "width": TILE}}
SIX_TILES = dict(SQUARE, max_patches=6)
IN_TILES = {"features": by_tiles, "images_kwargs": {"crop_to_patches": True}}


def unchanged(processor: Any, given: list[Image.Image], made: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the image processor made is what the model takes."""
    return made


@dataclass(frozen=True)
class Case:
    """One family's image processor and model.

    Attributes:
        config: name of the model's config class, without "Config"; or a type of `tests.families`, from there.
        options: of that config.
        processor: what transformers calls the image processor's class, or what makes another.
        settings: of the image processor.
        nested: the images are given by sample, as LLaVA-OneVision wants it of several images.
        reach: pixels of a first resize that a resize of its outcome reads away from where it should: half a pixel for
            each resize after the first, since the filter is the nearest pixel. Of one resize, none.
        images_kwargs: what the family's processor adds to the image processor's settings.
        features: the method that makes image tokens.
        finish: what the family's processor does to what its image processor made.
        torchvision: the image processor runs with torchvision only, and so does the case.
    """

    config: str
    options: Mapping[str, Any]
    processor: str | Callable[[], type]
    settings: Mapping[str, Any]
    nested: bool = False
    reach: float = 0.0
    images_kwargs: Mapping[str, Any] = field(default_factory=dict)
    features: Callable[[nn.Module, Mapping[str, Tensor], int], list[Tensor]] = by_image
    finish: Callable[[Any, list[Image.Image], Mapping[str, Any]], Mapping[str, Any]] = unchanged
    torchvision: bool = False

    @property
    def image_processor(self) -> Any:
        need(self.config)
        kind = named(self.processor) if isinstance(self.processor, str) else self.processor()
        return kind(**NEAREST, **self.settings)


def of_tiny(
    row: Tiny, processor: str | Callable[[], type], settings: Mapping[str, Any], vision: Any = None, **more: Any
) -> Case:
    """The tiny model of a family, with small patches."""
    options: dict[str, Any] = copy.deepcopy(dict(row.config))
    options.get("vision_config", options).update({"patch_size": PATCH, **(vision or {})})
    return Case(options.pop("model_type"), options, processor, settings, **more)
