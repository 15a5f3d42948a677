"""How scenes are drawn: where things stand, and sprites as drawn, in one hue, without any, or under a cover."""

from __future__ import annotations

import colorsys
import functools
import random
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from lvlm_interp.errors import SceneError
from lvlm_interp.reference.things import HUES, nouns, sprite_file

Style = Literal["google", "twitter", "fluent"]
State = Literal["drawn", "painted", "grey", "covered"]
"""How a thing stands in a scene: as its style draws it, in one hue, without any hue, or out of sight."""
Cover = Literal["cloth", "box"]
Box = tuple[int, int, int, int]

SIZE = 112
"""Side of a scene in pixels: 8 × 8 patches of 14 pixels for the reference model."""
TRAINED_STYLES: tuple[Style, ...] = ("google", "twitter")
HELD_OUT_STYLE: Style = "fluent"
COVERS: tuple[Cover, ...] = get_args(Cover)
GROUNDS = (
    (255, 255, 255),
    (235, 240, 245),
    (245, 238, 225),
    (225, 240, 225),
    (230, 230, 230),
    (250, 235, 240),
    (40, 44, 52),
)
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
_CELL = 64  # pixels of a sprite in its sheet
_FOLDS = 8  # pixels of a cloth or a box, of 64, from one shade to the next
_SHADES: dict[Cover, tuple[tuple[int, int, int], ...]] = {
    "cloth": ((148, 142, 134), (122, 116, 110)),
    "box": ((176, 138, 96), (146, 110, 72)),
}


@dataclass(frozen=True)
class Spot:
    """Where one thing stands: its square in pixels, and the name of its place (None where it is alone)."""

    left: int
    top: int
    side: int
    place: str | None


@dataclass(frozen=True)
class Layout:
    """All of a picture but its things."""

    style: Style
    ground: tuple[int, int, int]
    spots: tuple[Spot, ...]


def draw_layout(rng: random.Random, style: Style | None, count: int) -> Layout:
    """Where `count` things stand: one anywhere, two in halves, more in quadrants; none shares its part."""
    drawn = style if style is not None else rng.choice(TRAINED_STYLES)
    ground, axis = rng.choice(GROUNDS), rng.choice("hv")
    if count <= 2:
        return Layout(drawn, ground, tuple(_half(rng, i, count, axis) for i in range(count)))
    places = sorted(rng.sample(range(len(QUADRANTS)), count))
    return Layout(drawn, ground, tuple(_quadrant(rng, i) for i in places))


def _half(rng: random.Random, index: int, count: int, axis: str) -> Spot:
    half = SIZE // 2
    if count == 1:
        side = rng.randint(half - 6, SIZE - 16)
        return Spot(rng.randint(0, SIZE - side), rng.randint(0, SIZE - side), side, None)
    side = rng.randint(half - 10, half)
    along, across = rng.randint(0, half - side) + index * half, rng.randint(0, SIZE - side)
    if axis == "h":
        return Spot(along, across, side, ("left", "right")[index])
    return Spot(across, along, side, ("top", "bottom")[index])


def _quadrant(rng: random.Random, index: int) -> Spot:
    half = SIZE // 2
    side = rng.randint(half - 10, half)
    left, top = (rng.randint(0, half - side) + part * half for part in (index % 2, index // 2))
    return Spot(left, top, side, QUADRANTS[index])


# --- sprites --------------------------------------------------------------------------------------


@functools.cache
def sheet(style: str) -> Image.Image:
    """All drawings of a style, RGBA.

    Raises:
        SceneError: no such style.
    """
    file = sprite_file(f"{style}.png")
    if not file.is_file():
        raise SceneError(f"no drawing style {style!r}; known: {[*TRAINED_STYLES, HELD_OUT_STYLE]}")
    with file.open("rb") as stream:
        return Image.open(stream).convert("RGBA")


@functools.cache
def sprite(noun: str, style: str) -> Image.Image:
    """The drawing of a noun, RGBA, 64 × 64."""
    whole = sheet(style)
    row, column = divmod(nouns().index(noun), whole.width // _CELL)
    return whole.crop((column * _CELL, row * _CELL, (column + 1) * _CELL, (row + 1) * _CELL))


def drawn(noun: str, style: str, state: State, color: str | None, over: Cover) -> Image.Image:
    """What is drawn for a thing, RGBA, 64 × 64."""
    if state == "covered":
        return cover(over)
    plain = sprite(noun, style)
    if state == "grey":
        return grey(plain)
    return tinted(plain, color) if state == "painted" and color else plain


def paste(image: Image.Image, drawing: Image.Image, spot: Spot) -> Box:
    """Draw on the image; returns (left, top, right, bottom) of what is seen of it."""
    side = spot.side
    scaled = drawing.resize((side, side), Image.Resampling.BICUBIC)
    image.paste(scaled, (spot.left, spot.top), scaled)
    box = scaled.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox() or (0, 0, side, side)
    return spot.left + box[0], spot.top + box[1], spot.left + box[2], spot.top + box[3]


def tinted(drawing: Image.Image, color: str) -> Image.Image:
    """The drawing's light and shade in one hue."""
    hue = np.array(colorsys.hsv_to_rgb(HUES[color], 0.5 if color == "pink" else 0.85, 1.0), dtype=np.float32)
    return _shaded(drawing, hue)


def grey(drawing: Image.Image) -> Image.Image:
    """The drawing's light and shade without any hue; as dark as paint is, so that it stands out from light grounds."""
    return _shaded(drawing, np.full(3, 0.68, np.float32))


def _shaded(drawing: Image.Image, full: np.ndarray) -> Image.Image:
    """The drawing in the colour `full` where it is lightest, and half of that where it is darkest."""
    pixels = np.asarray(drawing).astype(np.float32) / 255
    light, alpha = pixels[..., :3].mean(-1, keepdims=True), pixels[..., 3:]
    seen = light[alpha > 0.5]
    light = (light - seen.min()) / (np.ptp(seen) + 1e-6) * 0.5 + 0.5
    painted = np.concatenate([np.clip(light * full * 1.1, 0, 1), alpha], -1)
    return Image.fromarray((painted * 255).astype(np.uint8), "RGBA")


@functools.cache
def cover(kind: Cover) -> Image.Image:
    """A cloth, or a box, that fills its square but for a margin: whatever it stands for, it looks the same."""
    image = Image.new("RGBA", (_CELL, _CELL))
    (_cloth if kind == "cloth" else _carton)(ImageDraw.Draw(image))
    return image


def _cloth(draw: ImageDraw.ImageDraw) -> None:
    light, dark = _SHADES["cloth"]
    hem = [(x, 58 + 3 * (x // _FOLDS % 2)) for x in range(60, 3, -_FOLDS // 2)]
    draw.polygon([(3, 58), (8, 28), (17, 11), (32, 5), (47, 11), (56, 28), (61, 58), *hem], fill=light)
    for x in range(12, 56, _FOLDS):
        draw.line([(32 + (x - 32) // 2, 18), (x, 57)], fill=dark, width=2)


def _carton(draw: ImageDraw.ImageDraw) -> None:
    light, dark = _SHADES["box"]
    draw.rectangle((6, 18, 57, 59), fill=light)
    draw.polygon([(6, 18), (14, 7), (49, 7), (57, 18)], fill=dark)
    draw.rectangle((28, 7, 35, 59), fill=dark)
    draw.line([(6, 18), (57, 18)], fill=light, width=2)
