"""Videos for tiny models, and a stand-in for the video processors, which transformers runs with torchvision only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature, processing_utils, video_processing_utils
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.video_utils import make_batched_metadata, make_batched_videos

from lvlm_interp.model.layouts import VIDEOS
from tests import processors
from tests.families import ANSWER, BEGIN, END, IMAGE, QUESTION, TILES
from tests.saved import ONEVISION, QWEN_SIZES, SMOL, VIDEO, WHOLE, processor

# --- model inputs that are processed already --------------------------------------------------------------------------

STAMP = 45  # a token between frames, where Qwen3-VL writes the time
GRID = {"pixel_values_videos": (48, 3 * 2 * 14 * 14), "video_grid_thw": torch.tensor([[2, 4, 6]])}
SQUARES = [*[IMAGE] * 4, STAMP] * 3


@dataclass(frozen=True)
class Clip:
    """Pixels of a video (shapes to fill, or tensors as they are), its tokens, and whether those are images'."""

    pixels: Mapping[str, tuple[int, ...] | Tensor]
    tokens: tuple[int, ...]
    as_images: bool = False


CLIPS = {
    "qwen2_vl": Clip(GRID, (BEGIN, *[VIDEO] * 12, END)),
    "qwen2_5_vl": Clip(GRID, (BEGIN, *[VIDEO] * 12, END)),
    "qwen3_vl": Clip(GRID, (STAMP, BEGIN, *[VIDEO] * 6, END, STAMP, BEGIN, *[VIDEO] * 6, END)),
    "llava_onevision": Clip({"pixel_values_videos": (1, 3, 3, 28, 28)}, (VIDEO,) * 4),
    "internvl": Clip({"pixel_values": (3, 3, 56, 56)}, tuple(SQUARES), as_images=True),
    "smolvlm": Clip({"pixel_values": (1, 3, 3, 56, 56)}, tuple(SQUARES), as_images=True),
}
PICTURES = {  # a picture to stand before the video: its pixels and tokens
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        ({"pixel_values": (16, 1176), "image_grid_thw": torch.tensor([[1, 4, 4]])}, (BEGIN, *[IMAGE] * 4, END)),
    ),
    "llava_onevision": (
        {"pixel_values": (1, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56]])},
        (IMAGE,) * 14,
    ),
}


def clip_example(vlm: Any, name: str, seed: int = 1, picture: bool = False) -> Any:
    """An example with a video (and a picture before it), a question and an answer, as `vlm.inputs` takes it."""
    row, generator = CLIPS[name], torch.Generator().manual_seed(seed)
    shapes, before = PICTURES[name] if picture else ({}, ())
    pixels = {
        k: v if isinstance(v, Tensor) else torch.randn(v, generator=generator)
        for k, v in {**shapes, **row.pixels}.items()
    }
    prompt = [1, *before, *row.tokens, *QUESTION]
    ids = torch.tensor([[*prompt, *ANSWER]])
    if "video_grid_thw" in pixels:
        pixels["mm_token_type_ids"] = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
    return vlm.inputs(input_ids=ids, answer_start=len(prompt), **pixels)


# --- a stand-in for video processors ----------------------------------------------------------------------------------


