"""DeepSeek's VL and OCR models, and what shares their processors or towers: Janus, Unlimited-OCR."""

from __future__ import annotations

import torch

from tests.families.shared.cases import SQUARE, TILE, of_tiny
from tests.families.shared.tiny import EXPERTS, ONE, SAM, SEEING, SIGLIP, TEXT, Tiny, text

SAM_VISION = {**SAM, "downsample_channels": [16, 24]}

TINY = {
    "deepseek_vl": Tiny(
        {"model_type": "deepseek_vl", "vision_config": SIGLIP, "text_config": text("llama")}, ONE, tokens=4
    ),
    "deepseek_vl_hybrid": Tiny(
        {
            "model_type": "deepseek_vl_hybrid",
            "vision_config": SIGLIP,
            "high_res_vision_config": {
                "model_type": "sam_vision_model",
                "hidden_size": 24,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "image_size": 32,
                "patch_size": 16,
                "window_size": 1,
                "global_attn_indexes": [1],
                "mlp_dim": 48,
            },
            "text_config": text("llama"),
        },
        {**ONE, "high_res_pixel_values": (1, 3, 32, 32)},
        tokens=4,
        kernel="eager",
    ),
    "janus": Tiny(
        {
            "model_type": "janus",
            "vision_config": {**SEEING, "projection_dim": 32, "num_image_tokens": 4, "mlp_ratio": 2.0},
            "text_config": text("llama"),
            "vq_config": {"base_channels": 32, "num_embeddings": 16, "num_patches": 2, "projection_dim": 32},
        },
        ONE,
        tokens=4,
    ),
    "deepseek_ocr2": Tiny(
        {
            "model_type": "deepseek_ocr2",
            "vision_config": {
                "sam_config": SAM_VISION,
                "encoder_config": {
                    "hidden_size": 24,
                    "intermediate_size": 48,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 3,
                    "num_key_value_heads": 1,
                },
            },
            "text_config": {
                **TEXT,
                "max_position_embeddings": 512,
                "mlp_layer_types": ["dense", "sparse", "sparse"],
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                **EXPERTS,
            },
        },
        {
            "pixel_values": (1, 3, 128, 128),
            "pixel_values_local": (1, 3, 128, 128),
            "num_local_patches": torch.tensor([1]),
        },
    ),
    "unlimited_ocr": Tiny(
        {
            "model_type": "unlimited_ocr",
            "vision_config": {
                "sam_config": SAM_VISION,
                "encoder_config": {**SEEING, "num_hidden_layers": 3},
            },
            "text_config": {
                **TEXT,
                "num_key_value_heads": 4,  # its eager attention repeats no heads
                "mlp_layer_types": ["dense", "sparse", "sparse"],
                "sliding_window": 5,
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                **EXPERTS,
            },
        },
        {"pixel_values": (1, 3, 128, 128)},
    ),
}


CASES = {
    "janus": of_tiny(TINY["janus"], "JanusImageProcessorPil", SQUARE, {"image_size": TILE}),
    "deepseek_vl": of_tiny(TINY["deepseek_vl"], "DeepseekVLImageProcessorPil", SQUARE, {"image_size": TILE}),
}
