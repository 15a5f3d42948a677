"""IBM's Granite Vision and Granite Docling."""

from __future__ import annotations

import torch

from tests.families.shared.cases import SIX_TILES, TILE, in_a_row, of_tiny
from tests.families.shared.tiny import NO_HEAD_DIM, SEEING, Tiny, seeing

TINY = {
    "granite4_vision": Tiny(
        {
            "model_type": "granite4_vision",
            "vision_config": seeing("clip_vision_model", hidden_size=64, num_attention_heads=4, image_size=56),
            "text_config": {
                **NO_HEAD_DIM,
                "num_hidden_layers": 5,
                "logits_scaling": 2.0,
                "attention_multiplier": 0.35,
            },
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-2, 0]],
            "spatial_target_layers": [1, 2, 3, 4],
            "image_grid_pinpoints": [[56, 112], [112, 56]],
        },
        {"pixel_values": (1, 3, 3, 56, 56), "image_sizes": torch.tensor([[56, 112]])},
        tokens=14,
        image_name="image_token_index",
    ),
    "granite_docling": Tiny(
        {
            "model_type": "granite_docling",
            "text_config": {
                **NO_HEAD_DIM,
                "embedding_multiplier": 3.0,
                "logits_scaling": 2.0,
                "residual_multiplier": 0.5,
                "attention_multiplier": 0.35,
            },
            "vision_config": {
                **SEEING,
                "image_size": 112,
                "out_hidden_size": 32,
                "deepstack_visual_indexes": [0, 1],
            },
            "density_router_hidden_size": 16,
            "pad_token_id": 0,
        },
        {"pixel_values": (1, 2, 3, 112, 112), "pixel_attention_mask": torch.ones(1, 2, dtype=torch.bool)},
        tokens=8,
    ),
}

PAGE = {"image_size": TILE, "scale_factor": 2}

CASES = {
    "granite_docling": of_tiny(
        TINY["granite_docling"], "GraniteDoclingImageProcessorPil", SIX_TILES, PAGE, features=in_a_row
    ),
    "granite_docling, fine": of_tiny(
        TINY["granite_docling"],
        "GraniteDoclingImageProcessorPil",
        dict(SIX_TILES, fine_route=True),
        PAGE,
        features=in_a_row,
    ),
}
