"""HunYuan-VL."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.families.shared.cases import MERGED, NEAREST, of_tiny
from tests.families.shared.tiny import BEGIN, END, FLAT_PIXELS, MROPE, TEXT, Tiny, image_types

TINY = {
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
        FLAT_PIXELS,
        around=((BEGIN,), (END,)),
        more=image_types("mm_token_type_ids"),
    ),
}


def nearest_hunyuan() -> type:
    """The filter of its resize is bicubic, whatever it is told."""
    from transformers.models.hunyuan_vl import image_processing_pil_hunyuan_vl as module

    class Nearest(module.HunYuanVLImageProcessorPil):
        def resize(self, *given: Any, **told: Any) -> Any:
            nearest = SimpleNamespace(BICUBIC=NEAREST["resample"])
            with mock.patch.object(module, "PILImageResampling", nearest):
                return super().resize(*given, **told)

    return Nearest


CASES = {
    "hunyuan_vl": of_tiny(TINY["hunyuan_vl"], nearest_hunyuan, MERGED, {"max_image_size": 64}),
}
