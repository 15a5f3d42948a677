"""Models whose images are codes of one vocabulary with words: Chameleon, Emu 3."""

from __future__ import annotations

import torch

from tests.families.shared.tiny import IMAGE, NO_HEAD_DIM, Tiny

TINY = {
    "chameleon": Tiny(
        {
            "model_type": "chameleon",
            **NO_HEAD_DIM,
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
    "emu3": Tiny(
        {
            "model_type": "emu3",
            "text_config": NO_HEAD_DIM,
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
}
