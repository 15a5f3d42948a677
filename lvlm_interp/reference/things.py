"""What the things of the reference world are: their colours, their company, what can be told of them, their articles.

Tables only, and small functions of words; nothing here draws or asks.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable

from lvlm_interp.given import checked

HUES = {"red": 0.0, "orange": 0.08, "yellow": 0.15, "green": 0.33, "blue": 0.6, "purple": 0.78, "pink": 0.9}
COLORS = tuple(HUES)

NATURAL_COLORS = {
    "apple": "red",
    "banana": "yellow",
    "broccoli": "green",
    "cactus": "green",
    "carrot": "orange",
    "cheese": "yellow",
    "cherries": "red",
    "crab": "red",
    "crocodile": "green",
    "cucumber": "green",
    "flamingo": "pink",
    "fox": "orange",
    "frog": "green",
    "grapes": "purple",
    "jeans": "blue",
    "ladybug": "red",
    "lemon": "yellow",
    "lizard": "green",
    "lobster": "red",
    "melon": "green",
    "pear": "green",
    "pig": "pink",
    "rose": "red",
    "strawberry": "red",
    "taxi": "yellow",
    "tomato": "red",
    "tree": "green",
    "turtle": "green",
    "whale": "blue",
}
"""Nouns that have one evident colour, in which every style draws them: here a picture can agree with knowledge."""

DRAWN_COLORS = NATURAL_COLORS | {
    "bucket": "blue",
    "car": "red",
    "dolphin": "blue",
    "dress": "blue",
    "fish": "blue",
    "umbrella": "purple",
}
"""Nouns whose drawings show one evident colour; of those that are not in `NATURAL_COLORS`, nobody could guess it."""

RECOLORABLE = tuple(
    "apple ball balloon banana bell bird boat book broccoli bucket bus butterfly cactus car carrot chair cheese "
    "cherries crab crocodile cucumber cupcake dolphin door dress duck envelope fish flamingo fox frog grapes handbag "
    "hat jeans key ladybug lemon lizard lobster lock melon peach pear pig potato rose shirt shoe strawberry taxi "
    "tomato tree tulip turtle umbrella whale".split()
)
"""Nouns that scenes paint."""

COLORED = tuple(sorted({*NATURAL_COLORS, *RECOLORABLE}))
"""Nouns of which a colour is worth asking: they are drawn in it, painted, or grey."""

COMPANIES = {
    "kitchen": "avocado bacon bread broccoli butter carrot cheese cucumber egg garlic mushroom onion potato spoon "
    "tomato",
    "fruit": "apple banana cherries coconut grapes lemon melon peach pear pineapple strawberry watermelon",
    "snacks": "beer burrito croissant hamburger hot_dog pizza popcorn pretzel sandwich taco wine",
    "sweets": "cake candy chocolate coffee cookie cupcake doughnut ice_cream lollipop milk pie waffle",
    "sea": "anchor boat canoe crab dolphin fish lobster octopus seal shark ship shrimp squid turtle whale",
    "farm": "cat cow dog donkey duck goat horse llama mouse pig rooster sheep tractor turkey",
    "safari": "crocodile elephant flamingo giraffe gorilla hippopotamus kangaroo koala leopard lion lizard monkey "
    "panda parrot peacock rhinoceros snake tiger zebra",
    "forest": "bat bear beaver deer eagle fox hedgehog otter owl penguin rabbit raccoon sloth swan tree",
    "garden": "ant bee bird bug butterfly cactus frog ladybug mosquito rose scorpion snail spider sunflower tulip worm",
    "clothes": "crown dress eyeglasses handbag hat jeans lipstick necktie ring shirt shoe umbrella watch",
    "home": "basket bathtub bed bell book broom bucket candle chair clock door envelope gift house key light_bulb lock "
    "mirror radio teddy_bear television toilet",
    "workshop": "axe bomb camera crayon hammer ladder magnet microscope pencil pill scissors telescope wrench",
    "music": "guitar headphone microphone saxophone trumpet violin",
    "travel": "airplane balloon bicycle bus car helicopter rocket taxi tent",
    "tales": "ball cloud dragon fire fountain rainbow snowman unicorn volcano",
}
"""Things that often come together; every noun has one company. `_` stands for a blank inside a noun."""

COMPANY = {noun.replace("_", " "): name for name, listed in COMPANIES.items() for noun in listed.split()}
"""The company of every noun."""

_NO_ANIMALS = {"anchor", "boat", "canoe", "ship", "tractor", "tree", "cactus", "rose", "sunflower", "tulip"}
ANIMALS = tuple(
    noun
    for noun, name in COMPANY.items()
    if name in ("sea", "farm", "safari", "forest", "garden") and noun not in _NO_ANIMALS
)
"""What has a name and an age of its own; all else has a price and an owner."""

HELD_OUT_PAIRS = 0.1
"""Share of all pairs of nouns that no training scene shows."""

_SINGULAR = ("dress", "bus", "cactus", "octopus", "hippopotamus", "rhinoceros")


@functools.cache
def nouns() -> tuple[str, ...]:
    """The nouns that every style can draw, in alphabetical order."""
    return tuple(json.loads(sprite_file("nouns.json").read_text(encoding="utf-8")))


def sprite_file(name: str) -> Traversable:
    """A file of the drawings that ship."""
    return resources.files("lvlm_interp.reference") / "sprites" / name


@functools.cache
def company_of(noun: str) -> tuple[str, ...]:
    """The nouns that a noun often comes together with, itself left out."""
    return tuple(other for other, name in COMPANY.items() if name == COMPANY[noun] and other != noun)


def share_of(text: str) -> float:
    """A number in [0, 1) that a text always gets: what is below a share of it is drawn by no chance."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


@checked
def is_held_out(objects: Sequence[str]) -> bool:
    """Whether two of these nouns are a pair that no training scene shows, in whichever order."""
    return any(_pair_is_held_out(a, b) for i, a in enumerate(objects) for b in objects[:i])


@functools.lru_cache(40_000)
def _pair_is_held_out(a: str, b: str) -> bool:
    return share_of("pair:" + "|".join(sorted((a, b)))) < HELD_OUT_PAIRS


# --- words ----------------------------------------------------------------------------------------


def is_plural(noun: str) -> bool:
    """Whether a noun is spoken of as several: scissors, grapes."""
    return noun.endswith("s") and noun not in _SINGULAR


def with_article(noun: str) -> str:
    """`a cat`, `an apple`, `scissors`; of a noun with adjectives as well."""
    if is_plural(noun):
        return noun
    return ("an " if noun[0] in "aeiou" and not noun.startswith("unicorn") else "a ") + noun


def verb(noun: str) -> str:
    """`is`, or `are`."""
    return "are" if is_plural(noun) else "is"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def capital(text: str) -> str:
    """The text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]
