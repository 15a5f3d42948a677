"""Tiny random models of many families, from configs alone: no network, no weights. One row of data each.

A row says which class, which config, what the processor would have made of one image, and around which ids its tokens
stand. How many tokens the image has is asked of the model where the row does not say it.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from lvlm_interp.model.families import known

IMAGE, BEGIN, END = 150, 151, 152
VOCABULARY = 200
QUESTION, ANSWER = (30, 31, 32, 40), (7, 8, 9)

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SEEING = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 14,
}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
TILES = {"image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]]}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
QWEN_IDS = {"video_token_id": 153, "vision_start_token_id": BEGIN, "vision_end_token_id": END}


def text(model_type: str, **changes: Any) -> dict[str, Any]:
    return {**TEXT, "model_type": model_type, **changes}


def seeing(model_type: str, **changes: Any) -> dict[str, Any]:
    return {**SEEING, "model_type": model_type, **changes}


@dataclass(frozen=True)
class Tiny:
    """One family.

    Attributes:
        config: arguments of the config, `model_type` among them; the token id of images is added.
        pixels: model inputs that come from the image: shapes to fill at random, or tensors as they are.
        tokens: how many tokens one image has; None asks the model.
        around: ids before and after them.
        image_name: what the config calls the id of image tokens; None where it names none.
        first: whether image tokens come before BOS.
        more: model inputs made from the ids.
        kernel: the attention implementation, where the family has but one.
    """

    config: Mapping[str, Any]
    pixels: Mapping[str, tuple[int, ...] | Tensor]
    tokens: int | None = None
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((5,), ())
    image_name: str | None = "image_token_id"
    first: bool = False
    more: Callable[[Tensor], Mapping[str, Tensor]] = field(default=lambda ids: {})
    kernel: str | None = None


def image_types(name: str) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """Type ids that are 1 at image tokens."""
    return lambda ids: {name: (ids == IMAGE).long()}


def cross_mask(ids: Tensor) -> dict[str, Tensor]:
    """Mllama: every position from the image's on sees the first of its two tiles."""
    mask = torch.zeros(1, ids.shape[1], 1, 2, dtype=torch.long)
    mask[:, :, :, 0] = 1
    return {"cross_attention_mask": mask}


DELTA_RULE = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [2, 1, 1],
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
    },
}
QWEN3_5_VISION = {**QWEN_VISION, "intermediate_size": 64, "out_hidden_size": 32, "num_position_embeddings": 64}


def shifted(ids: Tensor) -> dict[str, Tensor]:
    """Encoder-decoders: the decoder reads the same ids, one later."""
    return {"decoder_input_ids": ids.roll(1, 1)}


QWEN_PIXELS = {"pixel_values": (24, 3 * 2 * 14 * 14), "image_grid_thw": torch.tensor([[1, 4, 6]])}
TILED_PIXELS = {"pixel_values": (1, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56]])}
QWEN = {"pixels": QWEN_PIXELS, "tokens": 6, "around": ((BEGIN,), (END,)), "more": image_types("mm_token_type_ids")}

