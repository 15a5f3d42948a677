"""LLaVA and what was made after it."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.families.shared.cases import CLIP_TILE, PATCH, SIGLIP_TILE, TILE, TOWER, WORDS, Case
from tests.families.shared.clips import Clip, Film, Frames, in_a_video, nearest
from tests.families.shared.saved import CROPPED, ONEVISION, Saved, later, pil
from tests.families.shared.tiny import IMAGE, ONE, TILED_PIXELS, TILES, VIDEO, Tiny, seeing, text

TINY = {
    "llava": Tiny(
        {"model_type": "llava", "vision_config": seeing("clip_vision_model"), "text_config": text("llama")},
        {"pixel_values": (1, 3, 28, 28)},
        promised=True,
    ),
    "vipllava": Tiny(
        {
            "model_type": "vipllava",
            "vision_config": seeing("clip_vision_model"),
            "text_config": text("llama"),
            "vision_feature_layers": [-2, -1],
        },
        ONE,
        image_name="image_token_index",
    ),
    "llava_next": Tiny(
        dict(model_type="llava_next", vision_config=seeing("clip_vision_model"), text_config=text("llama"), **TILES),
        TILED_PIXELS,
        promised=True,
    ),
    "llava_next_video": Tiny(
        {
            "model_type": "llava_next_video",
            "vision_config": seeing("clip_vision_model"),
            "text_config": text("llama"),
            "video_token_index": 153,
            **TILES,
        },
        TILED_PIXELS,
        image_name="image_token_index",
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
        promised=True,
    ),
    "video_llava": Tiny(
        {
            "model_type": "video_llava",
            "vision_config": seeing("clip_vision_model"),
            "text_config": text("llama"),
            "video_token_index": 153,
        },
        {"pixel_values_images": (1, 3, 28, 28)},
        tokens=4,
        image_name="image_token_index",
    ),
}

PINPOINTS = [[h * TILE, w * TILE] for h in range(1, 5) for w in range(1, 5) if 1 < h * w < 7]
LLAVA_OPTIONS = {"text_config": WORDS, "vision_feature_layer": -1, "image_token_id": 60}
ODD = TILE + PATCH
ODD_PINPOINTS = {"image_grid_pinpoints": [[h * ODD // TILE, w * ODD // TILE] for h, w in PINPOINTS]}

CASES = {
    "llava, crop": Case(
        "Llava",
        dict(LLAVA_OPTIONS, vision_config=CLIP_TILE, vision_feature_select_strategy="default"),
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 30}, "crop_size": {"height": TILE, "width": TILE}},
    ),
    "llava, class token": Case(
        "Llava",
        dict(LLAVA_OPTIONS, vision_config=CLIP_TILE, vision_feature_select_strategy="full"),
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE}},
    ),
    "llava, square": Case(
        "Llava",
        dict(LLAVA_OPTIONS, vision_config=CLIP_TILE, vision_feature_select_strategy="default"),
        "LlavaImageProcessorPil",
        {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE}, "do_pad": True},
    ),
    "llava, pixtral": Case(
        "Llava",
        dict(
            LLAVA_OPTIONS,
            vision_config=dict(TOWER, model_type="pixtral", image_size=64, head_dim=8),
            vision_feature_select_strategy="full",
        ),
        "PixtralImageProcessorPil",
        {"size": {"longest_edge": 64}, "patch_size": PATCH},
    ),
    "vipllava": Case(
        "VipLlava",
        {"vision_config": CLIP_TILE, "text_config": WORDS, "image_token_index": 60, "vision_feature_layers": [-1, 0]},
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE}},
    ),
    "llava_next": Case(
        "LlavaNext",
        dict(
            LLAVA_OPTIONS,
            vision_config=CLIP_TILE,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_select_strategy="default",
        ),
        "LlavaNextImageProcessorPil",
        {
            "size": {"shortest_edge": TILE},
            "crop_size": {"height": TILE, "width": TILE},
            "image_grid_pinpoints": PINPOINTS,
        },
    ),
    "llava_onevision": Case(  # tiles that are no whole number of patches, as in the models that are used
        "LlavaOnevision",
        dict(
            LLAVA_OPTIONS,
            vision_config=dict(SIGLIP_TILE, image_size=TILE + 2),
            image_grid_pinpoints=[[h * (TILE + 2) // TILE, w * (TILE + 2) // TILE] for h, w in PINPOINTS],
            vision_feature_select_strategy="full",
        ),
        "LlavaOnevisionImageProcessorPil",
        {
            "size": {"height": TILE + 2, "width": TILE + 2},
            "image_grid_pinpoints": [[h * (TILE + 2) // TILE, w * (TILE + 2) // TILE] for h, w in PINPOINTS],
        },
    ),
    "llava_onevision, interpolated": Case(
        "LlavaOnevision",
        dict(
            LLAVA_OPTIONS,
            vision_config=SIGLIP_TILE,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_1",
        ),
        "LlavaOnevisionImageProcessorPil",
        {"size": {"height": TILE, "width": TILE}, "image_grid_pinpoints": PINPOINTS},
    ),
    "llava_onevision, several images": Case(
        "LlavaOnevision",
        dict(
            LLAVA_OPTIONS,
            vision_config=SIGLIP_TILE,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_1",
        ),
        "LlavaOnevisionImageProcessorPil",
        {"size": {"height": TILE, "width": TILE}, "image_grid_pinpoints": PINPOINTS},
        nested=True,
    ),
}
CASES["llava_onevision, odd"] = replace(
    CASES["llava_onevision"],
    options={**CASES["llava_onevision"].options, "vision_config": dict(SIGLIP_TILE, image_size=ODD), **ODD_PINPOINTS},
    settings={"size": {"height": ODD, "width": ODD}, **ODD_PINPOINTS},
)
CASES["llava_next_video"] = replace(CASES["llava_next"], config="LlavaNextVideo")
CASES["video_llava"] = replace(CASES["llava, crop"], config="VideoLlava", processor="VideoLlavaImageProcessor")

CLIPS = {
    "llava_onevision": Clip(
        {"pixel_values_videos": (1, 3, 3, 28, 28)},
        (VIDEO,) * 4,
        still=({"pixel_values": (1, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56]])}, (IMAGE,) * 14),
    )
}
FILMS = {
    "llava_onevision": Film(nearest("SiglipImageProcessorPil", TILE + 2), in_a_video),
    "llava_onevision, odd": Film(nearest("SiglipImageProcessorPil", ODD), in_a_video),
}
READERS = {
    "llava_onevision": lambda: (
        pil("LlavaOnevisionImageProcessorPil", **ONEVISION, **TILES),
        Frames(pil("SiglipImageProcessorPil", **ONEVISION), in_a_video),
    )
}

PATCHES = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
SAVED = {
    "llava": Saved("LlavaProcessor", later("CLIPImageProcessorPil", **CROPPED), PATCHES),
    "llava_next": Saved("LlavaNextProcessor", later("LlavaNextImageProcessorPil", **CROPPED, **TILES), PATCHES),
    "llava_onevision": Saved(
        "LlavaOnevisionProcessor",
        later("LlavaOnevisionImageProcessor", **ONEVISION, **TILES),
        {"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
        frames=later("LlavaOnevisionVideoProcessor", **ONEVISION),
    ),
}
