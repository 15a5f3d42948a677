"""Scenes whose truth is known to the pixel: one to four objects on a plain ground, and questions about them.

A scene is a pure function of its seed. The reference model was trained on seeds from `TRAINING_SEEDS` only, so every
smaller seed is held out; and no training scene shows a pair of `things.is_held_out`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from lvlm_interp.errors import SceneError
from lvlm_interp.given import checked, explaining
from lvlm_interp.reference import drawing
from lvlm_interp.reference.drawing import (
    COVERS,
    GROUNDS,
    HELD_OUT_STYLE,
    SIZE,
    TRAINED_STYLES,
    Cover,
    Layout,
    Spot,
    State,
    Style,
    draw_layout,
)
from lvlm_interp.reference.items import Item
from lvlm_interp.reference.seeing import candidates, seen
from lvlm_interp.reference.things import (
    COLORED,
    COLORS,
    DRAWN_COLORS,
    HUES,
    NATURAL_COLORS,
    RECOLORABLE,
    company_of,
    is_held_out,
    nouns,
    with_article,
)
from lvlm_interp.reference.wording import OPPOSITE, RELATION, About, Asked, answer_text, question_text

__all__ = [
    "COLORS",
    "GROUNDS",
    "HELD_OUT_STYLE",
    "HUES",
    "NATURAL_COLORS",
    "OPPOSITE",
    "RECOLORABLE",
    "RELATION",
    "SIZE",
    "TRAINED_STYLES",
    "TRAINING_SEEDS",
    "Item",
    "Question",
    "Scene",
    "Style",
    "make_scene",
    "make_scenes",
    "nouns",
    "with_article",
]

QuestionKind = Literal["yes/no", "color", "place", "name", "objects"]
KIND_OF: dict[About, QuestionKind] = {
    "there": "yes/no",
    "relation": "yes/no",
    "color": "color",
    "place": "place",
    "name": "name",
    "objects": "objects",
}

TRAINING_SEEDS = range(1_000_000, 1_000_000_000)
COUNTS = (1, 2, 2, 3, 4)
"""How many things a scene shows; each as likely as it stands here."""
COLORED_FIRST = 0.5
"""Chance that a thing is drawn among those that a colour is asked of; else among all."""
TOGETHER = 0.5
"""Chance that a thing is drawn from the company of the first."""
COVERED, GREY, NATURAL, PAINTED = 0.1, 1 / 6, 0.7, 0.7
"""Chances of how a thing stands: covered (at most one of a scene, never a thing alone); of those of a colour, grey; of
those that are left, with its natural colour where it has one, painted where it has none."""
GIVEN = (*COLORS, "grey", "covered")
"""What `make_scene(colors=…)` takes, beside None."""
_STATES: dict[str | None, State] = {None: "drawn", "grey": "grey", "covered": "covered"}


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
    """A picture with its truth. `image` is RGB, `items` run left to right or top to bottom, as one reads."""

    seed: int
    style: Style
    items: tuple[Item, ...]
    image: Image.Image = field(repr=False, compare=False)
    layout: Layout = field(repr=False, compare=False)

    def item(self, noun: str) -> Item:
        """The item with this noun; `SceneError` if the scene has none."""
        for item in self.items:
            if item.noun == noun:
                return item
        raise SceneError(f"no {noun!r} in this scene; it shows {[i.shown for i in self.items]}")

    def shows(self, asked: Asked) -> str | None:
        """The value that the picture shows for a question, such as `purple`; None where it does not tell."""
        return seen([self.items], asked)

    def questions(self) -> tuple[Question, ...]:
        """Every question that the picture answers, in an order drawn from its seed."""
        rng = random.Random(f"questions:{self.seed}")
        found = [_question(asked, value) for asked in candidates(self.items, rng) if (value := self.shows(asked))]
        rng.shuffle(found)
        return tuple(found)

    @checked
    def redrawn(self, objects: Sequence[str] | None = None, colors: Sequence[str | None] | None = None) -> Scene:
        """The same picture with other things at the same spots, or with the same in other colours.

        Raises:
            SceneError: as `make_scene`; or another number of objects.
        """
        named = list(objects) if objects is not None else [item.noun for item in self.items]
        paints = list(colors) if colors is not None else [item.paint for item in self.items]
        if len(named) != len(self.items):
            raise SceneError(f"{len(self.items)} objects stand in this scene; got {len(named)}")
        _need_drawable(named, paints)
        return _drawn(self.seed, self.layout, list(zip(named, paints, strict=True)))


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
        objects: one to four nouns to show, instead of drawn ones.
        colors: for each of `objects` a colour, "grey", "covered", or None: as drawn. By default a colour is drawn from
            the seed, and what is named is seen: none is grey or covered.

    Raises:
        SceneError: a noun, colour or style that is not known, not one to four objects, or two that are covered.
    """
    if objects is None and colors is not None:
        raise SceneError(f"colors={list(colors)} are of objects, and none are named; give objects=[…] as well")
    if objects is not None:
        _need_drawable(objects, colors)
    chance = random.Random(f"things:{seed}")
    if objects is None:
        named = _choose(chance, seed in TRAINING_SEEDS)
        paints = _states(chance, named)
    else:
        named, paints = list(objects), list(colors) if colors is not None else [_paint(chance, n) for n in objects]
    layout = draw_layout(random.Random(f"scene:{seed}"), style, len(named))
    return _drawn(seed, layout, list(zip(named, paints, strict=True)))


