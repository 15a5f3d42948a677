"""Mistral 3 and others with the vision tower of Pixtral."""

from __future__ import annotations

import torch

from tests.families.shared.cases import PATCH, TOWER, WIDTH, WORDS, Case, of_tiny
from tests.families.shared.tiny import EXPERTS, LATENT, NO_HEAD_DIM, SEEING, WIDER, Tiny, text

PIXTRAL = {**SEEING, "model_type": "pixtral", "num_attention_heads": 2, "hidden_size": 32, "image_size": 56}
SIZED = {**WIDER, "image_sizes": torch.tensor([[56, 56]])}

TINY = {
    "mistral3": Tiny(
        {"model_type": "mistral3", "vision_config": PIXTRAL, "text_config": text("mistral"), "spatial_merge_size": 2},
        SIZED,
        tokens=4,
        image_name="image_token_index",
    ),
    "mistral_large4": Tiny(
        {
            "model_type": "mistral_large4",
            "vision_config": PIXTRAL,
            "text_config": {
                **NO_HEAD_DIM,
                "model_type": "mistral_large4_text",
                "num_hidden_layers": 4,
                "num_key_value_heads": 4,
                **LATENT,
                **EXPERTS,
                "n_routed_experts": 2,
                "indexer_types": ["full", "shared", "full", "full"],
                "index_topk": 6,
                "index_head_dim": 8,
                "index_n_heads": 16,
                "no_rope_layers": [1, 0, 1, 1],
                "kv_source_layers": [0, 1, 2, 2],
                "final_logit_softcapping": 5.0,
            },
        },
        SIZED,
        tokens=4,
        image_name="image_token_index",
    ),
    "lighton_ocr": Tiny(
        {"model_type": "lighton_ocr", "vision_config": PIXTRAL, "text_config": text("qwen3"), "spatial_merge_size": 2},
        SIZED,
        tokens=4,
    ),
}

PIXTRAL_64 = {"image_size": 64, "hidden_size": WIDTH, "head_dim": 8}

CASES = {
    "mistral3": Case(
        "Mistral3",
        {
            "vision_config": dict(TOWER, model_type="pixtral", image_size=64, head_dim=8),
            "text_config": WORDS,
            "image_token_index": 60,
            "spatial_merge_size": 2,
        },
        "PixtralImageProcessorPil",
        {"size": {"longest_edge": 64}, "patch_size": 2 * PATCH},
    ),
}
CASES |= {
    name: of_tiny(TINY[name], "PixtralImageProcessorPil", CASES["mistral3"].settings, PIXTRAL_64)
    for name in ("lighton_ocr", "mistral_large4")
}
