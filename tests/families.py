"""Tiny random models of many families, from configs alone: no network, no weights. One row of data each.

A row says which class, which config, what the processor would have made of one image, and around which ids its tokens
stand. How many tokens the image has is asked of the model where the row does not say it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

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
        image_name: what the config calls the id of image tokens.
        first: whether image tokens come before BOS.
        more: model inputs made from the ids and the number of positions of the prompt.
    """

    config: Mapping[str, Any]
    pixels: Mapping[str, tuple[int, ...] | Tensor]
    tokens: int | None = None
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((5,), ())
    image_name: str = "image_token_id"
    first: bool = False
    more: Callable[[Tensor], Mapping[str, Tensor]] = field(default=lambda ids: {})


def image_types(name: str) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """Type ids that are 1 at image tokens."""
    return lambda ids: {name: (ids == IMAGE).long()}


def cross_mask(ids: Tensor) -> dict[str, Tensor]:
    """Mllama: every position from the image's on sees the first of its two tiles."""
    mask = torch.zeros(1, ids.shape[1], 1, 2, dtype=torch.long)
    mask[:, :, :, 0] = 1
    return {"cross_attention_mask": mask}


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

MODEL_TYPES = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


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
    name: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, rows: Mapping[str, Tiny] = FAMILIES
) -> Any:
    """A random model of a family, in evaluation mode."""
    row = rows[name]
    given = {**row.config, row.image_name: IMAGE}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
    kind = getattr(transformers, MODEL_TYPES[config.model_type])
    return lively(kind._from_config(config, attn_implementation=attention)).to(dtype).eval()


def tiny_example(vlm: Any, name: str, seed: int = 1, rows: Mapping[str, Tiny] = FAMILIES) -> Any:
    """An example with an image, a question and an answer, as `vlm.inputs` takes it."""
    row, generator = rows[name], torch.Generator().manual_seed(seed)
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
