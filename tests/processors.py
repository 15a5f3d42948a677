"""What image processors make of pictures, and the features that tiny vision towers make of it, in many families."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers.utils import is_torchvision_available

from tests.families import MODEL_TYPES, collected, lively
from tests.families.shared.cases import Case
from tests.families.shared.tiny import need

SILENCED = re.compile(r"(attn|attention|layers\.\d+\.conv)\.(out_proj|o_proj|proj|projection_layer)\.")
"""Output projections of attention in vision towers, and of the layers of LFM3-VL that convolve in its place."""
TORCHVISION = is_torchvision_available()
ROWS: dict[str, Case] = collected("CASES")
CASES = {name: case for name, case in ROWS.items() if TORCHVISION or not case.torchvision}
WITH_TORCHVISION = {case.config for case in ROWS.values() if case.torchvision}
"""Types whose image processors run with torchvision only."""


@dataclass(frozen=True)
class Processor:
    """What the package asks of a processor."""

    image_processor: Any
    images_kwargs: Mapping[str, Any]


@cache
def tower(name: str) -> nn.Module:
    """The family's model with random weights, its vision attention silenced."""
    case = CASES[name]
    need(case.config)
    torch.manual_seed(0)
    if case.config in MODEL_TYPES:
        config = transformers.AutoConfig.for_model(case.config, **copy.deepcopy(dict(case.options)))
        kind = getattr(transformers, MODEL_TYPES[case.config])
        model = lively(kind._from_config(config, attn_implementation="eager")).base_model.eval()
    else:
        config = getattr(transformers, f"{case.config}Config")(**copy.deepcopy(dict(case.options)))
        model = getattr(transformers, f"{case.config}Model")._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "language_model" in path:
                continue
            if SILENCED.search(path):
                weight.zero_()
            elif not weight.any():  # weights that start at zero would hide what changes
                weight.normal_(0, 0.1)
    return model


def processed(name: str, pictures: list[Image.Image]) -> dict[str, Tensor]:
    """What the image processor makes of pictures, as the model takes it."""
    case = CASES[name]
    given = [pictures] if case.nested else pictures
    made = dict(case.image_processor(given, return_tensors="pt", **case.images_kwargs))
    unused = (
        "num_tiles",
        "rows",
        "cols",
        "grids",
        "num_patches_per_image",
        "num_soft_tokens_per_image",
        "aspect_ratios",
    )
    return {k: v for k, v in case.finish(case.image_processor, pictures, made).items() if k not in unused}


@torch.no_grad()
def features(name: str, pictures: list[Image.Image]) -> list[Tensor]:
    """Image features in the order of the image tokens, `[token, hidden]` for each picture of one prompt."""
    return CASES[name].features(tower(name), processed(name, pictures), len(pictures))


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Noise, so that no two pixels look alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)
