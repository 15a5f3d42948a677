"""Opening pictures and videos: whatever a picture comes from, an upright RGB image, or an error that says why not."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lvlm_interp.errors import ImageError, InputError, LvlmInterpError
from lvlm_interp.fields import shown
from lvlm_interp.given import explained
from lvlm_interp.inputs.arrays import eight_bits
from lvlm_interp.inputs.sources import ImageLike, is_picture, named, picture_of
from lvlm_interp.inputs.view import ImageView

VideoLike = Sequence[Any] | np.ndarray | Tensor
"""Frames: PIL images, paths or arrays `[height, width, 3]` of bytes; or one array of them all, `[frame, …]`."""
STILLS = ("MPO",)  # a photo with smaller ones behind it, as phones and cameras take them
BITS, MEANING, WHITE_IS_0 = 258, 262, 0  # TIFF's tags for how many a number has, and for what it says
FEW_BITS = {"1": 255, "L;2": 85, "L;4": 17}  # what Pillow multiplies numbers of few bits by
OF_BYTES_TOO = 255  # a picture of larger numbers is one of 16 bits


@explained
def open_image(image: ImageLike) -> Image.Image:
    """An RGB image, turned as its EXIF orientation says; transparency is laid on white.

    Grey of 16 bits is scaled to bytes, and so are floats (mode F) from 0 to 1.

    Raises:
        ImageError: missing, truncated, empty or animated, of a format that Pillow does not read, numbers of which it is
            not clear what they mean, or not an image at all.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _rgb(_upright(picture_of(image), named(image)))
    except LvlmInterpError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{named(image)} has more than {Image.MAX_IMAGE_PIXELS} pixels, and Pillow opens no larger file: make it "
            "smaller; or, if you trust it, set PIL.Image.MAX_IMAGE_PIXELS to more, or to None"
        ) from error
    except Exception as error:  # decoders are many, and each raises what it likes
        raise ImageError(f"{named(image)} cannot be decoded: {error}") from error


def open_images(image: Any) -> list[Image.Image]:
    """The pictures that a question is about, opened: one, or several in a list or iterator; None are none.

    Raises:
        ImageError: a list or iterator of none, None in the place of a picture, or what `open_image` refuses.
    """
    if image is None:
        return []
    several = isinstance(image, Iterable) and not is_picture(image)
    pictures = list(image) if several else [image]
    if not pictures:
        raise ImageError(
            "image= holds no picture: an empty list, or an iterator that was read already. Give at least one; "
            "image=None asks without"
        )
    if nothing := [n for n, one in enumerate(pictures) if one is None]:
        raise ImageError(f"image {nothing[0]} of {len(pictures)}, counted from 0, is None: leave it out, or give it")
    return [open_image(one) if is_picture(one) else picture_of(one) for one in pictures]  # which says what it is not


@explained
def open_video(video: VideoLike) -> list[Image.Image]:
    """The frames of a video as RGB images.

    Raises:
        ImageError: no frames, frames of different sizes, or what is no frame.
    """
    if isinstance(video, (str, os.PathLike)):
        raise ImageError("a video is given as a list of its frames, not as a file: read it and choose frames first")
    frames = [_frame(frame) for frame in video]
    if not frames or len(sizes := {frame.size for frame in frames}) > 1:
        what = f"frames of the sizes {sorted(sizes)}" if frames else "no frames"
        raise ImageError(f"a video is a list of frames of one size; got {what}")
    return frames


def shown_anew(view: ImageView, given: Any) -> ImageView:
    """The view of another picture, or of other frames, in the place of its own.

    Raises:
        InputError: another number of frames.
        ImageError: another size, or what is no picture.
    """
    clip = tuple(open_video(given)) if view.frames is not None or view.clip else ()
    picture = clip[0] if clip else open_image(given)
    if view.clip and len(clip) != len(view.clip):
        raise InputError(f"the video has {len(view.clip)} frames; got {len(clip)}")
    if view.picture is not None and picture.size != view.picture.size:
        raise ImageError(
            f"the picture is {picture.size[0]} × {picture.size[1]} pixels, and takes the place of one of "
            f"{view.picture.size[0]} × {view.picture.size[1]}: resize it, or prepare the question with it"
        )
    return dataclasses.replace(view, picture=picture, clip=clip)


