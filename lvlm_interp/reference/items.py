"""One thing of a scene, and the truth about it."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_interp.reference.drawing import Box, Cover, State
from lvlm_interp.reference.things import NATURAL_COLORS


@dataclass(frozen=True)
class Item:
    """One object of a scene.

    Attributes:
        noun: what it is, seen or not.
        color: the colour that the picture shows; None where it does not tell one.
        state: as `drawn`, `painted`, `grey` or `covered`.
        place: left, right, top, bottom, or a quadrant (`top left`); None where it is alone.
        box: (left, top, right, bottom) of its drawn pixels, or of what covers it.
        cover: what is over it.
    """

    noun: str
    color: str | None
    state: State
    place: str | None
    box: Box
    cover: Cover | None = None

    @property
    def natural(self) -> str | None:
        """The colour that it is known to have; None where there is no such."""
        return NATURAL_COLORS.get(self.noun)

    @property
    def recolored(self) -> bool:
        """Whether it is painted."""
        return self.state == "painted"

    @property
    def shown(self) -> str:
        """What the picture shows: the noun, or its cover's."""
        return self.cover or self.noun

    @property
    def paint(self) -> str | None:
        """What `make_scene(colors=…)` takes to draw it so."""
        if self.state == "painted":
            return self.color
        return None if self.state == "drawn" else self.state
