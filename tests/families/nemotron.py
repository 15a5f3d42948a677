"""NVIDIA's Nemotron-H Omni and Cosmos 3."""

from __future__ import annotations

import torch

from tests.families.shared.cases import MERGED, PATCH, of_tiny
from tests.families.shared.tiny import (
    BEGIN,
    END,
    EXPERTS,
    FLAT_PIXELS,
    MROPE3,
    QWEN,
    QWEN3_VISION,
    QWEN_IDS,
    SEEING,
    TEXT,
    Tiny,
    image_types,
)

TINY = {
    "nemotron_h_omni": Tiny(
        {
            "model_type": "nemotron_h_omni",
            "text_config": {
                **{k: v for k, v in TEXT.items() if k != "num_hidden_layers"},
                "layers_block_type": ["linear_attention", "full_attention", "mlp", "linear_attention", "moe"],
                "ssm_state_size": 8,
                "mamba_num_heads": 4,
                "mamba_head_dim": 8,
                "n_groups": 2,
                "chunk_size": 8,
                "n_routed_experts": 4,
                "n_group": 2,
                "topk_group": 1,
                "moe_shared_expert_intermediate_size": 32,
                "moe_latent_size": 16,
                **EXPERTS,
            },
            "vision_config": {
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "mlp_ratio": 2.0,
                "patch_size": 14,
                "max_img_size": 84,
                "num_cls_tokens": 2,
                "num_registers": 1,
                "video_temporal_patch_size": 2,
            },
            "audio_config": None,
            "vision_hidden_size": 24,
            "projector_hidden_size": 64,
            "video_token_id": 153,
        },
        {"pixel_values": (24, 3 * 14 * 14), "image_grid_hw": torch.tensor([[4, 6]])},
        tokens=6,
        around=((BEGIN,), (END,)),
    ),
    "cosmos3_edge": Tiny(
        {
            "model_type": "cosmos3_edge",
            "text_config": {
                **TEXT,
                **MROPE3,
            },
            "vision_config": {**SEEING, "num_patches": 16},
            "projector_hidden_size": 64,
            **QWEN_IDS,
        },
        FLAT_PIXELS,
        tokens=6,
        around=((BEGIN,), (END,)),
        more=image_types("mm_token_type_ids"),
    ),
    "cosmos3_omni": Tiny(
        {
            **QWEN_IDS,
            "model_type": "cosmos3_omni",
            "text_config": {**TEXT, **MROPE3, "model_type": "qwen3_vl_text"},
            "vision_config": {**QWEN3_VISION, "model_type": "qwen3_vl_vision"},
        },
        **QWEN,
    ),
}

NEMOTRON = {"patch_size": PATCH, "min_num_patches": 32, "max_num_patches": 256}

CASES = {
    "nemotron_h_omni": of_tiny(
        TINY["nemotron_h_omni"], "NemotronH_Omni_Reasoning_V3ImageProcessor", NEMOTRON, torchvision=True
    ),
    "cosmos3_omni": of_tiny(TINY["cosmos3_omni"], "Qwen2VLImageProcessorPil", MERGED),
    "cosmos3_edge": of_tiny(TINY["cosmos3_edge"], "Cosmos3EdgeImageProcessorPil", MERGED),
}
