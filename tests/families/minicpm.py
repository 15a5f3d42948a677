"""MiniCPM-V and MiniCPM-OCR."""

from __future__ import annotations

import torch

from tests.families.shared.cases import PATCH, in_a_row, of_tiny
from tests.families.shared.tiny import BEGIN, DELTA_RULE, END, SEEING, TEXT, Tiny, image_types

QWEN3_5 = {**TEXT, **DELTA_RULE, "model_type": "qwen3_5_text"}
MINICPM = {
    "text_config": QWEN3_5,
    "vision_config": {**SEEING, "patch_size": 4, "num_hidden_layers": 3},
    "insert_layer_id": 1,
    "video_token_id": 153,
}
MINICPM_PIXELS = {"pixel_values": (1, 3, 4, 96 * 4), "target_sizes": torch.tensor([[8, 12]])}

TINY = {
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
}

SLICED = {"patch_size": PATCH, "scale_resolution": 48, "max_slice_nums": 6}

CASES = {
    "minicpmv4_6": of_tiny(TINY["minicpmv4_6"], "MiniCPMV4_6ImageProcessorPil", SLICED, features=in_a_row),
    "minicpmv4_7": of_tiny(TINY["minicpmv4_7"], "MiniCPMV4_6ImageProcessorPil", SLICED, features=in_a_row),
}
