"""What pictures tell: the value that they show for a question, or None where they do not tell."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from lvlm_interp.reference.describing import description
from lvlm_interp.reference.items import Item
from lvlm_interp.reference.things import nouns
from lvlm_interp.reference.wording import OPPOSITE, ORDINALS, About, Asked

Items = Sequence[Item]


def seen(pictures: Sequence[Items], asked: Asked) -> str | None:
    """The value that the pictures show, each given by its items; None where they do not show one clearly."""
    if asked.about == "which":
        return _which(pictures, asked)
    look = _LOOKS.get(asked.about)
    return look(pictures[asked.picture], asked) if look and asked.picture < len(pictures) else None


def candidates(items: Items, rng: random.Random) -> Iterator[Asked]:
    """What a picture can be asked: is it there (and something that is not), colours, names, places, relations."""
    yield Asked("objects")
    hidden = {item.noun for item in items}
    for item in items:
        yield Asked("there", rng.choice([noun for noun in nouns() if noun not in hidden]))
        if item.cover is None:
            yield Asked("there", item.noun)
            yield Asked("color", item.noun)
        if item.place is not None:
            yield Asked("name", of=item.place)
            yield Asked("place", item.shown)
            yield _relation(items, item, rng)


def _relation(items: Items, item: Item, rng: random.Random) -> Asked:
    """Whether it stands where it does, seen from another, or on the opposite side: each half of the time."""
    other = rng.choice([one for one in items if one is not item])
    side = rng.choice([part for part in _sides(item) if part not in _sides(other)])
    return Asked("relation", item.shown, side if rng.random() < 0.5 else OPPOSITE[side], other.shown)


def _sides(item: Item) -> list[str]:
    return (item.place or "").split()


def _of(items: Items, noun: str) -> Item | None:
    """The item that is seen as this noun."""
    return next((item for item in items if item.shown == noun), None)


def _there(items: Items, asked: Asked) -> str | None:
    if any(item.cover and item.noun == asked.noun for item in items):
        return None
    return "yes" if _of(items, asked.noun) else "no"


def _side_of(items: Items, asked: Asked) -> str | None:
    item, other = _of(items, asked.noun), _of(items, asked.other)
    if item is None or other is None or not {asked.of, OPPOSITE[asked.of]} & set(_sides(item)):
        return None
    if set(_sides(item)) & set(_sides(other)) & {asked.of, OPPOSITE[asked.of]}:
        return None
    return "yes" if asked.of in _sides(item) else "no"


def _color(items: Items, asked: Asked) -> str | None:
    return item.color if (item := _of(items, asked.noun)) else None


def _place(items: Items, asked: Asked) -> str | None:
    return item.place if (item := _of(items, asked.noun)) else None


def _name(items: Items, asked: Asked) -> str | None:
    return next((item.shown for item in items if item.place == asked.of), None)


def _objects(items: Items, asked: Asked) -> str:
    return ", ".join(item.shown for item in items)


def _description(items: Items, asked: Asked) -> str:
    return description(items, int(asked.of or 0))


def _which(pictures: Sequence[Items], asked: Asked) -> str | None:
    """The one picture that shows it, if no other may."""
    told = [_there(items, asked) for items in pictures]
    return ORDINALS[told.index("yes")] if sorted(told, key=str) == ["no", "yes"] else None


_LOOKS: dict[About, Callable[[Items, Asked], str | None]] = {
    "there": _there,
    "relation": _side_of,
    "color": _color,
    "place": _place,
    "name": _name,
    "objects": _objects,
    "description": _description,
}