FAMILIES: dict[str, Tiny] = {
    "llava": Tiny(
        {"model_type": "llava", "vision_config": seeing("clip_vision_model"), "text_config": text("llama")},
        {"pixel_values": (1, 3, 28, 28)},
    ),
    "llava_next": Tiny(
        dict(model_type="llava_next", vision_config=seeing("clip_vision_model"), text_config=text("llama"), **TILES),
        TILED_PIXELS,
    ),
    "llava_onevision": Tiny(
        dict(
            model_type="llava_onevision",
            vision_config=seeing("siglip_vision_model", vision_use_head=False),
            text_config=text("qwen2"),
            video_token_id=153,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            **TILES,
        ),
        TILED_PIXELS,
    ),
    "idefics3": Tiny(
        {
            "model_type": "idefics3",
            "vision_config": {**SEEING, "image_size": 56},
            "text_config": text("llama"),
            "scale_factor": 2,
        },
        {"pixel_values": (1, 1, 3, 56, 56)},
        tokens=4,
    ),
    "smolvlm": Tiny(
        {
            "model_type": "smolvlm",
            "vision_config": {**SEEING, "image_size": 56},
            "text_config": text("llama"),
            "scale_factor": 2,
        },
        {"pixel_values": (1, 1, 3, 56, 56)},
        tokens=4,
    ),
    "qwen2_vl": Tiny(
        dict(
            model_type="qwen2_vl",
            text_config={**TEXT, **MROPE},
            vision_config={**QWEN_VISION, "embed_dim": 32, "mlp_ratio": 2},
            **QWEN_IDS,
        ),
        **QWEN,
    ),
    "qwen2_5_vl": Tiny(
        dict(
            model_type="qwen2_5_vl",
            text_config={**TEXT, **MROPE},
            vision_config={
                **QWEN_VISION,
                "intermediate_size": 64,
                "out_hidden_size": 32,
                "window_size": 56,
                "fullatt_block_indexes": [1],
            },
            **QWEN_IDS,
        ),
        **QWEN,
    ),
    "qwen3_vl": Tiny(
        dict(
            model_type="qwen3_vl",
            text_config={
                **TEXT,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
            },
            vision_config={
                **QWEN_VISION,
                "intermediate_size": 64,
                "out_hidden_size": 32,
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 64,
            },
            **QWEN_IDS,
        ),
        **QWEN,
    ),
    "gemma3": Tiny(
        {
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
        },
        {"pixel_values": (1, 3, 56, 56)},
        tokens=4,
        around=((BEGIN,), (END,)),
        image_name="image_token_index",
        more=image_types("token_type_ids"),
    ),
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
    ),
    "internvl": Tiny(
        {
            "model_type": "internvl",
            "text_config": text("qwen2"),
            "vision_config": {**SEEING, "image_size": [56, 56], "patch_size": [14, 14]},
            "image_seq_length": 4,
            "downsample_ratio": 0.5,
        },
        {"pixel_values": (1, 3, 56, 56)},
        tokens=4,
    ),
    "mllama": Tiny(
        {
            "model_type": "mllama",
            "text_config": {
                **{k: v for k, v in TEXT.items() if k != "head_dim"},
                "num_hidden_layers": 4,
                "cross_attention_layers": [1, 3],
            },
            "vision_config": {
                "hidden_size": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 3,
                "image_size": 28,
                "patch_size": 14,
                "max_num_tiles": 2,
                "intermediate_layers_indices": [0, 1],
                "vision_output_dim": 72,
                "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            },
        },
        {
            "pixel_values": (1, 1, 2, 3, 28, 28),
            "aspect_ratio_ids": torch.tensor([[1]]),
            "aspect_ratio_mask": torch.tensor([[[1, 0]]]),
        },
        tokens=1,
        image_name="image_token_index",
        first=True,
        around=((), ()),
        more=cross_mask,
    ),
    "instructblip": Tiny(
        {
            "model_type": "instructblip",
            "vision_config": dict(SEEING),
            "qformer_config": {
                "hidden_size": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "vocab_size": VOCABULARY,
                "encoder_hidden_size": 24,
                "cross_attention_frequency": 1,
            },
            "text_config": text("llama"),
            "num_query_tokens": 4,
        },
        {
            "pixel_values": (1, 3, 28, 28),
            "qformer_input_ids": torch.tensor([[3, 4, 5]]),
            "qformer_attention_mask": torch.ones(1, 3, dtype=torch.long),
        },
        tokens=4,
        image_name="image_token_index",
        first=True,
        around=((), ()),
    ),
}
"""The families that the package promises."""

