"""Scenes whose truth is known to the pixel: one or two objects on a plain ground, and questions about them.

A scene is a pure function of its seed. The reference model was trained on seeds from
`TRAINING_SEEDS` only, so every smaller seed is held out.
"""

from __future__ import annotations

import colorsys
import functools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Literal

import numpy as np
from PIL import Image

from lvlm_interp.errors import SceneError
from lvlm_interp.given import checked, explaining

Style = Literal["google", "twitter", "fluent"]
QuestionKind = Literal["yes/no", "color", "place", "name", "objects"]

SIZE = 112
"""Side of a scene in pixels: 8 × 8 patches of 14 pixels for the reference model."""
TRAINED_STYLES: tuple[Style, ...] = ("google", "twitter")
HELD_OUT_STYLE: Style = "fluent"
TRAINING_SEEDS = range(1_000_000, 1_000_000_000)
HUES = {"red": 0.0, "orange": 0.08, "yellow": 0.15, "green": 0.33, "blue": 0.6, "purple": 0.78, "pink": 0.9}
COLORS = tuple(HUES)
GROUNDS = (
    (255, 255, 255),
    (235, 240, 245),
    (245, 238, 225),
    (225, 240, 225),
    (230, 230, 230),
    (250, 235, 240),
    (40, 44, 52),
)
RECOLORABLE = tuple(
    "apple ball balloon banana bell bird boat book bucket bus butterfly car carrot chair crab cupcake door dress duck "
    "envelope fish frog handbag hat key lemon lock pear peach potato rose shirt shoe strawberry tomato tulip turtle "
    "umbrella".split()
)
NATURAL_COLORS = {
    "apple": "red",
    "banana": "yellow",
    "broccoli": "green",
    "cactus": "green",
    "car": "red",
    "carrot": "orange",
    "cheese": "yellow",
    "cherries": "red",
    "crab": "red",
    "crocodile": "green",
    "cucumber": "green",
    "dolphin": "blue",
    "dress": "blue",
    "fish": "blue",
    "flamingo": "pink",
    "frog": "green",
    "grapes": "purple",
    "jeans": "blue",
    "lemon": "yellow",
    "lobster": "red",
    "pear": "green",
    "pig": "pink",
    "rose": "red",
    "strawberry": "red",
    "tomato": "red",
    "tree": "green",
    "umbrella": "purple",
}
"""Nouns that every style draws in one evident colour: here the picture agrees with what a language model knows."""

OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
RELATION = {"left": "to the left of", "right": "to the right of", "top": "above", "bottom": "below"}


@dataclass(frozen=True)
class Item:
    """One object of a scene; `box` is (left, top, right, bottom) of its drawn pixels."""

    noun: str
    color: str | None
    recolored: bool
    place: str | None
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Question:
    """A question about a scene, its whole answer, and the noun that it asks about (None: all of them)."""

    text: str
    answer: str
    kind: QuestionKind
    noun: str | None = None


@explaining
@dataclass(frozen=True)
class Scene:
    """A picture with its truth. `image` is RGB, `items` run left to right or top to bottom."""

    seed: int
    style: Style
    items: tuple[Item, ...]
    image: Image.Image = field(repr=False, compare=False)

    def item(self, noun: str) -> Item:
        """The item with this noun; `SceneError` if the scene has none."""
        for item in self.items:
            if item.noun == noun:
                return item
        raise SceneError(f"no {noun!r} in this scene; it shows {[i.noun for i in self.items]}")

    def questions(self) -> tuple[Question, ...]:
        """Every question that the scene answers, in an order drawn from its seed."""
        rng = random.Random(f"questions:{self.seed}")
        found = [*_presence(self, rng), *_colors(self), *_places(self, rng)]
        rng.shuffle(found)
        return tuple(found)


@functools.cache
def nouns() -> tuple[str, ...]:
    """The nouns that every style can draw, in alphabetical order."""
    return tuple(json.loads(_sprite_file("nouns.json").read_text(encoding="utf-8")))


@checked
def make_scene(
    seed: int,
    style: Style | None = None,
    objects: Sequence[str] | None = None,
    colors: Sequence[str | None] | None = None,
) -> Scene:
    """Draw the scene of a seed.

    Args:
        seed: decides everything that is not given.
        style: drawing style; one of the trained styles by default.
        objects: one or two nouns to show, instead of drawn ones.
        colors: a colour (or None: as drawn) for each of `objects`; drawn from the seed by default.

    Raises:
        SceneError: a noun, colour or style that is not known, or not one or two objects.
    """
    rng = random.Random(f"scene:{seed}")
    drawn_style = style if style is not None else rng.choice(TRAINED_STYLES)
    painted = _choose(rng) if objects is None else _given(rng, objects, colors)
    image = Image.new("RGB", (SIZE, SIZE), rng.choice(GROUNDS))
    axis = rng.choice("hv")
    items = []
    for i, (noun, color) in enumerate(painted):
        box, place = _spot(rng, i, len(painted), axis)
        drawn = _paste(image, _sprite(noun, drawn_style), color, box)
        items.append(Item(noun, color or NATURAL_COLORS.get(noun), color is not None, place, drawn))
    return Scene(seed, drawn_style, tuple(items), image)


@checked
def make_scenes(count: int, seed: int = 0, style: Style | None = None) -> Iterator[Scene]:
    """The scenes of seeds `seed` … `seed + count - 1`, drawn one at a time."""
    return (make_scene(seed + i, style) for i in range(count))


def with_article(noun: str) -> str:
    """`a cat`, `an apple`, `scissors`."""
    if noun.endswith("s") and noun not in ("bus", "cactus", "octopus", "hippopotamus", "rhinoceros"):
        return noun
    return ("an " if noun[0] in "aeiou" and noun != "unicorn" else "a ") + noun


