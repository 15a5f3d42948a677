"""HyperCLOVA X."""

from __future__ import annotations

from tests.families.shared.cases import MERGED, of_tiny
from tests.families.shared.tiny import QWEN2_5_VISION, QWEN_PIXELS, Tiny, text

TINY = {
    "hyperclovax_vision_v2": Tiny(
        {
            "model_type": "hyperclovax_vision_v2",
            "text_config": text("hyperclovax", logits_scaling=2.0, residual_multiplier=0.5),
            "vision_config": {**QWEN2_5_VISION, "model_type": "qwen2_5_vl_vision"},
            "video_token_id": 153,
        },
        QWEN_PIXELS,
        tokens=6,
    ),
}

CASES = {"hyperclovax_vision_v2": of_tiny(TINY["hyperclovax_vision_v2"], "Qwen2VLImageProcessorPil", MERGED)}