SIGLIP = seeing("siglip_vision_model", vision_use_head=False)
SIGLIP_56 = {**SIGLIP, "image_size": 56}
PIXTRAL = {**SEEING, "model_type": "pixtral", "num_attention_heads": 2, "hidden_size": 32, "image_size": 56}
GLM_VISION = {**QWEN_VISION, "image_size": 56, "out_hidden_size": 32, "intermediate_size": 64}
GLM_IDS = {
    "video_token_id": 153,
    "image_start_token_id": BEGIN,
    "image_end_token_id": END,
    "video_start_token_id": 154,
    "video_end_token_id": 155,
}
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
HEARING = {
    "d_model": 24,
    "encoder_layers": 1,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "output_dim": 32,
}
SAM_VISION = {
    "hidden_size": 24,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 128,
    "patch_size": 16,
    "window_size": 4,
    "global_attn_indexes": [1],
    "mlp_dim": 48,
    "downsample_channels": [16, 24],
}
QWEN3_5 = {**TEXT, **DELTA_RULE, "model_type": "qwen3_5_text"}
MINICPM = {
    "text_config": QWEN3_5,
    "vision_config": {**SEEING, "patch_size": 4, "num_hidden_layers": 3},
    "insert_layer_id": 1,
    "video_token_id": 153,
}
MINICPM_PIXELS = {"pixel_values": (1, 3, 4, 96 * 4), "target_sizes": torch.tensor([[8, 12]])}
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
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
LATENT = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
ONE = {"pixel_values": (1, 3, 28, 28)}
WIDER = {"pixel_values": (1, 3, 56, 56)}
SIZED = {**WIDER, "image_sizes": torch.tensor([[56, 56]])}
KOSMOS = {
    "embed_dim": 32,
    "ffn_dim": 64,
    "layers": 3,
    "attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def kosmos_mask(ids: Tensor) -> dict[str, Tensor]:
    """1 at image tokens, and as the processor has it -1 at what stands around them."""
    around = (ids == BEGIN) | (ids == END)
    return {"image_embeds_position_mask": (ids == IMAGE).long() - around.long()}


def placed_patches(rows: int, columns: int, width: int) -> Tensor:
    """Patches that begin with their row and column, counted from 1; the last one is padding."""
    places = torch.cartesian_prod(torch.arange(1.0, rows + 1), torch.arange(1.0, columns + 1))
    pixels = torch.randn(rows * columns, width, generator=torch.Generator().manual_seed(1))
    return nn.functional.pad(torch.cat([places, pixels], 1), (0, 0, 0, 1))[None]


OTHERS: dict[str, Tiny] = {
    "vipllava": Tiny(
        {
            "model_type": "vipllava",
            "vision_config": seeing("clip_vision_model"),
            "text_config": text("llama"),
            "vision_feature_layers": [-2, -1],
        },
        ONE,
        image_name="image_token_index",
    ),
    "llava_next_video": Tiny(
        {
            "model_type": "llava_next_video",
            "vision_config": seeing("clip_vision_model"),
            "text_config": text("llama"),
            "video_token_index": 153,
            **TILES,
        },
        TILED_PIXELS,
        image_name="image_token_index",
    ),
    "video_llava": Tiny(
        {
            "model_type": "video_llava",
            "vision_config": seeing("clip_vision_model"),
            "text_config": text("llama"),
            "video_token_index": 153,
        },
        {"pixel_values_images": (1, 3, 28, 28)},
        tokens=4,
        image_name="image_token_index",
    ),
    "emu3": Tiny(
        {
            "model_type": "emu3",
            "text_config": {k: v for k, v in TEXT.items() if k != "head_dim"},
            "vq_config": {
                "codebook_size": 16,
                "embed_dim": 8,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1, 2],
                "num_res_blocks": 1,
                "attn_resolutions": [1],
                "hidden_size": 64,
            },
            "vocabulary_map": {
                "<image>": IMAGE,
                "<|extra_200|>": 154,
                **{f"<|visual token {n:06d}|>": 170 + n for n in range(16)},
            },
        },
        {"pixel_values": (1, 3, 8, 8), "image_sizes": torch.tensor([[8, 8]])},
        tokens=20,
    ),
    "molmo2": Tiny(
        {
            "model_type": "molmo2",
            "text_config": {
                **TEXT,
                "additional_vocab_size": 8,
                "rope_scaling_layers": [0, 2],
                "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
            },
            "vision_config": {
                **{k: v for k, v in SEEING.items() if k != "image_size"},
                "num_key_value_heads": 3,
                "head_dim": 8,
                "image_size": [28, 28],
            },
            "adapter_config": {
                "vision_feature_layer": [1, 0],
                "hidden_size": 24,
                "num_attention_heads": 3,
                "num_key_value_heads": 3,
                "head_dim": 8,
                "intermediate_size": 48,
                "text_hidden_size": 32,
            },
            "image_start_token_id": BEGIN,
            "image_end_token_id": END,
        },
        {
            "pixel_values": (2, 4, 588),
            "image_token_pooling": torch.tensor([[0, 1, 2, 3], [4, 5, -1, -1], [6, 7, -1, -1]]),
            "image_grids": torch.tensor([[1, 1, 1, 2]]),
            "image_num_crops": torch.tensor([2]),
        },
        tokens=3,
        around=((BEGIN,), (END,)),
        image_name="image_patch_id",
        more=image_types("mm_token_type_ids"),
    ),
    "mistral_large4": Tiny(
        {
            "model_type": "mistral_large4",
            "vision_config": PIXTRAL,
            "text_config": {
                **{k: v for k, v in TEXT.items() if k != "head_dim"},
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
    ),
    "dots3_note": Tiny(
        {
            "model_type": "dots3_note",
            "text_config": {
                **{k: v for k, v in TEXT.items() if k != "head_dim"},
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
        {"pixel_values": (24, 588), "image_grid_thw": torch.tensor([[1, 4, 6]])},
        tokens=6,
        around=((BEGIN,), (END,)),
    ),
    "cohere_compass": Tiny(
        {
            "model_type": "cohere_compass",
            "text_config": {
                **TEXT,
                "logit_scale": 0.5,
                "sliding_window": 5,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
                    "full_attention": None,
                },
            },
            "vision_config": {
                **QWEN_VISION,
                "intermediate_size": 64,
                "out_hidden_size": 32,
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 64,
            },
            **QWEN_IDS,
        },
        **QWEN,
    ),
    "mistral3": Tiny(
        {"model_type": "mistral3", "vision_config": PIXTRAL, "text_config": text("mistral"), "spatial_merge_size": 2},
        SIZED,
        tokens=4,
        image_name="image_token_index",
    ),
    "lighton_ocr": Tiny(
        {"model_type": "lighton_ocr", "vision_config": PIXTRAL, "text_config": text("qwen3"), "spatial_merge_size": 2},
        SIZED,
        tokens=4,
    ),
    "aya_vision": Tiny(
        {"model_type": "aya_vision", "vision_config": SIGLIP_56, "text_config": text("cohere2", sliding_window=5)},
        WIDER,
        tokens=4,
        image_name="image_token_index",
    ),
    "cohere2_vision": Tiny(
        {
            "model_type": "cohere2_vision",
            "vision_config": SIGLIP_56,
            "text_config": text("cohere2", sliding_window=5),
            "alignment_intermediate_size": 32,
        },
        {**WIDER, "num_patches": torch.tensor([1])},
        tokens=4,
    ),
    "idefics2": Tiny(
        {
            "model_type": "idefics2",
            "vision_config": SEEING,
            "text_config": text("mistral"),
            "perceiver_config": {
                "hidden_size": 32,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 4,
                "resampler_head_dim": 8,
                "num_key_value_heads": 2,
            },
        },
        {"pixel_values": (1, 1, 3, 28, 28)},
        tokens=4,
    ),
    "deepseek_vl": Tiny(
        {"model_type": "deepseek_vl", "vision_config": SIGLIP, "text_config": text("llama")}, ONE, tokens=4
    ),
    "janus": Tiny(
        {
            "model_type": "janus",
            "vision_config": {**SEEING, "projection_dim": 32, "num_image_tokens": 4, "mlp_ratio": 2.0},
            "text_config": text("llama"),
            "vq_config": {"base_channels": 32, "num_embeddings": 16, "num_patches": 2, "projection_dim": 32},
        },
        ONE,
        tokens=4,
    ),
    "ovis2": Tiny(
        {
            "model_type": "ovis2",
            "vision_config": {**SEEING, "vocab_size": 40, "hidden_stride": 1, "hidden_size": 24},
            "text_config": text("qwen2"),
            "visual_indicator_token_ids": [160, 161, 162, 163, 164],
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
        },
        ONE,
        tokens=4,
    ),
    "blip-2": Tiny(
        {
            "model_type": "blip-2",
            "vision_config": dict(SEEING),
            "qformer_config": {
                "hidden_size": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "vocab_size": VOCABULARY,
                "encoder_hidden_size": 24,
                "cross_attention_frequency": 1,
            },
            "text_config": text("llama"),
            "num_query_tokens": 4,
        },
        ONE,
        tokens=4,
        image_name="image_token_index",
        first=True,
        around=((), ()),
    ),
    "llama4": Tiny(
        {
            "model_type": "llama4",
            "vision_config": {
                **SEEING,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
                "image_size": 56,
                "intermediate_size": 96,
                "num_attention_heads": 2,
            },
            "text_config": {
                **TEXT,
                "intermediate_size_mlp": 64,
                "num_local_experts": 2,
                "attention_chunk_size": 5,
                "num_hidden_layers": 4,
            },
            "boi_token_index": BEGIN,
            "eoi_token_index": END,
        },
        WIDER,
        tokens=4,
        image_name="image_token_index",
        around=((BEGIN,), (END,)),
    ),
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
    "lfm2_vl": Tiny(
        {
            "model_type": "lfm2_vl",
            "vision_config": {
                **SEEING,
                "model_type": "siglip2_vision_model",
                "num_patches": 16,
                "vision_use_head": False,
            },
            "text_config": text("lfm2", layer_types=["conv", "full_attention", "full_attention"]),
        },
        {
            "pixel_values": (1, 16, 588),
            "spatial_shapes": torch.tensor([[4, 4]]),
            "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
        },
        tokens=4,
    ),
    "qwen3_5": Tiny(
        dict(model_type="qwen3_5", text_config={**TEXT, **DELTA_RULE}, vision_config=QWEN3_5_VISION, **QWEN_IDS), **QWEN
    ),
    "qwen3_5_moe": Tiny(
        dict(
            model_type="qwen3_5_moe",
            text_config={**TEXT, **DELTA_RULE, **EXPERTS},
            vision_config=QWEN3_5_VISION,
            **QWEN_IDS,
        ),
        **QWEN,
    ),
    "lfm3_vl": Tiny(
        {
            "model_type": "lfm3_vl",
            "text_config": text(
                "lfm3",
                num_hidden_layers=4,
                layer_types=["conv", "sliding_attention", "full_attention", "conv"],
                sliding_window=5,
                conv_L_cache=5,
            ),
            "vision_config": {
                **SEEING,
                "hidden_size": 32,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "layer_types": ["conv", "full_attention"],
            },
            "projector_hidden_size": 64,
            "video_token_id": 153,
        },
        QWEN_PIXELS,
        tokens=6,
        around=((BEGIN,), (END,)),
    ),
    "qwen4_exp": Tiny(
        dict(
            model_type="qwen4_exp",
            text_config={
                **TEXT,
                **DELTA_RULE,
                **EXPERTS,
                "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
                "num_experts": 2,
                "num_experts_per_tok": 1,
                "shared_expert_intermediate_size": 16,
                "hc_count": 2,
                "hc_lowrank": 8,
                "ple_layer_ids": [3],
                "ple_conv_kernel_size": 2,
                "heads_per_ngram": 2,
                "ngram_vocab_size_base": 50,
                "make_ngram_vocab_size_divisible_by": 8,
                "split_ngram_parts": 1,
                "indexer_n_heads": 2,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 8,
                "indexer_budget": 4,
                "indexer_compress_ratio": 2,
            },
            vision_config=QWEN3_5_VISION,
            **QWEN_IDS,
        ),
        **QWEN,
    ),
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
    "qwen3_vl_moe": Tiny(
        {
            "model_type": "qwen3_vl_moe",
            "text_config": {
                **TEXT,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
                "num_experts": 2,
                **EXPERTS,
            },
            "vision_config": {
                **QWEN_VISION,
                "intermediate_size": 64,
                "out_hidden_size": 32,
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 64,
            },
            **QWEN_IDS,
        },
        **QWEN,
    ),
    "glm4v": Tiny(
        {"model_type": "glm4v", "text_config": {**TEXT, **MROPE}, "vision_config": GLM_VISION, **GLM_IDS}, **QWEN
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
    "glm4v_moe": Tiny(
        {
            "model_type": "glm4v_moe",
            "text_config": {**TEXT, **MROPE, **EXPERTS, "head_dim": 16, "n_routed_experts": 2, "n_shared_experts": 1},
            "vision_config": GLM_VISION,
            **GLM_IDS,
        },
        **QWEN,
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
    "shieldgemma2": Tiny(
        {
            **FAMILIES["gemma3"].config,
            "model_type": "shieldgemma2",
            "text_config": text("gemma3_text", sliding_window=5),
        },
        WIDER,
        tokens=4,
        around=((BEGIN,), (END,)),
        image_name="image_token_index",
        more=image_types("token_type_ids"),
    ),
    "video_llama_3": Tiny(
        {
            "model_type": "video_llama_3",
            "text_config": text("qwen2"),
            "vision_config": {**SEEING, "hidden_size": 32, "num_attention_heads": 4},
            "video_token_id": 153,
        },
        {
            "pixel_values": (24, 3 * 14 * 14),
            "image_grid_thw": torch.tensor([[1, 4, 6]]),
            "image_merge_sizes": torch.tensor([2]),
        },
        tokens=6,
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
    "qianfan_ocr": Tiny(
        {
            "model_type": "qianfan_ocr",
            "text_config": text("qwen3"),
            "vision_config": {**SEEING, "image_size": [56, 56], "patch_size": [14, 14]},
            "image_seq_length": 4,
            "downsample_ratio": 0.5,
        },
        WIDER,
        tokens=4,
    ),
    "got_ocr2": Tiny(
        {
            "model_type": "got_ocr2",
            "text_config": text("qwen2"),
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
            },
            "image_seq_length": 4,
        },
        {"pixel_values": (1, 3, 128, 128)},
        image_name="image_token_index",
        kernel="eager",
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
    "glmga": Tiny(
        {
            "model_type": "glmga",
            "text_config": text("glm4v_text", **MROPE),
            "vision_config": {**GLM_VISION, "model_type": "glm4v_vision"},
            **GLM_IDS,
        },
        **QWEN,
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
    "deepseek_ocr2": Tiny(
        {
            "model_type": "deepseek_ocr2",
            "vision_config": {
                "sam_config": SAM_VISION,
                "encoder_config": {
                    "hidden_size": 24,
                    "intermediate_size": 48,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 3,
                    "num_key_value_heads": 1,
                },
            },
            "text_config": {
                **TEXT,
                "mlp_layer_types": ["dense", "sparse", "sparse"],
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                **EXPERTS,
            },
        },
        {
            "pixel_values": (1, 3, 128, 128),
            "pixel_values_local": (1, 3, 128, 128),
            "num_local_patches": torch.tensor([1]),
        },
    ),
    "minicpmv4_6": Tiny({"model_type": "minicpmv4_6", **MINICPM}, MINICPM_PIXELS, tokens=6),
    "minicpmv4_7": Tiny(
        {
            "model_type": "minicpmv4_7",
            **MINICPM,
            "image_start_id": BEGIN,
            "image_end_id": END,
            "slice_start_id": 154,
            "slice_end_id": 155,
            "newline_id": 156,
        },
        MINICPM_PIXELS,
        tokens=6,
        around=((BEGIN,), (END,)),
        more=image_types("mm_token_type_ids"),
    ),
    "minicpm_ocr": Tiny({"model_type": "minicpm_ocr", **MINICPM}, MINICPM_PIXELS, tokens=24),
    "instructblipvideo": Tiny(
        {
            **FAMILIES["instructblip"].config,
            "model_type": "instructblipvideo",
            "video_token_index": IMAGE,
        },
        {**FAMILIES["instructblip"].pixels, "pixel_values": (1, 1, 3, 28, 28)},
        tokens=4,
        image_name="image_token_index",
        first=True,
        around=((), ()),
    ),
    "granite_docling": Tiny(
        {
            "model_type": "granite_docling",
            "text_config": {
                **{k: v for k, v in TEXT.items() if k != "head_dim"},
                "embedding_multiplier": 3.0,
                "logits_scaling": 2.0,
                "residual_multiplier": 0.5,
                "attention_multiplier": 0.35,
            },
            "vision_config": {
                **SEEING,
                "image_size": 112,
                "out_hidden_size": 32,
                "deepstack_visual_indexes": [0, 1],
            },
            "density_router_hidden_size": 16,
            "pad_token_id": 0,
        },
        {"pixel_values": (1, 2, 3, 112, 112), "pixel_attention_mask": torch.ones(1, 2, dtype=torch.bool)},
        tokens=8,
    ),
    "unlimited_ocr": Tiny(
        {
            "model_type": "unlimited_ocr",
            "vision_config": {
                "sam_config": SAM_VISION,
                "encoder_config": {**SEEING, "num_hidden_layers": 3},
            },
            "text_config": {
                **TEXT,
                "num_key_value_heads": 4,  # its eager attention repeats no heads
                "mlp_layer_types": ["dense", "sparse", "sparse"],
                "sliding_window": 5,
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                **EXPERTS,
            },
        },
        {"pixel_values": (1, 3, 128, 128)},
    ),
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
    ),
    "chameleon": Tiny(
        {
            "model_type": "chameleon",
            **{k: v for k, v in TEXT.items() if k != "head_dim"},
            "vq_config": {
                "embed_dim": 16,
                "num_embeddings": 16,
                "latent_channels": 16,
                "resolution": 32,
                "base_channels": 32,
                "channel_multiplier": [1, 2],
                "num_res_blocks": 1,
            },
            "vocabulary_map": {
                "<image>": IMAGE,
                **{f"IMGIMG{chr(65 + n // 10)}{chr(65 + n % 10)}Z": 170 + n for n in range(16)},
            },
        },
        {"pixel_values": (1, 3, 8, 8)},
        tokens=16,
    ),
    "fuyu": Tiny(
        {"model_type": "fuyu", "text_config": text("persimmon"), "patch_size": 14, "hidden_size": 32},
        {"image_patches": (1, 4, 588)},
        tokens=4,
    ),
    "hunyuan_vl": Tiny(
        {
            "model_type": "hunyuan_vl",
            "text_config": {**TEXT, **MROPE},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "out_hidden_size": 32,
                "text_hidden_size": 32,
                "patch_size": 14,
                "max_image_size": 56,
            },
            "im_start_id": BEGIN,
            "im_end_id": END,
            "im_newline_id": 154,
        },
        {"pixel_values": (24, 588), "image_grid_thw": torch.tensor([[1, 4, 6]])},
        around=((BEGIN,), (END,)),
        more=image_types("mm_token_type_ids"),
    ),
    "ernie4_5_vl_moe": Tiny(
        {
            "model_type": "ernie4_5_vl_moe",
            "text_config": {
                **TEXT,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
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
        {"pixel_values": (24, 588), "image_grid_thw": torch.tensor([[1, 4, 6]])},
        tokens=6,
        around=((BEGIN,), (END,)),
        more=image_types("mm_token_type_ids"),
    ),
    "qwen2_5_omni_thinker": Tiny(
        {
            "model_type": "qwen2_5_omni_thinker",
            "text_config": {**TEXT, **MROPE, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
            "vision_config": {
                **QWEN_VISION,
                "intermediate_size": 64,
                "out_hidden_size": 32,
                "window_size": 56,
                "fullatt_block_indexes": [1],
            },
            "audio_config": HEARING,
            "vision_start_token_id": BEGIN,
        },
        QWEN_PIXELS,
        tokens=6,
        around=((BEGIN,), (END,)),
        image_name="image_token_index",
    ),
    "qwen3_omni_moe_thinker": Tiny(
        {
            "model_type": "qwen3_omni_moe_thinker",
            "text_config": {
                **TEXT,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
                "num_experts": 2,
                "mlp_only_layers": [0],
                **EXPERTS,
            },
            "vision_config": {
                **QWEN_VISION,
                "intermediate_size": 64,
                "out_hidden_size": 32,
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 64,
            },
            "audio_config": {**HEARING, "downsample_hidden_size": 8},
            "vision_start_token_id": BEGIN,
        },
        QWEN_PIXELS,
        tokens=6,
        around=((BEGIN,), (END,)),
    ),
    "cosmos3_edge": Tiny(
        {
            "model_type": "cosmos3_edge",
            "text_config": {
                **TEXT,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
            },
            "vision_config": {**SEEING, "num_patches": 16},
            "projector_hidden_size": 64,
            **QWEN_IDS,
        },
        {"pixel_values": (24, 3 * 14 * 14), "image_grid_thw": torch.tensor([[1, 4, 6]])},
        tokens=6,
        around=((BEGIN,), (END,)),
        more=image_types("mm_token_type_ids"),
    ),
    "glm5_next": Tiny(
        {
            "model_type": "glm5_next",
            "text_config": {
                **{k: v for k, v in TEXT.items() if k != "head_dim"},
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
    "idefics": Tiny(
        {
            "model_type": "idefics",
            **{k: v for k, v in TEXT.items() if k not in ("head_dim", "num_key_value_heads")},
            "num_hidden_layers": 4,
            "cross_layer_interval": 2,
            "qk_layer_norms": True,
            "alpha_type": "vector",
            "additional_vocab_size": 2,
            "use_resampler": True,
            "vision_config": {
                "embed_dim": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 4,
                "num_attention_heads": 3,
                "image_size": 28,
                "patch_size": 14,
            },
            "perceiver_config": {
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 3,
                "resampler_head_dim": 8,
            },
        },
        {"pixel_values": (1, 1, 3, 28, 28)},
        tokens=1,
        around=((BEGIN,), (BEGIN,)),
        more=lambda ids: {"image_attention_mask": ((ids == IMAGE).cumsum(1) > 0).long()[..., None]},
    ),
    "kosmos-2": Tiny(
        {
            "model_type": "kosmos-2",
            "text_config": KOSMOS,
            "vision_config": dict(SEEING),
            "latent_query_num": 4,
        },
        ONE,
        tokens=4,
        around=((BEGIN,), (END,)),
        image_name=None,
        more=lambda ids: {"image_embeds_position_mask": (ids == IMAGE).long()},
    ),
    "kosmos-2.5": Tiny(
        {
            "model_type": "kosmos-2.5",
            "text_config": KOSMOS,
            "vision_config": {
                **{k: v for k, v in SEEING.items() if k not in ("image_size", "patch_size")},
                "head_dim": 8,
                "patch_embed_hidden_size": 12,
                "max_num_patches": 16,
            },
            "latent_query_num": 4,
        },
        {"flattened_patches": placed_patches(2, 3, 12)},
        tokens=4,
        around=((BEGIN,), (END,)),
        image_name=None,
        more=kosmos_mask,
    ),
    "blip": Tiny(
        {
            "model_type": "blip",
            "vision_config": dict(SEEING),
            "text_config": {k: v for k, v in TEXT.items() if k not in ("head_dim", "num_key_value_heads")},
        },
        ONE,
        image_name=None,
        kernel="eager",
    ),
    "git": Tiny(
        {
            "model_type": "git",
            "vision_config": dict(SEEING),
            **{k: v for k, v in TEXT.items() if k not in ("head_dim", "num_key_value_heads")},
        },
        ONE,
        image_name=None,
        kernel="eager",
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
    ),
    "udop": Tiny(
        {"model_type": "udop", **T5, "d_model": 32, "num_layers": 2, "image_size": 28, "patch_size": 14},
        ONE,
        image_name=None,
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
    ),
    "vision-encoder-decoder": Tiny(
        {
            "model_type": "vision-encoder-decoder",
            "encoder": seeing("vit"),
            "decoder": {
                **{k: v for k, v in TEXT.items() if k not in ("head_dim", "num_key_value_heads")},
                "model_type": "bert",
                "is_decoder": True,
                "add_cross_attention": True,
            },
        },
        ONE,
        image_name=None,
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
    ),
    "hyperclovax_vision_v2": Tiny(
        {
            "model_type": "hyperclovax_vision_v2",
            "text_config": text("hyperclovax", logits_scaling=2.0, residual_multiplier=0.5),
            "vision_config": {**FAMILIES["qwen2_5_vl"].config["vision_config"], "model_type": "qwen2_5_vl_vision"},
            "video_token_id": 153,
        },
        QWEN_PIXELS,
        tokens=6,
    ),
    "cosmos3_omni": Tiny(
        {
            **FAMILIES["qwen3_vl"].config,
            "model_type": "cosmos3_omni",
            "text_config": {**FAMILIES["qwen3_vl"].config["text_config"], "model_type": "qwen3_vl_text"},
            "vision_config": {**FAMILIES["qwen3_vl"].config["vision_config"], "model_type": "qwen3_vl_vision"},
        },
        **QWEN,
    ),
    "deepseek_vl_hybrid": Tiny(
        {
            "model_type": "deepseek_vl_hybrid",
            "vision_config": SIGLIP,
            "high_res_vision_config": {
                "model_type": "sam_vision_model",
                "hidden_size": 24,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "image_size": 32,
                "patch_size": 16,
                "window_size": 1,
                "global_attn_indexes": [1],
                "mlp_dim": 48,
            },
            "text_config": text("llama"),
        },
        {**ONE, "high_res_pixel_values": (1, 3, 32, 32)},
        tokens=4,
        kernel="eager",
    ),
    "granite4_vision": Tiny(
        {
            "model_type": "granite4_vision",
            "vision_config": seeing("clip_vision_model", hidden_size=64, num_attention_heads=4, image_size=56),
            "text_config": {
                **{k: v for k, v in TEXT.items() if k != "head_dim"},
                "num_hidden_layers": 5,
                "logits_scaling": 2.0,
                "attention_multiplier": 0.35,
            },
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-2, 0]],
            "spatial_target_layers": [1, 2, 3, 4],
            "image_grid_pinpoints": [[56, 112], [112, 56]],
        },
        {"pixel_values": (1, 3, 3, 56, 56), "image_sizes": torch.tensor([[56, 112]])},
        tokens=14,
        image_name="image_token_index",
    ),
    "kimi_k25": Tiny(
        {
            "model_type": "kimi_k25",
            "text_config": {
                **{k: v for k, v in TEXT.items() if k != "head_dim"},
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
"""Other types of transformers' mapping that build small."""

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
WITH_TIMM: dict[str, Tiny] = {
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
    ),
}
"""Types whose vision tower timm builds; timm imports torchvision, which must fit torch."""

ALL = {**FAMILIES, **OTHERS, **(WITH_TIMM if importlib.util.find_spec("timm") else {})}

SEPARATE = "an encoder-decoder: its answer is read from an encoder, by cross-attention that is not scored here"
CONVOLVED = "short convolutions stand between attention and the residual stream, and run over rows, hidden or not"
NO_TOKENS = "its prompt holds no image tokens, so that no position stands for the image"
FAILING: dict[str, str] = {
    "inkling_mm_model": CONVOLVED + "; and distances are counted in rows, not in positions",
    "inkling2": CONVOLVED + "; distances are counted in rows, not in positions; and what is unembedded mixes the "
    "outputs of several blocks, so that no lens is its logits",
    **dict.fromkeys(
        ("florence2", "t5gemma2", "udop", "pix2struct", "vision-encoder-decoder", "pp_formulanet"), SEPARATE
    ),
    **dict.fromkeys(("blip", "git"), NO_TOKENS),
    "diffusion_gemma": "it fills in a block that it draws at random, by diffusion: no token is predicted from those "
    "before it",
    "evolla": "it reads proteins, not images",
    "minimax_m3_vl": "its indexer chooses blocks of keys by where they stand in the row and does not look at the mask: "
    "hidden keys take the places of others, and rows that are dropped move the blocks",
}
"""Families among these that are refused when they are opened, or do not pass, with the reason."""

TIMM = "its vision tower is built by timm, which is not installed here"
UNTRIED: dict[str, str] = {
    **dict.fromkeys(WITH_TIMM.keys() - ALL.keys(), TIMM),
    "mistral4": "a language model alone, which takes no image",
    "pi0": "it gives a robot's actions by flow matching, not tokens",
}
"""Types of the mapping without a row here, with the reason; others have not been tried."""

MODEL_TYPES = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
TOO_NEW = {row.config["model_type"] for row in ALL.values()} - set(transformers.CONFIG_MAPPING)
"""Types that the transformers installed here does not have: they came with later releases."""


def need(model_type: str) -> None:
    """Skip a test of a type that is too new for the transformers installed here."""
    if model_type in TOO_NEW:
        pytest.skip(f"transformers {transformers.__version__} has no model type {model_type!r}")


def need_read(model_type: str) -> None:
    """Skip a test of a type that is refused with the transformers installed here, and read with later ones."""
    if not known(model_type):
        pytest.skip(f"with transformers {transformers.__version__}, models of type {model_type!r} are refused")


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of a size at which every part makes a difference: gates open, projections not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                spread = 0.5 if "embed_tokens" in name else weight[0].numel() ** -0.5
                weight.copy_(drawn * spread)
            else:
                weight.add_(0.3 * drawn.abs())
    return model


def tiny_model(
    name: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, rows: Mapping[str, Tiny] | None = None
) -> Any:
    """A random model of a family, in evaluation mode."""
    row = (rows or ALL)[name]
    need(row.config["model_type"])
    named = {row.image_name: IMAGE} if row.image_name else {}
    given = copy.deepcopy({**row.config, **named})  # configs write into what they are given
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
    kind = getattr(transformers, MODEL_TYPES[config.model_type])
    # The parts of some models cannot use SDPA yet in older releases of transformers, which say so where it is named.
    asked = row.kernel or (None if attention == "sdpa" else attention)
    return lively(kind._from_config(config, attn_implementation=asked)).to(dtype).eval()


def tiny_example(vlm: Any, name: str, seed: int = 1, rows: Mapping[str, Tiny] | None = None) -> Any:
    """An example with an image, a question and an answer, as `vlm.inputs` takes it."""
    row, generator = (rows or ALL)[name], torch.Generator().manual_seed(seed)
    pixels = {
        k: v if isinstance(v, Tensor) else torch.randn(v, generator=generator).to(vlm.model.dtype)
        for k, v in row.pixels.items()
    }
    image = [*row.around[0], *[IMAGE] * (row.tokens or _counted(vlm.model, pixels)), *row.around[1]]
    prompt = [*image, 1, *QUESTION] if row.first else [1, *image, *QUESTION]
    ids = torch.tensor([[*prompt, *ANSWER]])
    return vlm.inputs(input_ids=ids, answer_start=len(prompt), **pixels, **row.more(ids))


@torch.no_grad()
def _counted(model: Any, pixels: Mapping[str, Tensor]) -> int:
    found = model.base_model.get_image_features(**pixels)
    features = getattr(found, "pooler_output", found)
    return sum(f.reshape(-1, f.shape[-1]).shape[0] for f in features)
