"""Pictures for showing: pale ones to draw a map on, and pictures inside a page."""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageOps

SMALL = 512 * 512  # pixels up to which an embedded picture is kept without loss


def faded(picture: Image.Image, fade: float = 0.55) -> Image.Image:
    """Grey and pale, so that the colours of a map over it are the only ones.

    Args:
        picture: the original.
        fade: 0 (the picture as it is) … 1 (white).
    """
    if not fade:
        return picture
    grey = picture.convert("L")
    clear = Image.blend(grey, ImageOps.equalize(grey), 0.4)  # a yellow thing on white must not fade away
    return Image.blend(clear, Image.new("L", grey.size, 255), fade).convert("RGB")


def embedded(picture: Image.Image, longest: int) -> str:
    """A picture as a data URI, made smaller if a side is longer than `longest` pixels; a large one loses a little."""
    small = picture.copy()
    small.thumbnail((longest, longest))
    kind = "PNG" if small.width * small.height <= SMALL else "JPEG"
    stream = io.BytesIO()
    small.save(stream, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
