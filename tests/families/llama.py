"""Llama 3.2 Vision (Mllama) and Llama 4."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tests.families.shared.cases import PATCH, SIX_TILES, TILE, WIDTH, Case, of_tiny
from tests.families.shared.tiny import BEGIN, END, NO_HEAD_DIM, SEEING, TEXT, WIDER, Tiny


def cross_mask(ids: Tensor) -> dict[str, Tensor]:
    """Mllama: every position from the image's on sees the first of its two tiles."""
    mask = torch.zeros(1, ids.shape[1], 1, 2, dtype=torch.long)
    mask[:, :, :, 0] = 1
    return {"cross_attention_mask": mask}


TINY = {
    "mllama": Tiny(
        {
            "model_type": "mllama",
            "text_config": {
                **NO_HEAD_DIM,
                "num_hidden_layers": 4,
                "cross_attention_layers": [1, 3],
            },
            "vision_config": {
                "hidden_size": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 3,
                "image_size": 28,
                "patch_size": 14,
                "max_num_tiles": 2,
                "intermediate_layers_indices": [0, 1],
                "vision_output_dim": 72,
                "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            },
        },
        {
            "pixel_values": (1, 1, 2, 3, 28, 28),
            "aspect_ratio_ids": torch.tensor([[1]]),
            "aspect_ratio_mask": torch.tensor([[[1, 0]]]),
        },
        tokens=1,
        image_name="image_token_index",
        first=True,
        around=((), ()),
        more=cross_mask,
        promised=True,
    ),
    "llama4": Tiny(
        {
            "model_type": "llama4",
            "vision_config": {
                **SEEING,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
                "image_size": 56,
                "intermediate_size": 96,
                "num_attention_heads": 2,
            },
            "text_config": {
                **TEXT,
                "intermediate_size_mlp": 64,
                "num_local_experts": 2,
                "attention_chunk_size": 5,
                "num_hidden_layers": 4,
            },
            "boi_token_index": BEGIN,
            "eoi_token_index": END,
        },
        WIDER,
        tokens=4,
        image_name="image_token_index",
        around=((BEGIN,), (END,)),
    ),
}


def cross_attended(model: nn.Module, made: Mapping[str, Tensor], pictures: int) -> list[Tensor]:
    """The states that Mllama's text attends to, one tensor for each image."""
    return [one.flatten(0, 1) for one in model.vision_model(**made).last_hidden_state[0]]


def of_crops(model: nn.Module, made: Mapping[str, Tensor], pictures: int) -> list[Tensor]:
    """Llama 4's features, which have no split by image; the images are of one size."""
    features = model.get_image_features(made["pixel_values"].float()).last_hidden_state
    return list(features.flatten(0, -2).chunk(pictures))


LLAMA4 = {"image_size": TILE, "pixel_shuffle_ratio": 0.5}

CASES = {
    "mllama": Case(
        "Mllama",
        {
            "vision_config": {
                "hidden_size": WIDTH,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_global_layers": 1,
                "attention_heads": 2,
                "image_size": TILE,
                "patch_size": PATCH,
                "max_num_tiles": 4,
                "intermediate_layers_indices": [0],
                "vision_output_dim": 2 * WIDTH,
                "supported_aspect_ratios": [[h, w] for h in range(1, 5) for w in range(1, 5) if h * w < 5],
                "initializer_range": 0.5,
            },
            "text_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "vocab_size": 64,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "cross_attention_layers": [],
            },
            "image_token_index": 60,
        },
        "MllamaImageProcessorPil",
        {"size": {"height": TILE, "width": TILE}, "max_image_tiles": 4},
        features=cross_attended,
    ),
    "llama4": of_tiny(TINY["llama4"], "Llama4ImageProcessor", SIX_TILES, LLAMA4, features=of_crops, torchvision=True),
}
