"""Opening pictures and videos."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lvlm_interp.errors import ImageError

ImageLike = Image.Image | str | Path
VideoLike = Sequence[Any] | np.ndarray | Tensor
"""Frames: PIL images, paths or arrays `[height, width, 3]` of bytes; or one array of them all, `[frame, …]`."""


def open_image(image: ImageLike) -> Image.Image:
    """An RGB image from a file or a PIL image; transparency is laid on white.

    Raises:
        ImageError: missing, truncated, empty or animated, or not an image at all.
    """
    name = repr(str(image)) if isinstance(image, (str, Path)) else "the image"
    if isinstance(image, (str, Path)) and not os.path.isfile(image):
        raise ImageError(f"no image file at {name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(image, (str, Path)):
                with Image.open(image) as opened:
                    return _decoded(opened, name)
            if not isinstance(image, Image.Image):
                raise ImageError(f"an image is a PIL image or a path, got {type(image).__name__}")
            return _decoded(image, name)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that Pillow can read (empty or broken file?)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name} cannot be decoded: {error}") from error


def open_video(video: VideoLike) -> list[Image.Image]:
    """The frames of a video as RGB images.

    Raises:
        ImageError: no frames, frames of different sizes, or what is no frame.
    """
    if isinstance(video, (str, Path)):
        raise ImageError("a video is given as a list of its frames, not as a file: read it and choose frames first")
    frames = [_frame(frame) for frame in video]
    if not frames or len(sizes := {frame.size for frame in frames}) > 1:
        what = f"frames of the sizes {sorted(sizes)}" if frames else "no frames"
        raise ImageError(f"a video is a list of frames of one size; got {what}")
    return frames


def _frame(frame: Any) -> Image.Image:
    if isinstance(frame, ImageLike):
        return open_image(frame)
    values = np.asarray(frame)
    if values.dtype != np.uint8 or values.ndim != 3 or values.shape[2] != 3:
        raise ImageError(
            "a frame is a PIL image, a path, or an array [height, width, 3] of bytes (uint8); "
            f"got {values.dtype} {list(values.shape)}"
        )
    return open_image(Image.fromarray(values))


def _decoded(opened: Image.Image, name: str) -> Image.Image:
    if (frames := getattr(opened, "n_frames", 1)) > 1:
        raise ImageError(f"{name} is animated ({frames} frames); give one frame as a PIL image")
    opened.load()
    return _on_white(opened)


def _on_white(image: Image.Image) -> Image.Image:
    if min(image.size) == 0:
        raise ImageError("the image is empty (0 pixels)")
    if image.has_transparency_data:
        colored = image.convert("RGBA")
        white = Image.new("RGBA", colored.size, "white")
        return Image.alpha_composite(white, colored).convert("RGB")
    return image.convert("RGB")
