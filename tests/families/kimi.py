"""Kimi K2.5."""

from __future__ import annotations

import torch

from tests.families.shared.cases import PATCH, of_tiny
from tests.families.shared.tiny import BEGIN, END, EXPERTS, NO_HEAD_DIM, Tiny

TINY = {
    "kimi_k25": Tiny(
        {
            "model_type": "kimi_k25",
            "text_config": {
                **NO_HEAD_DIM,
                "model_type": "deepseek_v3",
                "num_key_value_heads": 4,
                "q_lora_rank": 16,
                "kv_lora_rank": 16,
                "qk_rope_head_dim": 4,
                "qk_nope_head_dim": 4,
                "v_head_dim": 8,
                "n_routed_experts": 2,
                "n_group": 1,
                "topk_group": 1,
                "first_k_dense_replace": 1,
                **EXPERTS,
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": 14,
                "pos_emb_height": 8,
                "pos_emb_width": 8,
            },
            "projection_hidden_size": 32,
            "video_token_id": 153,
            "vision_start_token_id": BEGIN,
            "vision_end_token_id": END,
        },
        {"pixel_values": (24, 3, 14, 14), "image_grid_thw": torch.tensor([[1, 4, 6]])},
        tokens=6,
        around=((BEGIN,), (END,)),
    ),
}

KIMI = {"patch_size": PATCH, "merge_size": 2, "max_patches": 200, "size": {"max_height": 30, "max_width": 30}}

CASES = {
    "kimi_k25": of_tiny(TINY["kimi_k25"], "Kimi_K25ImageProcessor", KIMI, torchvision=True),
}
