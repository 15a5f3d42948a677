"""Molmo 2."""

from __future__ import annotations

import torch

from tests.families.shared.cases import PATCH, SQUARE, TILE, of_tiny
from tests.families.shared.tiny import BEGIN, END, SEEING, TEXT, Tiny, image_types

TINY = {
    "molmo2": Tiny(
        {
            "model_type": "molmo2",
            "text_config": {
                **TEXT,
                "additional_vocab_size": 8,
                "rope_scaling_layers": [0, 2],
                "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
            },
            "vision_config": {
                **{k: v for k, v in SEEING.items() if k != "image_size"},
                "num_key_value_heads": 3,
                "head_dim": 8,
                "image_size": [28, 28],
            },
            "adapter_config": {
                "vision_feature_layer": [1, 0],
                "hidden_size": 24,
                "num_attention_heads": 3,
                "num_key_value_heads": 3,
                "head_dim": 8,
                "intermediate_size": 48,
                "text_hidden_size": 32,
            },
            "image_start_token_id": BEGIN,
            "image_end_token_id": END,
        },
        {
            "pixel_values": (2, 4, 588),
            "image_token_pooling": torch.tensor([[0, 1, 2, 3], [4, 5, -1, -1], [6, 7, -1, -1]]),
            "image_grids": torch.tensor([[1, 1, 1, 2]]),
            "image_num_crops": torch.tensor([2]),
        },
        tokens=3,
        around=((BEGIN,), (END,)),
        image_name="image_patch_id",
        more=image_types("mm_token_type_ids"),
    ),
}

CROPS = dict(SQUARE, patch_size=PATCH, max_crops=4, overlap_margins=[1, 1])

CASES = {
    "molmo2": of_tiny(TINY["molmo2"], "Molmo2ImageProcessor", CROPS, {"image_size": [TILE, TILE]}, torchvision=True),
    "molmo2, uneven": of_tiny(
        TINY["molmo2"],
        "Molmo2ImageProcessor",
        dict(CROPS, size={"height": TILE + PATCH, "width": TILE + PATCH}),
        {"image_size": [TILE + PATCH, TILE + PATCH]},
        torchvision=True,
    ),
}
