"""Muse Glimmer and Muse Spark."""

from __future__ import annotations

from tests.families.shared.cases import PATCH, of_tiny
from tests.families.shared.tiny import QWEN_PIXELS, SEEING, TEXT, Tiny

MUSE = {
    "vision_config": {
        **SEEING,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "pos_emb_height": 2,
        "pos_emb_width": 2,
        "layer_types": ["window_attention", "full_attention"],
    },
    "out_hidden_size": 128,
    "projector_hidden_size": 48,
    "video_token_id": 153,
}
MUSE_TEXT = {
    **TEXT,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "layer_rope_theta": [10000.0, 0, 10000.0],
    "sliding_window": 5,
    "qk_scale_factor": 1.5,  # random weights under larger ones round too differently from kernel to kernel
    "final_logit_softcapping": 20.0,
    "output_multiplier": 0.7,
}

TINY = {
    "muse_glimmer": Tiny({"model_type": "muse_glimmer", "text_config": MUSE_TEXT, **MUSE}, QWEN_PIXELS, tokens=6),
    "muse_spark": Tiny(
        {
            "model_type": "muse_spark",
            "text_config": {
                **MUSE_TEXT,
                "mlp_layer_types": ["dense", "sparse", "sparse"],
                "moe_hidden_size": 24,
                "moe_intermediate_size": 16,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
            },
            "audio_config": {
                "patch_sizes": [4, 4],
                "hidden_sizes": [8, 16],
                "depths": [1, 1],
                "num_hidden_layers": 2,
                "out_hidden_size": 32,
            },
            **MUSE,
        },
        QWEN_PIXELS,
        tokens=6,
    ),
}

BUDGET = {"patch_size": PATCH, "max_image_tokens": 64, "merge_size": 2}

CASES = {
    "muse_glimmer": of_tiny(TINY["muse_glimmer"], "MuseGlimmerImageProcessor", BUDGET, torchvision=True),
    "muse_spark": of_tiny(TINY["muse_spark"], "MuseGlimmerImageProcessor", BUDGET, torchvision=True),
}
