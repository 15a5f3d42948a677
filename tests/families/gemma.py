"""Google's Gemma and PaliGemma."""

from __future__ import annotations

import torch

from tests.families.shared.cases import PATCH, SIGLIP_TILE, SQUARE, TILE, WORDS, Case, by_tiles, of_tiny
from tests.families.shared.saved import WHOLE, Saved, later
from tests.families.shared.tiny import (
    BEGIN,
    END,
    IMAGE,
    SEEING,
    TEXT,
    VOCABULARY,
    WIDER,
    Tiny,
    image_types,
    seeing,
    text,
)

GEMMA_VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "position_embedding_size": 16,
}
GEMMA_IDS = {
    "video_token_id": 153,
    "audio_token_id": 154,
    "boi_token_id": BEGIN,
    "eoi_token_id": END,
    "boa_token_id": 155,
    "eoa_token_index": 156,
}
LAYER = {"act_layer": None, "noskip": False, "out_chs": 16}
CONVOLVING = {"block_type": "uir", "dw_kernel_size_end": 0, "exp_ratio": 2.0, "se_ratio": 0.0, **LAYER}
NARROWING = {**CONVOLVING, "dw_kernel_size_start": 3, "dw_kernel_size_mid": 5, "stride": 2}
WIDENING = {**CONVOLVING, "dw_kernel_size_start": 0, "dw_kernel_size_mid": 0, "stride": 1}
LOOKING = {"block_type": "mqa", "num_heads": 2, "key_dim": 8, "value_dim": 8, "dw_kernel_size": 3, **LAYER, "stride": 1}
FIRST = {"block_type": "er", "exp_kernel_size": 3, "pw_kernel_size": 1, "force_in_chs": 0, "exp_ratio": 2.0}
MOBILENET = [  # the stages of MobileNet V5, as timm decodes them, with a block of each kind
    [{**FIRST, "se_ratio": 0.0, **LAYER, "stride": 2}],
    *([dict(NARROWING), {**LOOKING, "kv_stride": stride}, dict(WIDENING)] for stride in (2, 1)),
]
GEMMA3_CONFIG = {
    "model_type": "gemma3",
    "text_config": {
        **TEXT,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 8,
    },
    "vision_config": {**SEEING, "image_size": 56},
    "mm_tokens_per_image": 4,
    "boi_token_index": BEGIN,
    "eoi_token_index": END,
}

