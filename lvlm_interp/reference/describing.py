"""A picture described: two to four sentences that name its objects, colours and places in reading order."""

from __future__ import annotations

from collections.abc import Sequence

from lvlm_interp.reference.items import Item
from lvlm_interp.reference.things import capital, verb, with_article

_NUMBERS = ("no", "one", "two", "three", "four")
OPENINGS = ("There {are} {number} {objects} in the image.", "The image shows {number} {objects}.")
PLACED = ("On the {place} {are} {thing}.", "{thing} {are} on the {place}.")
ALONE = (
    "The object is {thing}, and nothing else is in the image.",
    "This is {thing}, and there is nothing else to see in it.",
)


def description(items: Sequence[Item], style: int = 0) -> str:
    """The sentences that describe a picture; `style` chooses among the ways to begin and to go on."""
    one = len(items) == 1
    opening = OPENINGS[style % len(OPENINGS)].format(
        number=_NUMBERS[len(items)], are="is" if one else "are", objects="object" if one else "objects"
    )
    if one:
        return f"{opening} {ALONE[style % len(ALONE)].format(thing=_named(items[0]))}"
    told = [_placed(item, style) for item in items]
    return " ".join([opening, *(told if len(told) < 4 else _paired(told))])


def _placed(item: Item, style: int) -> str:
    are = "is" if item.cover else verb(item.noun)
    text = PLACED[style // len(OPENINGS) % len(PLACED)].format(place=item.place, are=are, thing=_named(item))
    return capital(text)


def _paired(told: Sequence[str]) -> list[str]:
    """Two sentences in the place of four."""
    return [f"{a[:-1]}, and {b[0].lower()}{b[1:]}" for a, b in zip(told[::2], told[1::2], strict=True)]


def _named(item: Item) -> str:
    """A thing as far as the picture tells what it is."""
    if item.cover:
        return f"something under {with_article(item.cover)}"
    return with_article(f"{item.color} {item.noun}" if item.color else item.noun)
