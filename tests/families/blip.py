"""BLIP-2 and InstructBLIP: tokens that answer the queries of a Q-Former."""

from __future__ import annotations

import torch

from tests.families.shared.tiny import IMAGE, ONE, SEEING, VOCABULARY, Tiny, text

QFORMER = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "vocab_size": VOCABULARY,
    "encoder_hidden_size": 24,
    "cross_attention_frequency": 1,
}
INSTRUCTBLIP_CONFIG = {
    "model_type": "instructblip",
    "vision_config": dict(SEEING),
    "qformer_config": QFORMER,
    "text_config": text("llama"),
    "num_query_tokens": 4,
}
INSTRUCTBLIP_PIXELS = {
    "pixel_values": (1, 3, 28, 28),
    "qformer_input_ids": torch.tensor([[3, 4, 5]]),
    "qformer_attention_mask": torch.ones(1, 3, dtype=torch.long),
}

TINY = {
    "blip-2": Tiny(
        {
            "model_type": "blip-2",
            "vision_config": dict(SEEING),
            "qformer_config": QFORMER,
            "text_config": text("llama"),
            "num_query_tokens": 4,
        },
        ONE,
        tokens=4,
        image_name="image_token_index",
        first=True,
        around=((), ()),
    ),
    "instructblip": Tiny(
        INSTRUCTBLIP_CONFIG,
        INSTRUCTBLIP_PIXELS,
        tokens=4,
        image_name="image_token_index",
        first=True,
        around=((), ()),
        promised=True,
    ),
    "instructblipvideo": Tiny(
        {
            **INSTRUCTBLIP_CONFIG,
            "model_type": "instructblipvideo",
            "video_token_index": IMAGE,
        },
        {**INSTRUCTBLIP_PIXELS, "pixel_values": (1, 1, 3, 28, 28)},
        tokens=4,
        image_name="image_token_index",
        first=True,
        around=((), ()),
    ),
}
