"""Rows for videos, and a stand-in for the video processors, which transformers runs with torchvision only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature, video_processing_utils
from transformers.image_processing_utils import BaseImageProcessor
from transformers.video_utils import make_batched_metadata, make_batched_videos

from tests.families.shared.cases import NEAREST
from tests.families.shared.saved import later
from tests.families.shared.tiny import IMAGE

STAMP = 45  # a token between frames, where Qwen3-VL writes the time
GRID = {"pixel_values_videos": (48, 3 * 2 * 14 * 14), "video_grid_thw": torch.tensor([[2, 4, 6]])}
SQUARES = (*[IMAGE] * 4, STAMP) * 3
Still = tuple[Mapping[str, tuple[int, ...] | Tensor], tuple[int, ...]]
"""A picture: its pixels, as in `Clip`, and its tokens."""


@dataclass(frozen=True)
class Clip:
    """Pixels of a video (shapes to fill, or tensors as they are), its tokens, and whether those are images'.

    `still` is a picture to stand before it.
    """

    pixels: Mapping[str, tuple[int, ...] | Tensor]
    tokens: tuple[int, ...]
    as_images: bool = False
    still: Still | None = None


# --- a stand-in for video processors ----------------------------------------------------------------------------------


def nearest(name: str, side: int) -> Callable[[], Any]:
    """Makes one that stretches pictures over a square, reading the nearest pixel."""
    return later(name, size={"height": side, "width": side}, **NEAREST)


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


def as_tiles(made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The frames as tiles of images (InternVL)."""
    return {"pixel_values": made["pixel_values"]}


# Before transformers 5.19, nothing of a video processor can be imported without torchvision.
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
    found = model.get_video_features(pixels, **told).pooler_output[0]
    if "image_newline" in dir(model) and "newline" not in inspect.getsource(type(model).get_video_features):
        found = torch.cat([found, model.image_newline[None]])  # before transformers 5.18, it came in later
    return found


def as_images(model: nn.Module, made: Mapping[str, Tensor]) -> Tensor:
    """Features of models to which frames are images."""
    return torch.cat([one.flatten(0, -2) for one in model.get_image_features(**made).pooler_output])


@dataclass(frozen=True)
class Film:
    """How a family, with the vision tower of a `Case` of the same name, makes features of frames.

    Attributes:
        pictures: makes what makes pixels of frames.
        together: how these are laid together for the model.
        features: what the model makes of them, `[token, hidden]`.
        reach: as in `Case`.
    """

    pictures: Callable[[], Any]
    together: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = in_pairs
    features: Callable[[nn.Module, Mapping[str, Tensor]], Tensor] = as_video
    reach: float = 0.0
