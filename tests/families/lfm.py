"""Liquid's LFM2-VL and LFM3-VL."""

from __future__ import annotations

import torch

from tests.families.shared.cases import MERGED, PATCH, TILE, in_a_row, of_tiny
from tests.families.shared.tiny import BEGIN, END, QWEN_PIXELS, SEEING, Tiny, text

TINY = {
    "lfm2_vl": Tiny(
        {
            "model_type": "lfm2_vl",
            "vision_config": {
                **SEEING,
                "model_type": "siglip2_vision_model",
                "num_patches": 16,
                "vision_use_head": False,
            },
            "text_config": text("lfm2", layer_types=["conv", "full_attention", "full_attention"]),
        },
        {
            "pixel_values": (1, 16, 588),
            "spatial_shapes": torch.tensor([[4, 4]]),
            "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
        },
        tokens=4,
    ),
    "lfm3_vl": Tiny(
        {
            "model_type": "lfm3_vl",
            "text_config": text(
                "lfm3",
                num_hidden_layers=4,
                layer_types=["conv", "sliding_attention", "full_attention", "conv"],
                sliding_window=5,
                conv_L_cache=5,
            ),
            "vision_config": {
                **SEEING,
                "hidden_size": 32,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "layer_types": ["conv", "full_attention"],
            },
            "projector_hidden_size": 64,
            "video_token_id": 153,
        },
        QWEN_PIXELS,
        tokens=6,
        around=((BEGIN,), (END,)),
    ),
}

LARGE = {"tile_size": TILE, "encoder_patch_size": PATCH, "min_image_tokens": 8, "max_image_tokens": 32}

CASES = {
    "lfm2_vl": of_tiny(TINY["lfm2_vl"], "Lfm2VlImageProcessor", LARGE, features=in_a_row, torchvision=True),
    "lfm3_vl": of_tiny(TINY["lfm3_vl"], "Qwen2VLImageProcessorPil", MERGED),
}
