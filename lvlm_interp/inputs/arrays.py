"""Arrays as pictures: which axis holds the colours and what the numbers mean is told by shape and type, never guessed.

| numbers | what they mean |
|---|---|
| bytes (`uint8`) | 0 … 255 |
| truth values | black and white |
| 16 bits (`uint16`) | 0 … 65,535, scaled to bytes |
| floats | 0 … 1, scaled to bytes |
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor

from lvlm_interp.errors import ImageError
from lvlm_interp.given import explained

CHANNELS = (1, 3, 4)
ROUNDED = 1e-6  # how far beyond 0 and 1 floats may lie


@explained
def from_array(array: Any) -> Image.Image:
    """A grey, RGB or RGBA image of an array or tensor: `[height, width]`, channels last, or channels first.

    Raises:
        ImageError: a shape that can be read in two ways or in none, numbers of which it is not clear what they mean, or
            some that are masked.
    """
    if np.ma.is_masked(array):
        raise ImageError("an array of which some numbers are masked is no picture: say what they are, array.filled(0)")
    values = _on_cpu(array) if isinstance(array, Tensor) else np.asarray(array)
    return Image.fromarray(np.ascontiguousarray(eight_bits(_channels_last(values))))


def eight_bits(values: Shaped[np.ndarray, " *shape"]) -> UInt8[np.ndarray, " *shape"]:
    """Numbers as bytes.

    Raises:
        ImageError: floats outside of 0 … 1, or a type of which it is not clear what its numbers mean.
    """
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return np.rint(values / 257).astype(np.uint8)
    if values.dtype.kind == "f":
        return _of_floats(values)
    raise ImageError(
        f"an array of {values.dtype} is no picture: what its numbers mean is not clear. Give bytes (uint8, 0 … 255), "
        "16 bits (uint16, 0 … 65535) or floats (0 … 1)"
    )


def _of_floats(values: Shaped[np.ndarray, " *shape"]) -> UInt8[np.ndarray, " *shape"]:
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("an array with NaN or infinity in it is no picture")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if low < -ROUNDED or high > 1 + ROUNDED:
        bytes_ = low >= 0 and 2 <= high <= 255
        hint = "divide by 255, or give bytes (uint8)" if bytes_ else "clip or scale them first"
        raise ImageError(f"a picture of floats lies between 0 and 1, got {low:.8g} to {high:.8g}: {hint}")
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def _on_cpu(tensor: Tensor) -> Shaped[np.ndarray, " *shape"]:
    values = tensor.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16


def _channels_last(values: Shaped[np.ndarray, " *shape"]) -> Shaped[np.ndarray, " *rest"]:
    shape = list(values.shape)
    if values.ndim == 2:
        return values
    if values.ndim == 4:
        raise ImageError(f"an array {shape} is several pictures: give them as a list, image=list(array)")
    last, first = (values.ndim == 3 and shape[axis] in CHANNELS for axis in (-1, 0))
    if last == first:
        ways = "in two ways" if last else "in no way"
        raise ImageError(
            f"an array {shape} can be read {ways} as a picture: it is [height, width], [height, width, channel] or "
            f"[channel, height, width] with 1, 3 or 4 channels"
            + ("; give it as a PIL image (Image.fromarray) to say which" if last else "")
        )
    values = values if last else np.moveaxis(values, 0, -1)
    return values[..., 0] if values.shape[-1] == 1 else values
