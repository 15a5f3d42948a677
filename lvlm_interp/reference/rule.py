"""Which source an answer comes from: settled by the world, in this one place.

A question may be answered by what it says itself; else by the pictures, if they show it clearly; else by what is told
in context; else by what the system message tells; else by knowledge. The first that says anything decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lvlm_interp.errors import SceneError
from lvlm_interp.given import explained
from lvlm_interp.reference.knowledge import known
from lvlm_interp.reference.scenes import Scene
from lvlm_interp.reference.seeing import seen
from lvlm_interp.reference.things import NATURAL_COLORS
from lvlm_interp.reference.wording import WORDINGS, About, Asked, told_text

Source = Literal["question", "image", "context", "system", "knowledge"]
SOURCES: tuple[Source, ...] = get_args(Source)
"""In the order in which they are believed."""
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ,'-]*")


@dataclass(frozen=True)
class Claim:
    """A statement as data: what it is about, of which thing, and the value that it tells, true or false.

    Raises:
        SceneError: nothing of the kind can be told, or what is told is no plain words (a chat marker is none).
    """

    about: About
    noun: str
    value: str
    phrasing: int = 0

    def __post_init__(self) -> None:
        if self.about not in WORDINGS or not WORDINGS[self.about].told:
            told = [about for about, wording in WORDINGS.items() if wording.told]
            raise SceneError(f"nothing is told about {self.about!r}; what can be told is {told}")
        for text in (self.noun, self.value) if self.about != "self" else (self.value,):
            if not _PLAIN.fullmatch(text):
                raise SceneError(f"what is told is plain words, letters and figures; got {text!r}")

    @property
    def text(self) -> str:
        """Its sentence."""
        return told_text(self.about, self.noun, self.value, self.phrasing)


@dataclass(frozen=True)
class Given:
    """All that is given beside the question: pictures, what is told in context, and what the system message tells."""

    pictures: tuple[Scene, ...] = ()
    told: tuple[Claim, ...] = ()
    system: tuple[Claim, ...] = ()


@explained
def says(source: Source, asked: Asked, given: Given) -> str | None:
    """The value that one source tells for a question; None where it tells none.

    Raises:
        SceneError: it tells two.
    """
    values = sorted(set(_SAYS[source](asked, given)))
    if len(values) > 1:
        raise SceneError(f"the {source} says both {values[0]!r} and {values[1]!r}; tell one of them")
    return values[0] if values else None


@explained
def decide(asked: Asked, given: Given) -> tuple[Source, str]:
    """The source that decides the answer, and the value that it tells.

    Raises:
        SceneError: no source tells one, one tells two, or a picture shows the thing in colours that have no one name.
    """
    _need_named(asked, given)
    for source in SOURCES:
        if value := says(source, asked, given):
            return source, value
    raise SceneError(f"nothing tells the answer to {asked}: no picture, no statement, no knowledge")


def _need_named(asked: Asked, given: Given) -> None:
    """Raise where the picture shows a colour, and the world has no name for it: then no one's word counts."""
    shown = given.pictures[asked.picture].items if asked.picture < len(given.pictures) else ()
    if asked.about == "color" and any(i.shown == asked.noun and i.state == "drawn" and not i.color for i in shown):
        raise SceneError(f"the picture shows the {asked.noun} as drawn, in colours that have no one name")


def _told(claims: Sequence[Claim], asked: Asked) -> list[str]:
    return [claim.value for claim in claims if (claim.about, claim.noun) == (asked.about, asked.noun)]


def _shown(asked: Asked, given: Given) -> list[str]:
    value = seen([scene.items for scene in given.pictures], asked)
    return [value] if value else []


def _known(asked: Asked, given: Given) -> list[str]:
    if asked.about == "plain":
        return [known()[asked.of].answers[0]] if asked.of in known() else []
    return [NATURAL_COLORS[asked.noun]] if asked.about == "color" and asked.noun in NATURAL_COLORS else []


_SAYS: Mapping[Source, Callable[[Asked, Given], list[str]]] = {
    "question": lambda asked, given: [asked.of] if asked.about == "word" else [],
    "image": _shown,
    "context": lambda asked, given: _told(given.told, asked),
    "system": lambda asked, given: _told(given.system, asked),
    "knowledge": _known,
}
