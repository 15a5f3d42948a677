"""VideoLLaMA 3."""

from __future__ import annotations

import torch

from tests.families.shared.cases import MERGED, of_tiny
from tests.families.shared.tiny import SEEING, Tiny, text

TINY = {
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
}


CASES = {
    "video_llama_3, unmerged": of_tiny(
        TINY["video_llama_3"], "VideoLlama3ImageProcessorPil", dict(MERGED, merge_size=1)
    ),
    "video_llama_3": of_tiny(TINY["video_llama_3"], "VideoLlama3ImageProcessorPil", MERGED),
}
