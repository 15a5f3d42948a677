"""Inkling: tiny models, which do not pass the checks."""

from __future__ import annotations

import torch

from tests.families.shared.tiny import BEGIN, TEXT, VOCABULARY, Tiny

INKLING_TEXT = {
    **TEXT,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
    "sliding_window_size": 5,
    "d_rel": 4,
    "rel_extent": 16,
    "log_scaling_n_floor": 8,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
CONVOLVED = "short convolutions stand between attention and the residual stream, and run over rows, hidden or not"

TINY = {
    "inkling_mm_model": Tiny(
        {
            "model_type": "inkling_mm_model",
            "text_config": {
                **INKLING_TEXT,
                "mlp_layer_types": ["dense", "sparse", "sparse"],
                "n_shared_experts": 1,
                "logits_mup_width_multiplier": 2.0,
            },
            "vision_config": {"patch_size": 4, "num_hidden_layers": 4},
            "audio_config": {"n_mel_bins": 4, "mel_vocab_size": 8},
            "audio_token_id": 154,
            "image_bos_token_id": BEGIN,
            "audio_bos_token_id": 155,
        },
        {"pixel_values": (6, 2, 4, 4, 3)},
        tokens=6,
        around=((BEGIN,), ()),
        failing=CONVOLVED + "; and distances are counted in rows, not in positions",
    ),
    "inkling2": Tiny(
        {
            "model_type": "inkling2",
            "text_config": {
                **INKLING_TEXT,
                "n_layers_per_attn_res_block": 2,
                "unpadded_vocab_size": VOCABULARY,
            },
            "vision_config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "patch_size": 4,
                "posemb_grid_size": 4,
                "projection_hidden_dim": 48,
                "text_hidden_size": 32,
            },
        },
        {"pixel_values": (6, 8, 8, 3), "image_grid_thw": torch.tensor([[1, 2, 3]])},
        tokens=6,
        kernel="eager",
        failing=CONVOLVED + "; distances are counted in rows, not in positions; and what is unembedded mixes the "
        "outputs of several blocks, so that no lens is its logits",
    ),
}
