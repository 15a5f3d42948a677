"""Image processors and tiny vision towers of many families, so that image tokens can be traced back to pixels.

The towers are transformers' own, with random weights and the output of every attention layer set to zero: what one
patch shows then changes the features that are made of it, and no others.
"""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import Ernie4_5_VLMoeImageProcessorPil
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil
from transformers.models.fuyu.processing_fuyu import FuyuProcessor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import VideoLlama3ImageProcessorPil
from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor
from transformers.utils import is_torchvision_available

from tests.families import ALL, MODEL_TYPES, lively, need

SILENCED = re.compile(r"(attn|attention|layers\.\d+\.conv)\.(out_proj|o_proj|proj|projection_layer)\.")
"""Output projections of attention in vision towers, and of the layers of LFM3-VL that convolve in its place."""
PATCH = 4
TILE = 24
WIDTH = 16  # of the vision towers

VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": PATCH,
    "initializer_range": 0.5,
}
TEXT = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}
CLIP = dict(VISION, model_type="clip_vision_model")
SIGLIP = dict(VISION, model_type="siglip_vision_model", vision_use_head=False)
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
QWEN = {
    "depth": 1,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
PINPOINTS = [[h * TILE, w * TILE] for h in range(1, 5) for w in range(1, 5) if 1 < h * w < 7]
NEAREST = {"resample": Image.Resampling.NEAREST}


def by_image(model: nn.Module, made: Mapping[str, Tensor], pictures: int) -> list[Tensor]:
    """Features of models that keep images apart; in older releases of transformers, some do not where there is one."""
    found = model.get_image_features(**made).pooler_output
    if isinstance(found, Tensor) and found.ndim == 2:
        counts = [1] if pictures == 1 else merged_patches(made)
        return list(found.split([len(found) * count // sum(counts) for count in counts]))
    return [one.flatten(0, -2) for one in found]


def merged_patches(made: Mapping[str, Tensor]) -> list[int]:
    """How many patches each of several pictures has, as far as model inputs tell."""
    if "image_grid_thw" in made:
        return [int(count) for count in made["image_grid_thw"].prod(-1)]
    return [int(count) for count in (made["image_position_ids"][..., 0] >= 0).sum(-1)]


def cross_attended(model: nn.Module, made: Mapping[str, Tensor], pictures: int) -> list[Tensor]:
    """The states that Mllama's text attends to, one tensor for each image."""
    return [one.flatten(0, 1) for one in model.vision_model(**made).last_hidden_state[0]]


def by_tiles(model: nn.Module, made: Mapping[str, Tensor], pictures: int) -> list[Tensor]:
    """Features of models that take the tiles of all images as a batch, split by image."""
    made = dict(made)
    tiles = (
        [int(n) for n in made.pop("num_patches")]
        if "num_patches" in made
        else [1 + int(n) for n in made.pop("num_crops")]
    )
    features = model.get_image_features(**made).pooler_output
    return [one.flatten(0, -2) for one in features.split(tiles)]


def in_a_row(model: nn.Module, made: Mapping[str, Tensor], pictures: int) -> list[Tensor]:
    """Features of models that take the tiles of all images of a sample in a row; the images are of one size."""
    return list(torch.cat(list(model.get_image_features(**made).pooler_output)).chunk(pictures))


def unchanged(processor: Any, given: list[Image.Image], made: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the image processor made is what the model takes."""
    return made


@dataclass(frozen=True)
class Case:
    """One family's image processor and model.

    Attributes:
        config: name of the model's config class, without "Config"; or a type of `tests.families`, from there.
        options: of that config.
        processor: the image processor's class.
        settings: of the image processor.
        nested: the images are given by sample, as LLaVA-OneVision wants it of several images.
        reach: pixels of a first resize that a resize of its outcome reads away from where it should: half a pixel for
            each resize after the first, since the filter is the nearest pixel. Of one resize, none.
        images_kwargs: what the family's processor adds to the image processor's settings.
        features: the method that makes image tokens.
        finish: what the family's processor does to what its image processor made.
    """

    config: str
    options: Mapping[str, Any]
    processor: type
    settings: Mapping[str, Any]
    nested: bool = False
    reach: float = 0.0
    images_kwargs: Mapping[str, Any] = field(default_factory=dict)
    features: Callable[[nn.Module, Mapping[str, Tensor], int], list[Tensor]] = by_image
    finish: Callable[[Any, list[Image.Image], Mapping[str, Any]], Mapping[str, Any]] = unchanged

    @property
    def image_processor(self) -> Any:
        need(self.config)
        return self.processor(**NEAREST, **self.settings)


@dataclass(frozen=True)
class Processor:
    """What the package asks of a processor."""

    image_processor: Any
    images_kwargs: Mapping[str, Any]


IDEFICS = {
    "vision_config": dict(VISION, image_size=TILE),
    "text_config": TEXT,
    "scale_factor": 2,
    "image_token_id": 60,
    "pad_token_id": 0,
}
SPLIT = {"size": {"longest_edge": 3 * TILE}, "max_image_size": {"longest_edge": TILE}}
LLAVA = {"text_config": TEXT, "vision_feature_layer": -1, "image_token_id": 60}

CASES = {
    "llava, crop": Case(
        "Llava",
        dict(LLAVA, vision_config=CLIP, vision_feature_select_strategy="default"),
        CLIPImageProcessorPil,
        {"size": {"shortest_edge": 30}, "crop_size": {"height": TILE, "width": TILE}},
    ),
    "llava, class token": Case(
        "Llava",
        dict(LLAVA, vision_config=CLIP, vision_feature_select_strategy="full"),
        CLIPImageProcessorPil,
        {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE}},
    ),
    "llava, square": Case(
        "Llava",
        dict(LLAVA, vision_config=CLIP, vision_feature_select_strategy="default"),
        LlavaImageProcessorPil,
        {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE}, "do_pad": True},
    ),
    "llava, pixtral": Case(
        "Llava",
        dict(
            LLAVA,
            vision_config=dict(VISION, model_type="pixtral", image_size=64, head_dim=8),
            vision_feature_select_strategy="full",
        ),
        PixtralImageProcessorPil,
        {"size": {"longest_edge": 64}, "patch_size": PATCH},
    ),
    "vipllava": Case(
        "VipLlava",
        {"vision_config": CLIP, "text_config": TEXT, "image_token_index": 60, "vision_feature_layers": [-1, 0]},
        CLIPImageProcessorPil,
        {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE}},
    ),
    "paligemma": Case(
        "PaliGemma",
        {
            "vision_config": dict(SIGLIP, projection_dim=16),
            "text_config": dict(TEXT, model_type="gemma"),
            "image_token_index": 60,
            "projection_dim": 16,
        },
        SiglipImageProcessorPil,
        {"size": {"height": TILE, "width": TILE}},
    ),
    "gemma3": Case(
        "Gemma3",
        {
            "vision_config": SIGLIP,
            "text_config": dict(TEXT, model_type="gemma3_text", query_pre_attn_scalar=8),
            "mm_tokens_per_image": 9,
            "image_token_index": 60,
        },
        Gemma3ImageProcessorPil,
        {"size": {"height": TILE, "width": TILE}},
        features=by_tiles,
    ),
    "gemma3, pan and scan": Case(
        "Gemma3",
        {
            "vision_config": SIGLIP,
            "text_config": dict(TEXT, model_type="gemma3_text", query_pre_attn_scalar=8),
            "mm_tokens_per_image": 9,
            "image_token_index": 60,
        },
        Gemma3ImageProcessorPil,
        {"size": {"height": TILE, "width": TILE}},
        images_kwargs={
            "do_pan_and_scan": True,
            "pan_and_scan_min_crop_size": 24,
            "pan_and_scan_max_num_crops": 4,
            "pan_and_scan_min_ratio_to_activate": 1.2,
        },
        features=by_tiles,
    ),
    "llava_next": Case(
        "LlavaNext",
        dict(LLAVA, vision_config=CLIP, image_grid_pinpoints=PINPOINTS, vision_feature_select_strategy="default"),
        LlavaNextImageProcessorPil,
        {
            "size": {"shortest_edge": TILE},
            "crop_size": {"height": TILE, "width": TILE},
            "image_grid_pinpoints": PINPOINTS,
        },
    ),
    "llava_onevision": Case(  # tiles that are no whole number of patches, as in the models that are used
        "LlavaOnevision",
        dict(
            LLAVA,
            vision_config=dict(SIGLIP, image_size=TILE + 2),
            image_grid_pinpoints=[[h * (TILE + 2) // TILE, w * (TILE + 2) // TILE] for h, w in PINPOINTS],
            vision_feature_select_strategy="full",
        ),
        LlavaOnevisionImageProcessorPil,
        {
            "size": {"height": TILE + 2, "width": TILE + 2},
            "image_grid_pinpoints": [[h * (TILE + 2) // TILE, w * (TILE + 2) // TILE] for h, w in PINPOINTS],
        },
    ),
    "llava_onevision, interpolated": Case(
        "LlavaOnevision",
        dict(
            LLAVA,
            vision_config=SIGLIP,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_1",
        ),
        LlavaOnevisionImageProcessorPil,
        {"size": {"height": TILE, "width": TILE}, "image_grid_pinpoints": PINPOINTS},
    ),
    "llava_onevision, several images": Case(
        "LlavaOnevision",
        dict(
            LLAVA,
            vision_config=SIGLIP,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_1",
        ),
        LlavaOnevisionImageProcessorPil,
        {"size": {"height": TILE, "width": TILE}, "image_grid_pinpoints": PINPOINTS},
        nested=True,
    ),
    "idefics3": Case("Idefics3", IDEFICS, Idefics3ImageProcessorPil, SPLIT, reach=1.0, features=in_a_row),
    "idefics3, uneven": Case(
        "Idefics3",
        IDEFICS,
        Idefics3ImageProcessorPil,
        dict(SPLIT, size={"longest_edge": 61}),
        reach=1.0,
        features=in_a_row,
    ),
    "smolvlm": Case("SmolVLM", IDEFICS, SmolVLMImageProcessorPil, SPLIT, reach=1.0, features=in_a_row),
    "smolvlm, whole": Case(
        "SmolVLM",
        IDEFICS,
        SmolVLMImageProcessorPil,
        dict(SPLIT, do_image_splitting=False),
        reach=0.5,
        features=in_a_row,
    ),
    "internvl": Case(
        "InternVL",
        {
            "vision_config": dict(VISION, image_size=[TILE, TILE], patch_size=[PATCH, PATCH]),
            "text_config": dict(TEXT, model_type="qwen2"),
            "image_token_id": 60,
            "downsample_ratio": 0.5,
        },
        GotOcr2ImageProcessorPil,
        {"size": {"height": TILE, "width": TILE}, "max_patches": 6},
        images_kwargs={"crop_to_patches": True},
        features=by_tiles,
    ),
    "qwen2_vl": Case(
        "Qwen2VL",
        {
            "vision_config": dict(QWEN, embed_dim=WIDTH, hidden_size=16, mlp_ratio=2),
            "text_config": dict(TEXT, **MROPE),
            "image_token_id": 60,
        },
        Qwen2VLImageProcessorPil,
        {"patch_size": PATCH, "merge_size": 2, "size": {"shortest_edge": 32**2, "longest_edge": 80**2}},
    ),
    "qwen2_5_vl": Case(
        "Qwen2_5_VL",
        {
            "vision_config": dict(
                QWEN,
                hidden_size=WIDTH,
                intermediate_size=32,
                out_hidden_size=16,
                window_size=16,
                fullatt_block_indexes=[],
            ),
            "text_config": dict(TEXT, **MROPE),
            "image_token_id": 60,
        },
        Qwen2VLImageProcessorPil,
        {"patch_size": PATCH, "merge_size": 2, "size": {"shortest_edge": 32**2, "longest_edge": 80**2}},
    ),
    "qwen3_vl": Case(
        "Qwen3VL",
        {
            "vision_config": dict(
                QWEN,
                hidden_size=WIDTH,
                intermediate_size=32,
                out_hidden_size=16,
                deepstack_visual_indexes=[0],
                num_position_embeddings=64,
            ),
            "text_config": dict(TEXT, **MROPE),
            "image_token_id": 60,
        },
        Qwen2VLImageProcessorPil,
        {"patch_size": PATCH, "merge_size": 2, "size": {"shortest_edge": 32**2, "longest_edge": 80**2}},
    ),
    "mistral3": Case(
        "Mistral3",
        {
            "vision_config": dict(VISION, model_type="pixtral", image_size=64, head_dim=8),
            "text_config": TEXT,
            "image_token_index": 60,
            "spatial_merge_size": 2,
        },
        PixtralImageProcessorPil,
        {"size": {"longest_edge": 64}, "patch_size": 2 * PATCH},
    ),
    "mllama": Case(
        "Mllama",
        {
            "vision_config": {
                "hidden_size": WIDTH,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_global_layers": 1,
                "attention_heads": 2,
                "image_size": TILE,
                "patch_size": PATCH,
                "max_num_tiles": 4,
                "intermediate_layers_indices": [0],
                "vision_output_dim": 2 * WIDTH,
                "supported_aspect_ratios": [[h, w] for h in range(1, 5) for w in range(1, 5) if h * w < 5],
                "initializer_range": 0.5,
            },
            "text_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "vocab_size": 64,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "cross_attention_layers": [],
            },
            "image_token_index": 60,
        },
        MllamaImageProcessorPil,
        {"size": {"height": TILE, "width": TILE}, "max_image_tiles": 4},
        features=cross_attended,
    ),
}
# An odd number of tokens along a tile's side, as in the models that are used: halved, neighbours share one.
ODD = TILE + PATCH
ODD_PINPOINTS = {"image_grid_pinpoints": [[h * ODD // TILE, w * ODD // TILE] for h, w in PINPOINTS]}
CASES["llava_onevision, odd"] = replace(
    CASES["llava_onevision"],
    options={**CASES["llava_onevision"].options, "vision_config": dict(SIGLIP, image_size=ODD), **ODD_PINPOINTS},
    settings={"size": {"height": ODD, "width": ODD}, **ODD_PINPOINTS},
)
# The same processor and vision tower under other language models.
LATER_QWEN = {"qwen3_vl_moe": "Qwen3VLMoe", "qwen3_5": "Qwen3_5", "qwen3_5_moe": "Qwen3_5Moe"}
CASES |= {name: replace(CASES["qwen3_vl"], config=config) for name, config in LATER_QWEN.items()}


def of_families(
    name: str, processor: type, settings: Mapping[str, Any], vision: Mapping[str, Any] | None = None, **more: Any
) -> Case:
    """The tiny model of a family that `tests.families` has, with small patches."""
    options: dict[str, Any] = copy.deepcopy(dict(ALL[name].config))
    options.get("vision_config", options).update({"patch_size": PATCH, **(vision or {})})
    return Case(options.pop("model_type"), options, processor, settings, **more)


def newer(name: str) -> Any:
    """A class of transformers; None where its model type is too new for the one installed here."""
    return getattr(transformers, name, None)


class NearestHunYuan(newer("HunYuanVLImageProcessorPil") or object):  # type: ignore[misc]
    """The filter of its resize is bicubic, whatever it is told."""

    def resize(self, *given: Any, **told: Any) -> Any:
        filters = f"{super().resize.__module__}.PILImageResampling"
        with mock.patch(filters, SimpleNamespace(BICUBIC=NEAREST["resample"])):
            return super().resize(*given, **told)


class CuttingFuyu(FuyuImageProcessorPil):
    """It cuts arrays only, and its family's processor hands it tensors."""

    def patchify_image(self, image: Tensor, patch_size: Any = None) -> Tensor:
        return torch.from_numpy(super().patchify_image(image.numpy(), patch_size))


def pieces(processor: Any, given: list[Image.Image], made: Mapping[str, Any]) -> dict[str, Any]:
    """Fuyu's processor cuts what its image processor made into patches; before transformers 5.16, another part did."""
    if not hasattr(FuyuProcessor, "_process_images"):
        told = [torch.stack(list(made[f"image_unpadded_{side}"])).view(-1, 1) for side in ("heights", "widths")]
        shown = torch.stack([torch.as_tensor(one) for one in made["images"]]).view(len(given), 1, 3, 60, 80)
        cut = processor.preprocess_with_tokenizer_info(shown, torch.ones(len(given), 1), *told, 1, 2, True)
        return {"image_patches": torch.cat([one for (one,) in cut["image_patches"]])}
    own = SimpleNamespace(image_processor=processor, replace_image_token=lambda *told, **more: "")
    made = FuyuProcessor._process_images(own, given, return_tensors="pt")[0]
    return {"image_patches": made["image_patches"]}


def in_pieces(model: nn.Module, made: Mapping[str, Tensor], pictures: int) -> list[Tensor]:
    """Features of patches in a row; the images are of one size."""
    return list(model.get_image_features(made["image_patches"]).last_hidden_state.chunk(pictures))


MERGED = {"patch_size": PATCH, "merge_size": 2, "size": {"shortest_edge": 32**2, "longest_edge": 80**2}}
SQUARE = {"size": {"height": TILE, "width": TILE}}
TILES = dict(SQUARE, max_patches=6)
PIXTRAL_64 = {"image_size": 64, "hidden_size": WIDTH, "head_dim": 8}
SLICED = {"patch_size": PATCH, "scale_resolution": 48, "max_slice_nums": 6}
GLM5 = {"patch_size": PATCH, "merge_size": 2, "min_image_tokens": 8, "max_image_tokens": 64}
SOFT = {"patch_size": PATCH, "max_soft_tokens": 70, "pooling_kernel_size": 2}
PAPER = {"size": {"height": 60, "width": 80}, "patch_size": {"height": PATCH, "width": PATCH}}
IN_TILES = {"features": by_tiles, "images_kwargs": {"crop_to_patches": True}}
IN_OVIS = dict(IN_TILES, features=in_a_row)
PAGE = {"image_size": TILE, "scale_factor": 2}

GRANITE_DOCLING = newer("GraniteDoclingImageProcessorPil")
AS_QWEN = {  # their image processors make of a picture what Qwen-VL's does, or nearly
    **dict.fromkeys(("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "qwen4_exp"), Qwen2VLImageProcessorPil),
    **dict.fromkeys(("cosmos3_omni", "exaone4_5", "hyperclovax_vision_v2", "lfm3_vl"), Qwen2VLImageProcessorPil),
    **dict.fromkeys(("glm4v", "glm4v_moe"), Glm4vImageProcessorPil),
    **dict.fromkeys(("glm46v", "glm_ocr"), Glm46VImageProcessorPil),
    "glmga": newer("GlmgaImageProcessorPil"),
    "cosmos3_edge": newer("Cosmos3EdgeImageProcessorPil"),
    "cohere_compass": newer("CohereCompassImageProcessorPil"),
    "ernie4_5_vl_moe": Ernie4_5_VLMoeImageProcessorPil,
    "paddleocr_vl": PaddleOCRVLImageProcessorPil,
    "video_llama_3": VideoLlama3ImageProcessorPil,
}
CASES |= {name: of_families(name, processor, MERGED) for name, processor in AS_QWEN.items()}
CASES |= {
    "dots3_note": of_families("dots3_note", Qwen2VLImageProcessorPil, dict(MERGED, temporal_patch_size=1)),
    "video_llama_3, unmerged": of_families("video_llama_3", VideoLlama3ImageProcessorPil, dict(MERGED, merge_size=1)),
    "hunyuan_vl": of_families("hunyuan_vl", NearestHunYuan, MERGED, {"max_image_size": 64}),
    "glm5_next": of_families("glm5_next", newer("Glm5NextImageProcessorPil"), GLM5),
    "gemma4": of_families("gemma4", Gemma4ImageProcessorPil, SOFT, {"position_embedding_size": 64}),
    "minicpmv4_6": of_families("minicpmv4_6", MiniCPMV4_6ImageProcessorPil, SLICED, features=in_a_row),
    "minicpmv4_7": of_families("minicpmv4_7", MiniCPMV4_6ImageProcessorPil, SLICED, features=in_a_row),
    **{
        name: of_families(name, PixtralImageProcessorPil, CASES["mistral3"].settings, PIXTRAL_64)
        for name in ("lighton_ocr", "mistral_large4")
    },
    "janus": of_families("janus", JanusImageProcessorPil, SQUARE, {"image_size": TILE}),
    "deepseek_vl": of_families("deepseek_vl", DeepseekVLImageProcessorPil, SQUARE, {"image_size": TILE}),
    "fuyu": of_families("fuyu", CuttingFuyu, PAPER, features=in_pieces, finish=pieces),
    "aya_vision": of_families("aya_vision", GotOcr2ImageProcessorPil, TILES, {"image_size": TILE}, **IN_TILES),
    "qianfan_ocr": of_families(
        "qianfan_ocr",
        GotOcr2ImageProcessorPil,
        TILES,
        {"image_size": [TILE, TILE], "patch_size": [PATCH, PATCH]},
        **IN_TILES,
    ),
    "granite_docling": of_families("granite_docling", GRANITE_DOCLING, TILES, PAGE, features=in_a_row),
    "granite_docling, fine": of_families(
        "granite_docling", GRANITE_DOCLING, dict(TILES, fine_route=True), PAGE, features=in_a_row
    ),
    "ovis2": of_families("ovis2", Ovis2ImageProcessorPil, TILES, {"image_size": TILE, "hidden_stride": 2}, **IN_OVIS),
    "ovis2, in its shape": of_families(
        "ovis2", Ovis2ImageProcessorPil, dict(TILES, use_covering_area_grid=False), {"image_size": TILE}, **IN_OVIS
    ),
    "shieldgemma2": of_families(
        "shieldgemma2", Gemma3ImageProcessorPil, SQUARE, {"image_size": TILE}, features=by_tiles
    ),
    "llava_next_video": replace(CASES["llava_next"], config="LlavaNextVideo"),
    "video_llava": replace(CASES["llava, crop"], config="VideoLlava", processor=VideoLlavaImageProcessor),
}


def of_crops(model: nn.Module, made: Mapping[str, Tensor], pictures: int) -> list[Tensor]:
    """Llama 4's features, which have no split by image; the images are of one size."""
    features = model.get_image_features(made["pixel_values"].float()).last_hidden_state
    return list(features.flatten(0, -2).chunk(pictures))


WITH_TORCHVISION = {
    *("molmo2", "lfm2_vl", "cohere2_vision", "llama4", "kimi_k25", "gemma4_unified", "nemotron_h_omni"),
    *("muse_glimmer", "muse_spark"),
}
"""Their image processors run with torchvision only, and so do their cases."""
if TORCHVISION := is_torchvision_available():
    BUDGET = {"patch_size": PATCH, "max_image_tokens": 64, "merge_size": 2}
    KIMI = {"patch_size": PATCH, "merge_size": 2, "max_patches": 200, "size": {"max_height": 30, "max_width": 30}}
    LLAMA4 = {"image_size": TILE, "pixel_shuffle_ratio": 0.5}
    NEMOTRON = {"patch_size": PATCH, "min_num_patches": 32, "max_num_patches": 256}
    CROPS = dict(SQUARE, patch_size=PATCH, max_crops=4, overlap_margins=[1, 1])
    LARGE = {"tile_size": TILE, "encoder_patch_size": PATCH, "min_image_tokens": 8, "max_image_tokens": 32}
    CASES |= {
        "molmo2": of_families("molmo2", newer("Molmo2ImageProcessor"), CROPS, {"image_size": [TILE, TILE]}),
        "molmo2, uneven": of_families(
            "molmo2",
            newer("Molmo2ImageProcessor"),
            dict(CROPS, size={"height": TILE + PATCH, "width": TILE + PATCH}),
            {"image_size": [TILE + PATCH, TILE + PATCH]},
        ),
        "lfm2_vl": of_families("lfm2_vl", transformers.Lfm2VlImageProcessor, LARGE, features=in_a_row),
        "cohere2_vision": of_families(
            "cohere2_vision", transformers.Cohere2VisionImageProcessor, TILES, {"image_size": TILE}, features=by_tiles
        ),
        "llama4": of_families("llama4", transformers.Llama4ImageProcessor, TILES, LLAMA4, features=of_crops),
        "kimi_k25": of_families("kimi_k25", newer("Kimi_K25ImageProcessor"), KIMI),
        "gemma4_unified": of_families(
            "gemma4_unified", newer("Gemma4UnifiedImageProcessor"), SOFT, {"mm_posemb_size": 64}
        ),
        "nemotron_h_omni": of_families("nemotron_h_omni", newer("NemotronH_Omni_Reasoning_V3ImageProcessor"), NEMOTRON),
        "muse_glimmer": of_families("muse_glimmer", newer("MuseGlimmerImageProcessor"), BUDGET),
        "muse_spark": of_families("muse_spark", newer("MuseGlimmerImageProcessor"), BUDGET),
    }


@cache
def tower(name: str) -> nn.Module:
    """The family's model with random weights, its vision attention silenced."""
    case = CASES[name]
    need(case.config)
    torch.manual_seed(0)
    if case.config in MODEL_TYPES:
        config = transformers.AutoConfig.for_model(case.config, **copy.deepcopy(dict(case.options)))
        kind = getattr(transformers, MODEL_TYPES[case.config])
        model = lively(kind._from_config(config, attn_implementation="eager")).base_model.eval()
    else:
        config = getattr(transformers, f"{case.config}Config")(**case.options)
        model = getattr(transformers, f"{case.config}Model")._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "language_model" in path:
                continue
            if SILENCED.search(path):
                weight.zero_()
            elif not weight.any():  # weights that start at zero would hide what changes
                weight.normal_(0, 0.1)
    return model


def processed(name: str, pictures: list[Image.Image]) -> dict[str, Tensor]:
    """What the image processor makes of pictures, as the model takes it."""
    case = CASES[name]
    given = [pictures] if case.nested else pictures
    made = dict(case.image_processor(given, return_tensors="pt", **case.images_kwargs))
    unused = (
        "num_tiles",
        "rows",
        "cols",
        "grids",
        "num_patches_per_image",
        "num_soft_tokens_per_image",
        "aspect_ratios",
    )
    return {k: v for k, v in case.finish(case.image_processor, pictures, made).items() if k not in unused}


@torch.no_grad()
def features(name: str, pictures: list[Image.Image]) -> list[Tensor]:
    """Image features in the order of the image tokens, `[token, hidden]` for each picture of one prompt."""
    return CASES[name].features(tower(name), processed(name, pictures), len(pictures))


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Noise, so that no two pixels look alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)
