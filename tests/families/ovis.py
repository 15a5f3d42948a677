"""Ovis 2."""

from __future__ import annotations

from tests.families.shared.cases import IN_TILES, SIX_TILES, TILE, in_a_row, of_tiny
from tests.families.shared.tiny import ONE, SEEING, VOCABULARY, Tiny, text

TINY = {
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
}

IN_OVIS = dict(IN_TILES, features=in_a_row)

CASES = {
    "ovis2": of_tiny(
        TINY["ovis2"], "Ovis2ImageProcessorPil", SIX_TILES, {"image_size": TILE, "hidden_stride": 2}, **IN_OVIS
    ),
    "ovis2, in its shape": of_tiny(
        TINY["ovis2"],
        "Ovis2ImageProcessorPil",
        dict(SIX_TILES, use_covering_area_grid=False),
        {"image_size": TILE},
        **IN_OVIS,
    ),
}