# --- what a scene shows ---------------------------------------------------------------------------


def _choose(rng: random.Random) -> list[tuple[str, str | None]]:
    count = rng.choice((1, 2, 2))
    chosen: dict[str, str | None] = {}
    while len(chosen) < count:
        recolor = rng.random() < 0.4
        noun = rng.choice(RECOLORABLE if recolor else nouns())
        if noun not in chosen:
            chosen[noun] = rng.choice(COLORS) if recolor else None
    return list(chosen.items())


def _given(
    rng: random.Random, objects: Sequence[str], colors: Sequence[str | None] | None
) -> list[tuple[str, str | None]]:
    unknown = [n for n in objects if n not in nouns()] + [c for c in colors or () if c is not None and c not in HUES]
    if unknown:
        raise SceneError(f"cannot draw {unknown}; colours are {list(COLORS)}, nouns are listed by scenes.nouns()")
    if not 1 <= len(objects) <= 2 or len(set(objects)) != len(objects):
        raise SceneError(f"a scene shows one or two different objects, asked for {list(objects)}")
    if colors is not None and len(colors) != len(objects):
        raise SceneError(f"{len(objects)} objects but {len(colors)} colours")
    drawn = colors or [rng.choice((None, rng.choice(COLORS))) if n in RECOLORABLE else None for n in objects]
    return list(zip(objects, drawn, strict=True))


def _spot(rng: random.Random, index: int, count: int, axis: str) -> tuple[tuple[int, int, int], str | None]:
    """(left, top, side) of a sprite and the name of its place; two objects never share a half."""
    half = SIZE // 2
    if count == 1:
        side = rng.randint(half - 6, SIZE - 16)
        return (rng.randint(0, SIZE - side), rng.randint(0, SIZE - side), side), None
    side = rng.randint(half - 10, half)
    along, across = rng.randint(0, half - side) + index * half, rng.randint(0, SIZE - side)
    if axis == "h":
        return (along, across, side), ("left", "right")[index]
    return (across, along, side), ("top", "bottom")[index]


# --- drawing --------------------------------------------------------------------------------------


def _sprite_file(name: str) -> Traversable:
    return resources.files("lvlm_interp.reference") / "sprites" / name


@functools.cache
def _sheet(style: str) -> Image.Image:
    file = _sprite_file(f"{style}.png")
    if not file.is_file():
        raise SceneError(f"no drawing style {style!r}; known: {[*TRAINED_STYLES, HELD_OUT_STYLE]}")
    with file.open("rb") as stream:
        return Image.open(stream).convert("RGBA")


def _sprite(noun: str, style: str) -> Image.Image:
    sheet, cell = _sheet(style), 64
    row, column = divmod(nouns().index(noun), sheet.width // cell)
    return sheet.crop((column * cell, row * cell, (column + 1) * cell, (row + 1) * cell))


def _paste(
    image: Image.Image, sprite: Image.Image, color: str | None, spot: tuple[int, int, int]
) -> tuple[int, int, int, int]:
    left, top, side = spot
    drawing = (_tint(sprite, color) if color else sprite).resize((side, side), Image.Resampling.BICUBIC)
    image.paste(drawing, (left, top), drawing)
    box = drawing.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox() or (0, 0, side, side)
    return left + box[0], top + box[1], left + box[2], top + box[3]


def _tint(sprite: Image.Image, color: str) -> Image.Image:
    """The sprite's light and shade in one hue."""
    pixels = np.asarray(sprite).astype(np.float32) / 255
    light, alpha = pixels[..., :3].mean(-1, keepdims=True), pixels[..., 3:]
    seen = light[alpha > 0.5]
    light = (light - seen.min()) / (np.ptp(seen) + 1e-6) * 0.5 + 0.5
    hue = np.array(colorsys.hsv_to_rgb(HUES[color], 0.5 if color == "pink" else 0.85, 1.0), dtype=np.float32)
    painted = np.concatenate([np.clip(light * hue * 1.1, 0, 1), alpha], -1)
    return Image.fromarray((painted * 255).astype(np.uint8), "RGBA")


# --- questions ------------------------------------------------------------------------------------


def _presence(scene: Scene, rng: random.Random) -> Iterator[Question]:
    shown = [item.noun for item in scene.items]
    yield Question("What is in the image?", " and ".join(map(with_article, shown)).capitalize() + ".", "objects")
    for noun in shown:
        yield Question(f"Is there {with_article(noun)} in the image?", "Yes.", "yes/no", noun)
        absent = rng.choice([n for n in nouns() if n not in shown])
        yield Question(f"Is there {with_article(absent)} in the image?", "No.", "yes/no", absent)


def _colors(scene: Scene) -> Iterator[Question]:
    for item in scene.items:
        if item.color:
            verb = "are" if with_article(item.noun) == item.noun else "is"
            yield Question(f"What color {verb} the {item.noun}?", item.color.capitalize() + ".", "color", item.noun)


def _places(scene: Scene, rng: random.Random) -> Iterator[Question]:
    if len(scene.items) < 2:
        return
    for item, other in (scene.items, scene.items[::-1]):
        assert item.place is not None  # two objects always have places
        verb = "are" if with_article(item.noun) == item.noun else "is"
        said, truth = (item.place, "Yes.") if rng.random() < 0.5 else (OPPOSITE[item.place], "No.")
        yield Question(f"What is on the {item.place}?", with_article(item.noun).capitalize() + ".", "name", item.noun)
        yield Question(f"Where {verb} the {item.noun}?", item.place.capitalize() + ".", "place", item.noun)
        yield Question(
            f"{verb.capitalize()} the {item.noun} {RELATION[said]} the {other.noun}?", truth, "yes/no", item.noun
        )