@checked
def make_scenes(count: int, seed: int = 0, style: Style | None = None) -> Iterator[Scene]:
    """The scenes of seeds `seed` … `seed + count - 1`, drawn one at a time."""
    return (make_scene(seed + i, style) for i in range(count))


# --- what a scene shows ---------------------------------------------------------------------------


def _choose(rng: random.Random, training: bool) -> list[str]:
    count = rng.choice(COUNTS)
    chosen: list[str] = []
    while len(chosen) < count:
        pool = company_of(chosen[0]) if chosen and rng.random() < TOGETHER else nouns()
        if rng.random() < COLORED_FIRST:
            pool = tuple(noun for noun in pool if noun in COLORED) or pool
        noun = rng.choice(pool)
        if noun not in chosen and not (training and is_held_out([*chosen, noun])):
            chosen.append(noun)
    return chosen


def _states(rng: random.Random, named: Sequence[str]) -> list[str | None]:
    """How each thing stands: at most one is covered, and never one that is alone."""
    hidden = next((n for n in named if rng.random() < COVERED), None) if len(named) > 1 else None
    return [
        "covered" if noun == hidden else "grey" if noun in COLORED and rng.random() < GREY else _paint(rng, noun)
        for noun in named
    ]


def _paint(rng: random.Random, noun: str) -> str | None:
    """The colour of a thing whose colour shows, or None: as drawn."""
    kept = NATURAL if noun in NATURAL_COLORS else 1 - PAINTED
    if noun not in RECOLORABLE or rng.random() < kept:
        return None
    return rng.choice([color for color in COLORS if color != NATURAL_COLORS.get(noun)])


def _need_drawable(objects: Sequence[str], colors: Sequence[str | None] | None) -> None:
    unknown = [n for n in objects if n not in nouns()] + [c for c in colors or () if c is not None and c not in GIVEN]
    if unknown:
        raise SceneError(f"cannot draw {unknown}; colours are {list(GIVEN)}, nouns are listed by scenes.nouns()")
    if not 1 <= len(objects) <= 4 or len(set(objects)) != len(objects):
        raise SceneError(f"a scene shows one to four different objects, asked for {list(objects)}")
    if colors is not None and len(colors) != len(objects):
        raise SceneError(f"{len(objects)} objects but {len(colors)} colours")
    if list(colors or ()).count("covered") > 1:
        raise SceneError("at most one object of a scene is covered, so that what a cover hides can be asked")


def _drawn(seed: int, layout: Layout, things: Sequence[tuple[str, str | None]]) -> Scene:
    image = Image.new("RGB", (SIZE, SIZE), layout.ground)
    over = random.Random(f"cover:{seed}").choice(COVERS)
    items = [_item(image, layout.style, layout.spots[n], noun, paint, over) for n, (noun, paint) in enumerate(things)]
    return Scene(seed, layout.style, tuple(items), image, layout)


def _item(image: Image.Image, style: Style, spot: Spot, noun: str, paint: str | None, over: Cover) -> Item:
    """One thing, drawn on the image."""
    state = _STATES.get(paint, "painted")
    color = {"drawn": DRAWN_COLORS.get(noun), "painted": paint}.get(state)
    box = drawing.paste(image, drawing.drawn(noun, style, state, color, over), spot)
    return Item(noun, color, state, spot.place, box, over if state == "covered" else None)


def _question(asked: Asked, value: str) -> Question:
    return Question(question_text(asked), answer_text(asked, value) or "", KIND_OF[asked.about], asked.noun or None)
