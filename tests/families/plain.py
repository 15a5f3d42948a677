"""Families of which transformers says all, but for how they cut pictures."""

from __future__ import annotations

import torch

from tests.families.shared.cases import MERGED, of_tiny
from tests.families.shared.tiny import (
    BEGIN,
    END,
    EXPERTS,
    FLAT_PIXELS,
    LATENT,
    MROPE,
    NO_HEAD_DIM,
    ONE,
    QWEN_PIXELS,
    QWEN_VISION,
    SAM,
    SEEING,
    TEXT,
    Tiny,
    image_types,
    text,
)

TINY = {
    "aria": Tiny(
        {
            "model_type": "aria",
            "vision_config": {**SEEING, "model_type": "idefics3_vision"},
            "text_config": text("aria_text", moe_num_experts=2, moe_topk=1, moe_num_shared_experts=1),
            "projector_patch_to_query_dict": {4: 4},
        },
        ONE,
        tokens=4,
        image_name="image_token_index",
    ),
    "dots3_note": Tiny(
        {
            "model_type": "dots3_note",
            "text_config": {
                **NO_HEAD_DIM,
                "model_type": "dots3_note_text",
                "num_key_value_heads": 4,
                "head_dim": 8,
                **LATENT,
                **EXPERTS,
                "q_lora_rank": 16,
                "n_routed_experts": 2,
                "shared_experts_intermediate_size": 16,
                "layer_types": ["indexed_attention", "sliding_attention", "full_attention"],
                "per_layer_config": {
                    1: {
                        "num_attention_heads": 2,
                        "num_key_value_heads": 2,
                        "q_lora_rank": 8,
                        "kv_lora_rank": 8,
                        "head_dim": 16,
                        "qk_nope_head_dim": 8,
                        "qk_rope_head_dim": 8,
                        "v_head_dim": 8,
                    }
                },
                "sliding_window": 5,
                "index_topk": 6,
                "index_head_dim": 8,
                "index_n_heads": 16,
            },
            "vision_config": {
                "hidden_size": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "patch_size": 14,
                "moe_intermediate_size": 16,
                "mlp_layer_types": ["dense", "sparse"],
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "adapter_in_dim": 24,
                "adapter_out_dim": 32,
            },
            "audio_config": {
                "hidden_size": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 3,
                "feature_size": 16,
                "downsample_hidden_size": 8,
                "adapter_input_size": 24,
                "adapter_out_dim": 32,
            },
            "video_token_id": 153,
            "audio_token_id": 154,
        },
        FLAT_PIXELS,
        tokens=6,
        around=((BEGIN,), (END,)),
    ),
    "ernie4_5_vl_moe": Tiny(
        {
            "model_type": "ernie4_5_vl_moe",
            "text_config": {
                **TEXT,
                **MROPE,
                "moe_intermediate_size": [16, 16],
                "moe_k": 1,
                "moe_num_experts": 2,
                "moe_num_shared_experts": 1,
                "mlp_layer_types": ["dense", "sparse", "sparse"],
            },
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 4,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_merge_size": 2,
            },
            "image_start_token_id": BEGIN,
            "image_end_token_id": END,
            "video_token_id": 153,
        },
        FLAT_PIXELS,
        tokens=6,
        around=((BEGIN,), (END,)),
        more=image_types("mm_token_type_ids"),
    ),
    "exaone4_5": Tiny(
        {
            "model_type": "exaone4_5",
            "text_config": text("exaone4", sliding_window=5),
            "vision_config": {
                **QWEN_VISION,
                "intermediate_size": 64,
                "out_hidden_size": 32,
                "window_size": 56,
                "fullatt_block_indexes": [1],
                "num_key_value_heads": 2,
            },
            "video_token_id": 153,
        },
        QWEN_PIXELS,
        tokens=6,
    ),
    "got_ocr2": Tiny(
        {
            "model_type": "got_ocr2",
            "text_config": text("qwen2"),
            "vision_config": SAM,
            "image_seq_length": 4,
        },
        {"pixel_values": (1, 3, 128, 128)},
        image_name="image_token_index",
        kernel="eager",
    ),
    "paddleocr_vl": Tiny(
        {
            "model_type": "paddleocr_vl",
            "text_config": {**TEXT, **MROPE},
            "vision_config": {**SEEING, "hidden_size": 32, "num_attention_heads": 4, "spatial_merge_size": 2},
            "video_token_id": 153,
            "vision_start_token_id": BEGIN,
            "vision_end_token_id": END,
        },
        {"pixel_values": (24, 3, 14, 14), "image_grid_thw": torch.tensor([[1, 4, 6]])},
        tokens=6,
        around=((BEGIN,), (END,)),
        more=image_types("mm_token_type_ids"),
    ),
    "perception_lm": Tiny(
        {
            "model_type": "perception_lm",
            "text_config": text("llama"),
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_lang_large_patch14_448",
                "model_args": {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 56, "ref_feat_shape": [4, 4]},
            },
            "projector_pooling_ratio": 2,
            "video_token_id": 153,
        },
        {"pixel_values": (1, 2, 3, 56, 56)},
        tokens=8,
        timm=True,
    ),
    "pp_chart2table": Tiny(
        {
            "model_type": "pp_chart2table",
            "text_config": text("qwen2"),
            "vision_config": {
                "model_type": "got_ocr2",
                "hidden_size": 24,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "image_size": 128,
                "patch_size": 16,
                "window_size": 4,
                "global_attn_indexes": [1],
                "mlp_dim": 48,
            },
            "image_seq_length": 4,
        },
        {"pixel_values": (1, 3, 128, 128)},
        image_name="image_token_index",
        kernel="eager",
    ),
    "step3p7": Tiny(
        {
            "model_type": "step3p7",
            "text_config": {
                **TEXT,
                **EXPERTS,
                "n_routed_experts": 4,
                "share_expert_dim": 16,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "mlp_layer_types": ["dense", "sparse", "sparse"],
                "sliding_window": 5,
                "num_sliding_attention_heads": 2,
                "swiglu_limits": [0.0, 0.0, 0.5],
                "rope_theta": [10000.0, 1000.0, 10000.0],
                "partial_rotary_factors": [0.5, 1.0, 0.5],
            },
            "vision_config": {**SEEING, "image_size": 56, "mlp_ratio": 2.0},
        },
        {
            "pixel_values": (1, 3, 112, 112),
            "pixel_values_local": (2, 3, 56, 56),
            "num_local_patches": torch.tensor([2]),
        },
        tokens=6,
        around=((BEGIN,), (END,)),
    ),
    "fast_vlm": Tiny(
        {
            "model_type": "fast_vlm",
            "text_config": text("qwen2"),
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "fastvit_mci3",
                "hidden_size": 64,
                "model_args": {"inference_mode": True, "layers": [1] * 5, "embed_dims": [8, 8, 16, 32, 32]},
            },
        },
        {"pixel_values": (1, 3, 128, 128)},
        tokens=4,
        image_name="image_token_index",
        timm=True,
    ),
}


CASES = {
    "dots3_note": of_tiny(TINY["dots3_note"], "Qwen2VLImageProcessorPil", dict(MERGED, temporal_patch_size=1)),
}
PROCESSORS = {
    "exaone4_5": "Qwen2VLImageProcessorPil",
    "ernie4_5_vl_moe": "Ernie4_5_VLMoeImageProcessorPil",
    "paddleocr_vl": "PaddleOCRVLImageProcessorPil",
}
CASES |= {name: of_tiny(TINY[name], processor, MERGED) for name, processor in PROCESSORS.items()}
