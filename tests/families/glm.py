"""GLM-4V and what came after it."""

from __future__ import annotations

from tests.families.shared.cases import MERGED, PATCH, of_tiny
from tests.families.shared.tiny import (
    BEGIN,
    END,
    EXPERTS,
    MROPE,
    NO_HEAD_DIM,
    QWEN,
    QWEN_PIXELS,
    QWEN_VISION,
    TEXT,
    Tiny,
    text,
)

GLM_VISION = {**QWEN_VISION, "image_size": 56, "out_hidden_size": 32, "intermediate_size": 64}
GLM_IDS = {
    "video_token_id": 153,
    "image_start_token_id": BEGIN,
    "image_end_token_id": END,
    "video_start_token_id": 154,
    "video_end_token_id": 155,
}

TINY = {
    "glm4v": Tiny(
        {"model_type": "glm4v", "text_config": {**TEXT, **MROPE}, "vision_config": GLM_VISION, **GLM_IDS}, **QWEN
    ),
    "glm4v_moe": Tiny(
        {
            "model_type": "glm4v_moe",
            "text_config": {**TEXT, **MROPE, **EXPERTS, "head_dim": 16, "n_routed_experts": 2, "n_shared_experts": 1},
            "vision_config": GLM_VISION,
            **GLM_IDS,
        },
        **QWEN,
    ),
    "glm46v": Tiny(
        {
            "model_type": "glm46v",
            "text_config": text("glm4v_text", **MROPE),
            "vision_config": {**GLM_VISION, "model_type": "glm4v_vision"},
            **GLM_IDS,
        },
        **QWEN,
    ),
    "glm_ocr": Tiny(
        {"model_type": "glm_ocr", "text_config": {**TEXT, **MROPE}, "vision_config": GLM_VISION, **GLM_IDS}, **QWEN
    ),
    "glmga": Tiny(
        {
            "model_type": "glmga",
            "text_config": text("glm4v_text", **MROPE),
            "vision_config": {**GLM_VISION, "model_type": "glm4v_vision"},
            **GLM_IDS,
        },
        **QWEN,
    ),
    "glm5_next": Tiny(
        {
            "model_type": "glm5_next",
            "text_config": {
                **NO_HEAD_DIM,
                "num_hidden_layers": 4,
                "num_key_value_heads": 4,
                "moe_intermediate_size": 16,
                "n_routed_experts": 2,
                "num_experts_per_tok": 1,
                "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
                "layer_types": ["linear_attention", "indexed_attention", "indexed_attention", "linear_attention"],
                "indexer_types": ["full", "full", "shared", "full"],
                "linear_head_dim": 8,
                "linear_num_heads": 4,
                "kv_lora_rank": 16,
                "q_lora_rank": 16,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
                "index_topk": 4,
                "index_kpool": 2,
                "index_head_dim": 8,
                "index_n_heads": 8,  # with few, scores tie at 0, and who is chosen depends on how many rows follow
                "hc_mult": 2,
            },
            "vision_config": {**GLM_VISION, "projection_intermediate_size": 64},
            **GLM_IDS,
        },
        QWEN_PIXELS,
        tokens=6,
        around=((BEGIN,), (END,)),
    ),
}

GLM5 = {"patch_size": PATCH, "merge_size": 2, "min_image_tokens": 8, "max_image_tokens": 64}

CASES = {
    "glm5_next": of_tiny(TINY["glm5_next"], "Glm5NextImageProcessorPil", GLM5),
}
PROCESSORS = {
    **dict.fromkeys(("glm4v", "glm4v_moe"), "Glm4vImageProcessorPil"),
    **dict.fromkeys(("glm46v", "glm_ocr"), "Glm46VImageProcessorPil"),
    "glmga": "GlmgaImageProcessorPil",
}
CASES |= {name: of_tiny(TINY[name], processor, MERGED) for name, processor in PROCESSORS.items()}