def in_pairs(made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Qwen-VL's patches of pictures, in each of which one frame stands twice, as patches of pairs of frames."""
    _, rows, columns = made["image_grid_thw"][0].tolist()
    frames = made["pixel_values"].reshape(-1, rows * columns, 3, 2, made["pixel_values"].shape[1] // 6)
    frames = torch.cat([frames, frames[-1:]]) if len(frames) % 2 else frames
    paired = torch.stack([frames[::2, :, :, 0], frames[1::2, :, :, 1]], 3)
    return {
        "pixel_values_videos": paired.reshape(-1, made["pixel_values"].shape[1]),
        "video_grid_thw": torch.tensor([[len(paired), rows, columns]]),
    }


def in_a_video(made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The frames as a video of their own."""
    return {"pixel_values_videos": made["pixel_values"][None]}


def as_pictures(made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The frames in the place of pictures (SmolVLM)."""
    return {k: made[k] for k in ("pixel_values", "pixel_attention_mask")}


# Before transformers 5.10, nothing of a video processor can be imported without torchvision.
Base: Any = getattr(video_processing_utils, "VideoProcessorMixin", BaseImageProcessor)


class Frames(Base):  # type: ignore[misc]
    """Makes of every frame what an image processor makes of a picture, and lays frames together as the family does."""

    temporal_patch_size, merge_size, num_frames, fps = 2, 2, 8, 1

    def __init__(self, pictures: Any, together: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> None:
        super().__init__()
        self.pictures, self.together = pictures, together
        shared = ["pixel_values", "pixel_attention_mask"]
        self.model_input_names = shared if together is as_pictures else ["pixel_values_videos", "video_grid_thw"]

    def __call__(self, videos: Any, video_metadata: Any = None, **told: Any) -> BatchFeature:
        assert told.get("do_sample_frames") is False  # the frames that were given, all of them
        (video,) = clips = make_batched_videos(videos)
        made = self.pictures([Image.fromarray(frame) for frame in video], return_tensors="pt")
        return BatchFeature({**self.together(made), "video_metadata": make_batched_metadata(clips, video_metadata)})


class OneByOne:
    """An image processor that takes the pictures of one example as a batch, in the place of one that nests them."""

    def __init__(self, pictures: Any) -> None:
        self.pictures = pictures

    def __call__(self, pictures: list[Image.Image], **told: Any) -> Any:
        return self.pictures([pictures], **told)


# --- features of frames -----------------------------------------------------------------------------------------------


def as_video(model: nn.Module, made: Mapping[str, Tensor]) -> Tensor:
    """Features of models that take videos."""
    told = dict(made)
    pixels = told.pop("pixel_values_videos")  # LLaVA-OneVision called them otherwise before
    return model.get_video_features(pixels, **told).pooler_output[0]


def as_images(model: nn.Module, made: Mapping[str, Tensor]) -> Tensor:
    """Features of models to which frames are images."""
    return torch.cat([one.flatten(0, -2) for one in model.get_image_features(**made).pooler_output])


def as_tiles(made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The frames as tiles of images (InternVL)."""
    return {"pixel_values": made["pixel_values"]}


@dataclass(frozen=True)
class Film:
    """How a family, with a vision tower of `tests.processors`, makes features of frames.

    Attributes:
        pictures: what makes pixels of frames.
        together: how these are laid together for the model.
        features: what the model makes of them, `[token, hidden]`.
        reach: as in `tests.processors.Case`.
    """

    pictures: Any
    together: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = in_pairs
    features: Callable[[nn.Module, Mapping[str, Tensor]], Tensor] = as_video
    reach: float = 0.0


def nearest(kind: type, side: int, **settings: Any) -> Any:
    return kind(size={"height": side, "width": side}, **processors.NEAREST, **settings)


CASES = processors.CASES
FILMS = {
    **{name: Film(CASES[name].image_processor) for name in CASES if name.startswith("qwen") and name in VIDEOS},
    "llava_onevision": Film(nearest(SiglipImageProcessorPil, processors.TILE + 2), in_a_video),
    "llava_onevision, odd": Film(nearest(SiglipImageProcessorPil, processors.ODD), in_a_video),
    "internvl": Film(nearest(GotOcr2ImageProcessorPil, processors.TILE), as_tiles, as_images),
    "smolvlm, whole": Film(OneByOne(CASES["smolvlm, whole"].image_processor), as_pictures, as_images, reach=0.5),
}


@torch.no_grad()
def filmed(name: str, clip: list[Image.Image]) -> tuple[Tensor, dict[str, Tensor]]:
    """Features of a video in the order of its tokens, and the model inputs that they are made of."""
    row = FILMS[name]
    made = row.together(row.pictures(clip, return_tensors="pt"))
    return row.features(processors.tower(name), made), made


# --- processors with the stand-in -------------------------------------------------------------------------------------

QWEN = (Qwen2VLImageProcessorPil(**QWEN_SIZES), Frames(Qwen2VLImageProcessorPil(**QWEN_SIZES), in_pairs))
READERS = {
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "llava_onevision": (
        LlavaOnevisionImageProcessorPil(**ONEVISION, **TILES),
        Frames(SiglipImageProcessorPil(**ONEVISION), in_a_video),
    ),
    "internvl": (
        GotOcr2ImageProcessorPil(**WHOLE, max_patches=6),
        Frames(GotOcr2ImageProcessorPil(**WHOLE), in_a_video),
    ),
    "smolvlm": (
        SmolVLMImageProcessorPil(**SMOL),
        Frames(OneByOne(SmolVLMImageProcessorPil(**SMOL, do_image_splitting=False)), as_pictures),
    ),
}
"""An image processor, and what stands in for the video processor."""


def without_torchvision(name: str) -> Any:
    """The family's own processor with these. Its check of their classes looks in lists that are not there either."""
    pixels, frames = READERS[name]
    known = {"VideoProcessorMixin": Base, "BaseVideoProcessor": Base}
    with mock.patch.multiple(processing_utils.transformers_module, create=True, **known):
        return processor(name, pixels, frames)
