"""Idefics and SmolVLM."""

from __future__ import annotations

from tests.families.shared.cases import TILE, TOWER, WORDS, Case, in_a_row
from tests.families.shared.clips import SQUARES, Clip, Film, Frames, OneByOne, as_images, as_pictures
from tests.families.shared.saved import SMOL, Saved, later, pil
from tests.families.shared.tiny import BEGIN, IMAGE, MULTI_HEAD, SEEING, Tiny, text

TINY = {
    "idefics": Tiny(
        {
            "model_type": "idefics",
            **MULTI_HEAD,
            "num_hidden_layers": 4,
            "cross_layer_interval": 2,
            "qk_layer_norms": True,
            "alpha_type": "vector",
            "additional_vocab_size": 2,
            "use_resampler": True,
            "vision_config": {
                "embed_dim": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 4,
                "num_attention_heads": 3,
                "image_size": 28,
                "patch_size": 14,
            },
            "perceiver_config": {
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 3,
                "resampler_head_dim": 8,
            },
        },
        {"pixel_values": (1, 1, 3, 28, 28)},
        tokens=1,
        around=((BEGIN,), (BEGIN,)),
        more=lambda ids: {"image_attention_mask": ((ids == IMAGE).cumsum(1) > 0).long()[..., None]},
    ),
    "idefics2": Tiny(
        {
            "model_type": "idefics2",
            "vision_config": SEEING,
            "text_config": text("mistral"),
            "perceiver_config": {
                "hidden_size": 32,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 4,
                "resampler_head_dim": 8,
                "num_key_value_heads": 2,
            },
        },
        {"pixel_values": (1, 1, 3, 28, 28)},
        tokens=4,
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
        promised=True,
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
        promised=True,
    ),
}

IDEFICS = {
    "vision_config": dict(TOWER, image_size=TILE),
    "text_config": WORDS,
    "scale_factor": 2,
    "image_token_id": 60,
    "pad_token_id": 0,
}
SPLIT = {"size": {"longest_edge": 3 * TILE}, "max_image_size": {"longest_edge": TILE}}

CASES = {
    "idefics3": Case("Idefics3", IDEFICS, "Idefics3ImageProcessorPil", SPLIT, reach=1.0, features=in_a_row),
    "idefics3, uneven": Case(
        "Idefics3",
        IDEFICS,
        "Idefics3ImageProcessorPil",
        dict(SPLIT, size={"longest_edge": 61}),
        reach=1.0,
        features=in_a_row,
    ),
    "smolvlm": Case("SmolVLM", IDEFICS, "SmolVLMImageProcessorPil", SPLIT, reach=1.0, features=in_a_row),
    "smolvlm, whole": Case(
        "SmolVLM",
        IDEFICS,
        "SmolVLMImageProcessorPil",
        dict(SPLIT, do_image_splitting=False),
        reach=0.5,
        features=in_a_row,
    ),
}

CLIPS = {"smolvlm": Clip({"pixel_values": (1, 3, 3, 56, 56)}, SQUARES, as_images=True)}
FILMS = {
    "smolvlm, whole": Film(lambda: OneByOne(CASES["smolvlm, whole"].image_processor), as_pictures, as_images, reach=0.5)
}
READERS = {
    "smolvlm": lambda: (
        pil("SmolVLMImageProcessorPil", **SMOL),
        Frames(OneByOne(pil("SmolVLMImageProcessorPil", **SMOL, do_image_splitting=False)), as_pictures),
    )
}

SAVED = {
    "idefics3": Saved("Idefics3Processor", later("Idefics3ImageProcessorPil", **SMOL), {"image_seq_len": 4}),
    "smolvlm": Saved(
        "SmolVLMProcessor",
        later("SmolVLMImageProcessor", **SMOL),
        {"image_seq_len": 4},
        frames=later("SmolVLMVideoProcessor", **SMOL, num_frames=8, fps=1),
    ),
}
