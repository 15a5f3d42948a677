"""Types that are refused when they are opened, or do not pass the checks, with the reason."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.families.shared.tiny import (
    BEGIN,
    END,
    MULTI_HEAD,
    ONE,
    QWEN_PIXELS,
    SEEING,
    SIGLIP_56,
    TEXT,
    VOCABULARY,
    WIDER,
    Tiny,
    seeing,
)


def shifted(ids: Tensor) -> dict[str, Tensor]:
    """Encoder-decoders: the decoder reads the same ids, one later."""
    return {"decoder_input_ids": ids.roll(1, 1)}


BART = {
    "model_type": "bart",
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
}
T5 = {"d_kv": 8, "d_ff": 64, "num_heads": 4, "vocab_size": VOCABULARY}
T5GEMMA2 = {
    **TEXT,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 8,
}
SEPARATE = "an encoder-decoder: its answer is read from an encoder, by cross-attention that is not scored here"
NO_TOKENS = "its prompt holds no image tokens, so that no position stands for the image"

TINY = {
    "blip": Tiny(
        {
            "model_type": "blip",
            "vision_config": dict(SEEING),
            "text_config": MULTI_HEAD,
        },
        ONE,
        image_name=None,
        kernel="eager",
        failing=NO_TOKENS,
    ),
    "git": Tiny(
        {
            "model_type": "git",
            "vision_config": dict(SEEING),
            **MULTI_HEAD,
        },
        ONE,
        image_name=None,
        kernel="eager",
        failing=NO_TOKENS,
    ),
    "florence2": Tiny(
        {
            "model_type": "florence2",
            "vision_config": {
                "depths": [1],
                "patch_size": [14],
                "patch_stride": [14],
                "patch_padding": [0],
                "patch_prenorm": [False],
                "embed_dim": [24],
                "num_heads": [3],
                "num_groups": [3],
                "window_size": 2,
                "projection_dim": 32,
            },
            "text_config": BART,
        },
        ONE,
        tokens=5,
        more=shifted,
        failing=SEPARATE,
    ),
    "udop": Tiny(
        {"model_type": "udop", **T5, "d_model": 32, "num_layers": 2, "image_size": 28, "patch_size": 14},
        ONE,
        image_name=None,
        failing=SEPARATE,
    ),
    "pix2struct": Tiny(
        {
            "model_type": "pix2struct",
            "text_config": {**T5, "hidden_size": 32, "num_layers": 2},
            "vision_config": {
                "hidden_size": 32,
                "patch_embed_hidden_size": 588,
                "d_ff": 48,
                "d_kv": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "seq_len": 16,
            },
        },
        {"flattened_patches": (1, 4, 590)},
        image_name=None,
        failing=SEPARATE,
    ),
    "t5gemma2": Tiny(
        {
            "model_type": "t5gemma2",
            "encoder": {
                "text_config": {**T5GEMMA2, "model_type": "t5gemma2_text"},
                "vision_config": SIGLIP_56,
                "mm_tokens_per_image": 4,
                "boi_token_index": BEGIN,
                "eoi_token_index": END,
            },
            "decoder": T5GEMMA2,
        },
        WIDER,
        tokens=4,
        around=((BEGIN,), (END,)),
        image_name="image_token_index",
        more=shifted,
        failing=SEPARATE,
    ),
    "pp_formulanet": Tiny(
        {
            "model_type": "pp_formulanet",
            "text_config": {**BART, "model_type": "pp_formulanet_text"},
            "vision_config": {
                "hidden_size": 24,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "image_size": 128,
                "patch_size": 16,
                "window_size": 4,
                "global_attn_indexes": [1],
                "mlp_dim": 48,
                "post_conv_in_channels": 16,
                "post_conv_mid_channels": 16,
                "post_conv_out_channels": 16,
                "decoder_hidden_size": 32,
            },
        },
        {"pixel_values": (1, 3, 128, 128)},
        image_name=None,
        kernel="eager",
        failing=SEPARATE,
    ),
    "vision-encoder-decoder": Tiny(
        {
            "model_type": "vision-encoder-decoder",
            "encoder": seeing("vit"),
            "decoder": {
                **MULTI_HEAD,
                "model_type": "bert",
                "is_decoder": True,
                "add_cross_attention": True,
            },
        },
        ONE,
        image_name=None,
        failing=SEPARATE,
    ),
    "evolla": Tiny(
        {
            "model_type": "evolla",
            **TEXT,
            "protein_encoder_config": {
                "hidden_size": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "vocab_size": 30,
            },
            "aligner_num_add_layers": 1,
            "resampler_depth": 1,
            "resampler_dim_head": 8,
            "resampler_heads": 3,
            "resampler_num_latents": 4,
        },
        {},
        image_name=None,
        failing="it reads proteins, not images",
    ),
    "diffusion_gemma": Tiny(
        {
            "model_type": "diffusion_gemma",
            "text_config": {
                **TEXT,
                "global_head_dim": 16,
                "sliding_window": 5,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
                "num_experts": 2,
                "top_k_experts": 1,
                "moe_intermediate_size": 16,
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 8,
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "position_embedding_size": 16,
            },
            "boi_token_id": BEGIN,
            "eoi_token_id": END,
            "canvas_length": 8,
        },
        {
            "pixel_values": (1, 16, 48),
            "image_position_ids": torch.cartesian_prod(torch.arange(4), torch.arange(4))[None],
        },
        tokens=4,
        around=((BEGIN,), (END,)),
        failing="it fills in a block that it draws at random, by diffusion: no token is predicted from those before it",
    ),
    "minimax_m3_vl": Tiny(
        {
            "model_type": "minimax_m3_vl",
            "text_config": {
                **TEXT,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "intermediate_size": 16,
                "shared_intermediate_size": 16,
                "dense_intermediate_size": 64,
                "rotary_dim": 4,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
                "mlp_layer_types": ["dense", "sparse", "sparse"],
                "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
                "index_n_heads": 2,
                "index_head_dim": 8,
                "index_block_size": 2,
                "index_topk_blocks": 3,
            },
            "vision_config": {**SEEING, "image_size": 56},
            "projector_hidden_size": 32,
            "video_token_index": 153,
        },
        QWEN_PIXELS,
        tokens=6,
        image_name="image_token_index",
        failing="its indexer chooses blocks of keys by where they stand in the row and does not look at the mask: "
        "hidden keys take the places of others, and rows that are dropped move the blocks",
    ),
}
