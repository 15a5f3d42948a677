"""Qwen-VL, and Qwen's models of more than pictures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from tests.families.shared.cases import MERGED, NEAREST, PATCH, WIDTH, WORDS, Case, of_tiny
from tests.families.shared.clips import GRID, STAMP, Clip, Film, Frames, in_pairs
from tests.families.shared.saved import QWEN_SIZES, Saved, later, pil
from tests.families.shared.tiny import (
    BEGIN,
    DELTA_RULE,
    END,
    EXPERTS,
    IMAGE,
    MROPE,
    MROPE3,
    QWEN,
    QWEN2_5_VISION,
    QWEN3_VISION,
    QWEN_IDS,
    QWEN_PIXELS,
    QWEN_VISION,
    TEXT,
    VIDEO,
    Tiny,
)

QWEN3_5_VISION = {**QWEN_VISION, "intermediate_size": 64, "out_hidden_size": 32, "num_position_embeddings": 64}
HEARING = {
    "d_model": 24,
    "encoder_layers": 1,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "output_dim": 32,
}

TINY = {
    "qwen2_vl": Tiny(
        dict(
            model_type="qwen2_vl",
            text_config={**TEXT, **MROPE},
            vision_config={**QWEN_VISION, "embed_dim": 32, "mlp_ratio": 2},
            **QWEN_IDS,
        ),
        **QWEN,
        promised=True,
    ),
    "qwen2_5_vl": Tiny(
        dict(
            model_type="qwen2_5_vl",
            text_config={**TEXT, **MROPE},
            vision_config=QWEN2_5_VISION,
            **QWEN_IDS,
        ),
        **QWEN,
        promised=True,
    ),
    "qwen3_vl": Tiny(
        dict(
            model_type="qwen3_vl",
            text_config={
                **TEXT,
                **MROPE3,
            },
            vision_config=QWEN3_VISION,
            **QWEN_IDS,
        ),
        **QWEN,
        promised=True,
    ),
    "qwen3_vl_moe": Tiny(
        {
            "model_type": "qwen3_vl_moe",
            "text_config": {
                **TEXT,
                **MROPE3,
                "num_experts": 2,
                **EXPERTS,
            },
            "vision_config": QWEN3_VISION,
            **QWEN_IDS,
        },
        **QWEN,
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
    "qwen2_5_omni_thinker": Tiny(
        {
            "model_type": "qwen2_5_omni_thinker",
            "text_config": {**TEXT, **MROPE, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
            "vision_config": QWEN2_5_VISION,
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
                **MROPE3,
                "num_experts": 2,
                "mlp_only_layers": [0],
                **EXPERTS,
            },
            "vision_config": QWEN3_VISION,
            "audio_config": {**HEARING, "downsample_hidden_size": 8},
            "vision_start_token_id": BEGIN,
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
}

QWEN_TOWER = {
    "depth": 1,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}

CASES = {
    "qwen2_vl": Case(
        "Qwen2VL",
        {
            "vision_config": dict(QWEN_TOWER, embed_dim=WIDTH, hidden_size=16, mlp_ratio=2),
            "text_config": dict(WORDS, **MROPE),
            "image_token_id": 60,
        },
        "Qwen2VLImageProcessorPil",
        {"patch_size": PATCH, "merge_size": 2, "size": {"shortest_edge": 32**2, "longest_edge": 80**2}},
    ),
    "qwen2_5_vl": Case(
        "Qwen2_5_VL",
        {
            "vision_config": dict(
                QWEN_TOWER,
                hidden_size=WIDTH,
                intermediate_size=32,
                out_hidden_size=16,
                window_size=16,
                fullatt_block_indexes=[],
            ),
            "text_config": dict(WORDS, **MROPE),
            "image_token_id": 60,
        },
        "Qwen2VLImageProcessorPil",
        {"patch_size": PATCH, "merge_size": 2, "size": {"shortest_edge": 32**2, "longest_edge": 80**2}},
    ),
    "qwen3_vl": Case(
        "Qwen3VL",
        {
            "vision_config": dict(
                QWEN_TOWER,
                hidden_size=WIDTH,
                intermediate_size=32,
                out_hidden_size=16,
                deepstack_visual_indexes=[0],
                num_position_embeddings=64,
            ),
            "text_config": dict(WORDS, **MROPE),
            "image_token_id": 60,
        },
        "Qwen2VLImageProcessorPil",
        {"patch_size": PATCH, "merge_size": 2, "size": {"shortest_edge": 32**2, "longest_edge": 80**2}},
    ),
}
# The same processor and vision tower under other language models.
LATER = {"qwen3_vl_moe": "Qwen3VLMoe", "qwen3_5": "Qwen3_5", "qwen3_5_moe": "Qwen3_5Moe"}
CASES |= {name: replace(CASES["qwen3_vl"], config=config) for name, config in LATER.items()}
LIKE = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "qwen4_exp")
CASES |= {name: of_tiny(TINY[name], "Qwen2VLImageProcessorPil", MERGED) for name in LIKE}

PICTURE = ({"pixel_values": (16, 1176), "image_grid_thw": torch.tensor([[1, 4, 4]])}, (BEGIN, *[IMAGE] * 4, END))
PAIR = (BEGIN, *[VIDEO] * 6, END)
CLIPS = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), Clip(GRID, (BEGIN, *[VIDEO] * 12, END), still=PICTURE)),
    "qwen3_vl": Clip(GRID, (STAMP, *PAIR, STAMP, *PAIR), still=PICTURE),
}
FILMS = {name: Film(partial(pil, "Qwen2VLImageProcessorPil", **NEAREST, **MERGED)) for name in (*CLIPS, *LATER)}


def read() -> tuple[Any, Any]:
    """What makes pixels of a picture, and of a video."""
    pixels = pil("Qwen2VLImageProcessorPil", **QWEN_SIZES)
    return pixels, Frames(pixels, in_pairs)


READERS = dict.fromkeys(CLIPS, read)


def saved(name: str, videos: str, sizes: dict[str, Any]) -> Saved:
    """A processor of Qwen-VL."""
    made = later("Qwen2VLImageProcessor", **QWEN_SIZES), later(f"{videos}VideoProcessor", **sizes)
    return Saved(f"{name}Processor", made[0], {}, "<begin><image><end>", "<begin><video><end>", made[1])


OF_ALL_FRAMES = {**QWEN_SIZES, "size": {"shortest_edge": 56**2, "longest_edge": 6 * 112**2}}
SAVED = {
    "qwen2_vl": saved("Qwen2VL", "Qwen2VL", QWEN_SIZES),
    "qwen2_5_vl": saved("Qwen2_5_VL", "Qwen2VL", QWEN_SIZES),
    "qwen3_vl": saved("Qwen3VL", "Qwen3VL", OF_ALL_FRAMES),
}
