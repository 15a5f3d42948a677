"""Questions about scenes as data sets for probes: three levels at which a model may go wrong about a picture.

*Object*: is it there, and what is it. *Attribute*: its colour. *Relation*: where it is to the other. The truth is known
from the scenes. Every scene gives one question of a level, so that examples are independent; `group` is the scene.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from lvlm_interp.errors import SceneError
from lvlm_interp.given import checked, explaining
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.reference.scenes import Scene, Style, make_scene
from lvlm_interp.reference.things import COLORS, RECOLORABLE, capital, listed, nouns, verb, with_article

Level = Literal["presence", "object", "attribute", "relation"]
LEVELS: tuple[Level, ...] = get_args(Level)
NAMED = ("apple", "ball", "balloon", "banana", "bell", "bird", "boat", "book")
"""The objects that `object` tells apart."""


@explaining
@dataclass(frozen=True)
class Example:
    """One example of a data set for probes.

    Attributes:
        scene: the picture with its truth.
        question: about it; the same words for every answer, but for the noun.
        label: what is to be read off the model.
        type: what a probe could learn by heart instead of reading it: the noun that the question names.
        group: examples of the same group share a picture.
        centre: (x, y) of the object asked about in pixels of the picture, or None if it is not there.
        answer: the answer so far, where the model is read in the middle of it.
    """

    scene: Scene
    question: str
    label: str
    type: str
    group: int
    centre: tuple[float, float] | None
    answer: str | None = None

    def inputs(self, vlm: HookedVLM) -> Inputs:
        """What a model is asked; it is read at the last position."""
        return vlm.prepare(self.question, self.scene.image, answer=self.answer)


@checked
def examples(level: str, count: int, seed: int = 0, style: Style | None = None) -> Iterator[Example]:
    """A data set of one level, drawn one example at a time from the scenes of seeds `seed` … `seed + count - 1`.

    Args:
        level: `presence` (yes or no, for a noun that is or is not there), `object` (which of `NAMED`), `attribute`
            (which of `COLORS`, painted whatever the noun), or `relation` (left, right, above or below the
            other object).
        count: how many.
        seed: of the first scene; seeds that are not in `TRAINING_SEEDS` are held out from the reference model.
        style: drawing style; one of the trained styles by default.

    Raises:
        SceneError: no such level.
    """
    if level not in LEVELS:
        raise SceneError(f"no level {level!r}; there are {list(LEVELS)}")
    return (_MAKERS[level](seed + i, style) for i in range(count))


@checked
def words(count: int, seed: int = 0, style: Style | None = None) -> Iterator[Example]:
    """Nouns in the middle of true answers, with the place of what they name: for probes from a word to (x, y).

    The question is the same for all; the answer so far ends in the noun, which is the example's label. Of several
    objects one that is not covered is read, drawn at random.
    """
    for number in range(seed, seed + count):
        scene = make_scene(number, style)
        item = random.Random(f"words:{number}").choice([item for item in scene.items if item.cover is None])
        whole = listed([with_article(other.shown) for other in scene.items])
        said = whole[: whole.index(with_article(item.noun)) + len(with_article(item.noun))]
        yield replace(_example(scene, "What is in the image?", item.noun, item.noun), answer=capital(said))


def _presence(seed: int, style: Style | None) -> Example:
    rng = random.Random(f"presence:{seed}")
    asked, other, instead = rng.sample(nouns(), 3)
    there = rng.random() < 0.5
    scene = make_scene(seed, style, [asked if there else instead, other])
    return _example(scene, f"Is there {with_article(asked)} in the image?", "yes" if there else "no", asked)


def _object(seed: int, style: Style | None) -> Example:
    rng = random.Random(f"object:{seed}")
    noun = rng.choice(NAMED)
    scene = make_scene(seed, style, [noun])
    # No noun can be named in the question; what could be learnt by heart instead is the colour.
    made = _example(scene, "What is in the image?", noun, noun)
    return Example(made.scene, made.question, made.label, scene.items[0].color or "as drawn", made.group, made.centre)


def _attribute(seed: int, style: Style | None) -> Example:
    rng = random.Random(f"attribute:{seed}")
    noun, color = rng.choice(RECOLORABLE), rng.choice(COLORS)
    scene = make_scene(seed, style, [noun], [color])
    return _example(scene, f"What color {verb(noun)} the {noun}?", color, noun)


def _relation(seed: int, style: Style | None) -> Example:
    rng = random.Random(f"relation:{seed}")
    scene = make_scene(seed, style, rng.sample(nouns(), 2))
    item = rng.choice(scene.items)
    assert item.place is not None  # two objects always have places
    label = {"top": "above", "bottom": "below"}.get(item.place, item.place)
    return _example(scene, f"Where {verb(item.noun)} the {item.noun}?", label, item.noun)


_MAKERS: dict[str, Callable[[int, Style | None], Example]] = {
    "presence": _presence,
    "object": _object,
    "attribute": _attribute,
    "relation": _relation,
}


def _example(scene: Scene, question: str, label: str, asked: str) -> Example:
    boxes = [item.box for item in scene.items if item.noun == asked]
    centre = ((boxes[0][0] + boxes[0][2]) / 2, (boxes[0][1] + boxes[0][3]) / 2) if boxes else None
    return Example(scene, question, label, asked, scene.seed, centre)
