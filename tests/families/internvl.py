"""InternVL and Qianfan-OCR."""

from __future__ import annotations

from tests.families.shared.cases import IN_TILES, PATCH, SIX_TILES, TILE, TOWER, WORDS, Case, by_tiles, of_tiny
from tests.families.shared.clips import SQUARES, Clip, Film, Frames, as_images, as_tiles, in_a_video, nearest
from tests.families.shared.saved import WHOLE, Saved, later, pil
from tests.families.shared.tiny import SEEING, WIDER, Tiny, text

TINY = {
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
        promised=True,
    ),
    "qianfan_ocr": Tiny(
        {
            "model_type": "qianfan_ocr",
            "text_config": text("qwen3"),
            "vision_config": {**SEEING, "image_size": [56, 56], "patch_size": [14, 14]},
            "image_seq_length": 4,
            "downsample_ratio": 0.5,
        },
        WIDER,
        tokens=4,
    ),
}


CASES = {
    "internvl": Case(
        "InternVL",
        {
            "vision_config": dict(TOWER, image_size=[TILE, TILE], patch_size=[PATCH, PATCH]),
            "text_config": dict(WORDS, model_type="qwen2"),
            "image_token_id": 60,
            "downsample_ratio": 0.5,
        },
        "GotOcr2ImageProcessorPil",
        {"size": {"height": TILE, "width": TILE}, "max_patches": 6},
        images_kwargs={"crop_to_patches": True},
        features=by_tiles,
    ),
    "qianfan_ocr": of_tiny(
        TINY["qianfan_ocr"],
        "GotOcr2ImageProcessorPil",
        SIX_TILES,
        {"image_size": [TILE, TILE], "patch_size": [PATCH, PATCH]},
        **IN_TILES,
    ),
}

CLIPS = {"internvl": Clip({"pixel_values": (3, 3, 56, 56)}, SQUARES, as_images=True)}
FILMS = {"internvl": Film(nearest("GotOcr2ImageProcessorPil", TILE), as_tiles, as_images)}
READERS = {
    "internvl": lambda: (
        pil("GotOcr2ImageProcessorPil", **WHOLE, max_patches=6),
        Frames(pil("GotOcr2ImageProcessorPil", **WHOLE), in_a_video),
    )
}

SAVED = {
    "internvl": Saved(
        "InternVLProcessor",
        later("GotOcr2ImageProcessor", **WHOLE, max_patches=6),
        {"image_seq_length": 4},
        frames=later("InternVLVideoProcessor", **WHOLE),
    )
}
