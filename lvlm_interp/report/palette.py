"""What each source of a word is called and in which colour it is drawn, the same in every figure and page.

The colours of the sources are Okabe and Ito's, which colour-blind readers can tell apart; maps run from purple over
nothing to orange, which they can tell apart too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["light", "dark"]


@dataclass(frozen=True)
class Source:
    """Something that credit can go to.

    Attributes:
        name: as in results: `prior` or a role.
        label: for a chart.
        phrase: for the middle of a sentence.
        light, dark: its colour on a light and on a dark ground.
    """

    name: str
    label: str
    phrase: str
    light: str
    dark: str

    def color(self, mode: Mode = "light") -> str:
        return self.light if mode == "light" else self.dark


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("prior", "Prior", "what the language model knew", "#6f6f6f", "#a8a8a8"),
        Source("question", "Question", "the question", "#0072b2", "#56b4e9"),
        Source("context", "Context", "the context", "#00855f", "#2fc492"),
        Source("system", "System", "the system message", "#b0548c", "#e29cc4"),
        Source("image", "Image", "the image", "#d55e00", "#ff9447"),
    )
}

SUPPORTS = "#e66101"
"""Patches that speak for a word."""
OPPOSES = "#5e3c99"
"""Patches that speak against it."""
OPACITY = 0.8
"""Of the strongest patch; the picture stays to be seen under it."""
FAINT = 0.01
"""Nats below which hiding a single patch is said to change nothing; a map's colours reach at least so far, so that
noise is not blown up."""
