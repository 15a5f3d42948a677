"""Cohere's Aya Vision, Command A Vision and Compass."""

from __future__ import annotations

import torch

from tests.families.shared.cases import IN_TILES, MERGED, SIX_TILES, TILE, by_tiles, of_tiny
from tests.families.shared.tiny import QWEN, QWEN3_VISION, QWEN_IDS, SIGLIP_56, TEXT, WIDER, Tiny, text

TINY = {
    "aya_vision": Tiny(
        {"model_type": "aya_vision", "vision_config": SIGLIP_56, "text_config": text("cohere2", sliding_window=5)},
        WIDER,
        tokens=4,
        image_name="image_token_index",
    ),
    "cohere2_vision": Tiny(
        {
            "model_type": "cohere2_vision",
            "vision_config": SIGLIP_56,
            "text_config": text("cohere2", sliding_window=5),
            "alignment_intermediate_size": 32,
        },
        {**WIDER, "num_patches": torch.tensor([1])},
        tokens=4,
    ),
    "cohere_compass": Tiny(
        {
            "model_type": "cohere_compass",
            "text_config": {
                **TEXT,
                "logit_scale": 0.5,
                "sliding_window": 5,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
                    "full_attention": None,
                },
            },
            "vision_config": QWEN3_VISION,
            **QWEN_IDS,
        },
        **QWEN,
    ),
}


CASES = {
    "aya_vision": of_tiny(TINY["aya_vision"], "GotOcr2ImageProcessorPil", SIX_TILES, {"image_size": TILE}, **IN_TILES),
    "cohere2_vision": of_tiny(
        TINY["cohere2_vision"],
        "Cohere2VisionImageProcessor",
        SIX_TILES,
        {"image_size": TILE},
        features=by_tiles,
        torchvision=True,
    ),
    "cohere_compass": of_tiny(TINY["cohere_compass"], "CohereCompassImageProcessorPil", MERGED),
}