TINY = {
    "paligemma": Tiny(
        {
            "model_type": "paligemma",
            "text_config": text("gemma"),
            "vision_config": seeing("siglip_vision_model", projection_dim=32, vision_use_head=False),
            "projection_dim": 32,
            "hidden_size": 32,
        },
        {"pixel_values": (1, 3, 28, 28)},
        tokens=4,
        image_name="image_token_index",
        first=True,
        around=((), ()),
        more=lambda ids: {"token_type_ids": torch.zeros_like(ids)},
        promised=True,
    ),
    "gemma3": Tiny(
        GEMMA3_CONFIG,
        {"pixel_values": (1, 3, 56, 56)},
        tokens=4,
        around=((BEGIN,), (END,)),
        image_name="image_token_index",
        more=image_types("token_type_ids"),
        promised=True,
    ),
    "shieldgemma2": Tiny(
        {
            **GEMMA3_CONFIG,
            "model_type": "shieldgemma2",
            "text_config": text("gemma3_text", sliding_window=5),
        },
        WIDER,
        tokens=4,
        around=((BEGIN,), (END,)),
        image_name="image_token_index",
        more=image_types("token_type_ids"),
    ),
    "gemma3n": Tiny(
        {
            "model_type": "gemma3n",
            "text_config": {
                **TEXT,
                "num_hidden_layers": 4,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "sliding_window": 5,
                "num_kv_shared_layers": 2,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": IMAGE,
                "altup_num_inputs": 3,
                "laurel_rank": 4,
                "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0],
                "final_logit_softcapping": 30.0,
            },
            "vision_config": {
                "architecture": "mobilenetv5_300m_enc",
                "model_args": {"block_args": MOBILENET, "stem_size": 8, "msfa_output_resolution": 2},
                "vocab_offset": IMAGE,
                "vocab_size": 10,
            },
            "audio_config": {
                "hidden_size": 16,
                "conf_num_attention_heads": 2,
                "conf_num_hidden_layers": 1,
                "sscp_conv_channel_size": [4, 4],
                "vocab_offset": 160,
                "vocab_size": 8,
            },
            "vision_soft_tokens_per_image": 4,
            "audio_token_id": 161,
            "boi_token_id": BEGIN,
            "eoi_token_id": END,
        },
        {"pixel_values": (1, 3, 64, 64)},
        tokens=4,
        around=((BEGIN,), (END,)),
        more=image_types("token_type_ids"),
        timm=True,
    ),
    "gemma4": Tiny(
        {
            "model_type": "gemma4",
            "text_config": {
                **TEXT,
                "num_hidden_layers": 4,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "sliding_window": 5,
                "global_head_dim": 16,
                "num_global_key_value_heads": 1,
                "attention_k_eq_v": True,
                "num_kv_shared_layers": 2,
                "use_double_wide_mlp": True,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": VOCABULARY,
                "use_bidirectional_attention": "vision",
                "enable_moe_block": True,
                "num_experts": 3,
                "top_k_experts": 2,
                "moe_intermediate_size": 16,
                "final_logit_softcapping": 30.0,
            },
            "vision_config": {**GEMMA_VISION, "standardize": True, "use_clipped_linears": True},
            **GEMMA_IDS,
        },
        {
            "pixel_values": (1, 24, 3 * 4 * 4),
            "image_position_ids": torch.cartesian_prod(*map(torch.arange, (6, 4)))[None],
        },
        tokens=6,
        around=((BEGIN,), (END,)),
        more=image_types("mm_token_type_ids"),
    ),
    "gemma4_unified": Tiny(
        {
            "model_type": "gemma4_unified",
            "text_config": {
                **TEXT,
                "num_hidden_layers": 4,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "sliding_window": 5,
                "global_head_dim": 16,
                "num_global_key_value_heads": 1,
                "attention_k_eq_v": True,
                "num_kv_shared_layers": 2,
                "use_double_wide_mlp": True,
                "final_logit_softcapping": 30.0,
            },
            "vision_config": {
                "patch_size": 2,
                "pooling_kernel_size": 2,
                "mm_embed_dim": 24,
                "mm_posemb_size": 16,
                "output_proj_dims": 24,
            },
            **GEMMA_IDS,
        },
        {
            "pixel_values": (1, 6, 3 * 4 * 4),
            "image_position_ids": torch.cartesian_prod(*map(torch.arange, (3, 2)))[None],
        },
        tokens=6,
        around=((BEGIN,), (END,)),
        more=image_types("mm_token_type_ids"),
    ),
}

SOFT = {"patch_size": PATCH, "max_soft_tokens": 70, "pooling_kernel_size": 2}

CASES = {
    "paligemma": Case(
        "PaliGemma",
        {
            "vision_config": dict(SIGLIP_TILE, projection_dim=16),
            "text_config": dict(WORDS, model_type="gemma"),
            "image_token_index": 60,
            "projection_dim": 16,
        },
        "SiglipImageProcessorPil",
        {"size": {"height": TILE, "width": TILE}},
    ),
    "gemma3": Case(
        "Gemma3",
        {
            "vision_config": SIGLIP_TILE,
            "text_config": dict(WORDS, model_type="gemma3_text", query_pre_attn_scalar=8),
            "mm_tokens_per_image": 9,
            "image_token_index": 60,
        },
        "Gemma3ImageProcessorPil",
        {"size": {"height": TILE, "width": TILE}},
        features=by_tiles,
    ),
    "gemma3, pan and scan": Case(
        "Gemma3",
        {
            "vision_config": SIGLIP_TILE,
            "text_config": dict(WORDS, model_type="gemma3_text", query_pre_attn_scalar=8),
            "mm_tokens_per_image": 9,
            "image_token_index": 60,
        },
        "Gemma3ImageProcessorPil",
        {"size": {"height": TILE, "width": TILE}},
        images_kwargs={
            "do_pan_and_scan": True,
            "pan_and_scan_min_crop_size": 24,
            "pan_and_scan_max_num_crops": 4,
            "pan_and_scan_min_ratio_to_activate": 1.2,
        },
        features=by_tiles,
    ),
    "gemma4": of_tiny(TINY["gemma4"], "Gemma4ImageProcessorPil", SOFT, {"position_embedding_size": 64}),
    "shieldgemma2": of_tiny(
        TINY["shieldgemma2"], "Gemma3ImageProcessorPil", SQUARE, {"image_size": TILE}, features=by_tiles
    ),
    "gemma4_unified": of_tiny(
        TINY["gemma4_unified"], "Gemma4UnifiedImageProcessor", SOFT, {"mm_posemb_size": 64}, torchvision=True
    ),
}

SAVED = {
    "gemma3": Saved(
        "Gemma3Processor", later("Gemma3ImageProcessorPil", **WHOLE), {"image_seq_length": 4}, marker="<begin>"
    )
}
