"""A row for a tiny random model, and the configs that many of them are made of."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

IMAGE, BEGIN, END, VIDEO = 150, 151, 152, 153
VOCABULARY = 200
QUESTION, ANSWER = (30, 31, 32, 40), (7, 8, 9)
ROUNDING = 1e-4
"""Logits of tiny models that another order of sums may move, on any processor; faults move them by a tenth and more."""


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
        promised: every test of all families is run on it.
        timm: timm builds its vision tower; timm imports torchvision, which must fit torch.
        failing: why it is refused when it is opened, or does not pass.
    """

    config: Mapping[str, Any]
    pixels: Mapping[str, tuple[int, ...] | Tensor]
    tokens: int | None = None
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((5,), ())
    image_name: str | None = "image_token_id"
    first: bool = False
    more: Callable[[Tensor], Mapping[str, Tensor]] = field(default=lambda ids: {})
    kernel: str | None = None
    promised: bool = False
    timm: bool = False
    failing: str = ""


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


def image_types(name: str) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """Type ids that are 1 at image tokens."""
    return lambda ids: {name: (ids == IMAGE).long()}


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
QWEN_PIXELS = {"pixel_values": (24, 3 * 2 * 14 * 14), "image_grid_thw": torch.tensor([[1, 4, 6]])}
TILED_PIXELS = {"pixel_values": (1, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56]])}
QWEN = {"pixels": QWEN_PIXELS, "tokens": 6, "around": ((BEGIN,), (END,)), "more": image_types("mm_token_type_ids")}
SIGLIP = seeing("siglip_vision_model", vision_use_head=False)
SIGLIP_56 = {**SIGLIP, "image_size": 56}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
LATENT = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
ONE = {"pixel_values": (1, 3, 28, 28)}
WIDER = {"pixel_values": (1, 3, 56, 56)}
QWEN2_5_VISION = {
    **QWEN_VISION,
    "intermediate_size": 64,
    "out_hidden_size": 32,
    "window_size": 56,
    "fullatt_block_indexes": [1],
}
QWEN3_VISION = {
    **QWEN_VISION,
    "intermediate_size": 64,
    "out_hidden_size": 32,
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 64,
}
MROPE3 = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}}
SAM = {
    "hidden_size": 24,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 128,
    "patch_size": 16,
    "window_size": 4,
    "global_attn_indexes": [1],
    "mlp_dim": 48,
}
NO_HEAD_DIM = {k: v for k, v in TEXT.items() if k != "head_dim"}
MULTI_HEAD = {k: v for k, v in TEXT.items() if k not in ("head_dim", "num_key_value_heads")}
FLAT_PIXELS = {"pixel_values": (24, 588), "image_grid_thw": torch.tensor([[1, 4, 6]])}


def too_new(model_type: str) -> bool:
    """Whether the transformers installed here has neither a model type nor a config of this name."""
    return model_type not in transformers.CONFIG_MAPPING and not hasattr(transformers, f"{model_type}Config")


def need(model_type: str) -> None:
    """Skip a test of a type that is too new for the transformers installed here."""
    if too_new(model_type):
        pytest.skip(f"transformers {transformers.__version__} has no model type {model_type!r}")


def named(name: str) -> Any:
    """A class of transformers, also where an older release takes it for one that needs torchvision (Idefics 3)."""
    kind = getattr(transformers, name)
    if not getattr(kind, "is_dummy", False):
        return kind
    files = Path(transformers.__file__).parent.glob("models/*/image_processing_pil_*.py")
    file = next(file for file in files if f"class {name}(" in file.read_text(encoding="utf-8"))
    return getattr(importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}"), name)
