"""Kosmos-2 and Kosmos-2.5."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.families.shared.tiny import BEGIN, END, IMAGE, ONE, SEEING, VOCABULARY, Tiny

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


TINY = {
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
}