def _frame(frame: Any) -> Image.Image:
    if is_picture(frame) and not isinstance(frame, (np.ndarray, Tensor)):
        return open_image(frame)
    if np.ma.is_masked(frame):
        raise ImageError("a frame of which some numbers are masked is none: say what they are, array.filled(0)")
    kind = frame.dtype if isinstance(frame, Tensor) else None
    if kind not in (None, torch.uint8):
        raise ImageError(f"a frame is an array [height, width, 3] of bytes (uint8); got {kind} {list(frame.shape)}")
    try:
        values = np.asarray(frame.cpu() if isinstance(frame, Tensor) else frame)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ImageError(f"a frame is a PIL image, a path, or an array of bytes; got {shown(frame)}") from error
    if values.dtype != np.uint8 or values.ndim != 3 or values.shape[2] != 3:
        raise ImageError(
            "a frame is a PIL image, a path, or an array [height, width, 3] of bytes (uint8); "
            f"got {values.dtype} {list(values.shape)}"
        )
    return open_image(Image.fromarray(values))


def _upright(opened: Image.Image, name: str) -> Image.Image:
    """The picture itself, turned as its camera says."""
    frames = getattr(opened, "n_frames", 1)
    if frames > 1 and opened.format not in STILLS:
        raise ImageError(
            f"{name} has {frames} frames or pages; give one of them as a PIL image: picture.seek(0), picture.copy()"
        )
    if opened.tell():
        opened.seek(0)
    _need_clear_key(opened)
    _spread_key(opened)
    opened.load()
    if min(opened.size) == 0:
        raise ImageError("the image is empty (0 pixels)")
    tags = getattr(opened, "tag_v2", {})
    turned = _as_tagged(ImageOps.exif_transpose(opened), tags)
    told = tags.get(BITS, (16,))[0] <= 16
    turned.format = opened.format if told else None  # of a file of 32 bits nobody knows how far its numbers go
    return turned


def _need_clear_key(opened: Image.Image) -> None:
    """Raise for colours of 16 bits of which one is transparent: Pillow compares bytes with that one."""
    raw = [tile[3] for tile in getattr(opened, "tile", ())]
    if isinstance(opened.info.get("transparency"), tuple) and any(str(mode).startswith("RGB;16") for mode in raw):
        raise ImageError(
            "a picture of 16 bits a colour, of which one colour is transparent, cannot be read exactly: save it with "
            "an alpha channel (RGBA), or with 8 bits"
        )


def _spread_key(opened: Image.Image) -> None:
    """Of a grey PNG of 1, 2 or 4 bits Pillow spreads the numbers over bytes, and not the one that is transparent."""
    raw, key = [tile[3] for tile in getattr(opened, "tile", ())], opened.info.get("transparency")
    step = next((FEW_BITS[mode] for mode in raw if mode in FEW_BITS), None)
    if step and isinstance(key, int) and opened.format == "PNG" and opened.mode in ("1", "L"):
        opened.info["transparency"] = key * step


def _as_tagged(picture: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """A grey TIFF of more than 8 bits as its tags say: how many bits count, whether 0 is white; Pillow asks neither.

    Raises:
        ImageError: floats, or numbers of 32 bits, of which 0 is white.
    """
    (bits, *_), white = tags.get(BITS, (16,)), tags.get(MEANING) == WHITE_IS_0
    if picture.mode[0] not in "IF" or not (white or bits < 16):
        return picture
    if bits > 16:
        raise ImageError("a TIFF of floats, or of 32 bits, in which 0 is white: save it with 8 or 16 bits")
    values = np.rint(np.asarray(picture).astype(np.float64) * (65535 / (2**bits - 1)))
    return Image.fromarray((65535 - values if white else values).astype(np.uint16))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        image = _of_bytes(image)
    if image.mode == "La":  # Pillow goes no other way from it
        image = image.convert("LA")
    if image.has_transparency_data:
        colored = image.convert("RGBA")
        white = Image.new("RGBA", colored.size, "white")
        return Image.alpha_composite(white, colored).convert("RGB")
    return image.convert("RGB")


def _of_bytes(image: Image.Image) -> Image.Image:
    """A grey picture of larger numbers, or of floats, as one of bytes; one of its values may be transparent."""
    values = np.asarray(image)
    if image.mode == "I":
        values = _sixteen_bits(image, values)
    grey = Image.fromarray(eight_bits(values))
    if isinstance(clear := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(eight_bits(values != clear)))
    return grey


def _sixteen_bits(image: Image.Image, values: np.ndarray) -> np.ndarray:
    """Numbers of 32 bits as the 16 that they hold: some files of 16 bits are opened so."""
    low, high = values.min(), values.max()
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise ImageError(f"a picture of 32 bits holds numbers from 0 to 65535 (16 bits), got {low} to {high}")
    if image.format is None and high <= OF_BYTES_TOO:
        raise ImageError(
            f"the numbers of this picture of 32 bits (mode I) lie between {low} and {high}: bytes, or dark 16 bits? "
            "Give an array of uint8 or uint16"
        )
    return values.astype(np.uint16)
