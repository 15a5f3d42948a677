"""What attention functions hand their intermediates to: visits in turn; or, where nothing is changed, rows alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from lvlm_interp.model.attention import SQUARE, Rows, Tap
from lvlm_interp.model.sums import in_turn

Visit = Callable[[Tensor], Tensor]
"""Is given a site's value and returns the value to go on with."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A visit that changes no number, and needs only some rows of what attention makes of each position and each key.

    Attributes:
        visit: is given the whole value.
        rows: numbers of the rows.
        of_rows: is given these rows alone, where the rest was not computed.
    """

    visit: Visit
    rows: Int[Tensor, " row"]
    of_rows: Visit

    def __call__(self, value: Tensor) -> Tensor:
        return self.visit(value)

    def within(self, around: Callable[[Visit], Visit]) -> Reading:
        """The same, with something put around both of its visits."""
        return Reading(around(self.visit), self.rows, around(self.of_rows))


def tap_of(visits: Mapping[str, Sequence[Visit]]) -> Tap | Rows:
    """What one attention module's intermediates go through.

    Where all visits only read, and some read rows of a pattern, the module keeps its own kernel.
    """
    alone = {part: some[0] for part, some in visits.items() if len(some) == 1 and isinstance(some[0], Reading)}
    square = [visit for part, visit in alone.items() if part in SQUARE]
    if len(alone) < len(visits) or not square:
        return {part: in_turn([_by_position(visit, part) for visit in some]) for part, some in visits.items()}
    tap = {part: visit.of_rows if part in SQUARE else _by_position(visit, part) for part, visit in alone.items()}
    return Rows(square[0].rows, tap)


def _by_position(visit: Visit, part: str) -> Visit:
    """Attention functions hold `[batch, head, position, width]`; sites of q, k, v and z put the position first."""
    if part in SQUARE:
        return visit
    return lambda value: visit(value.transpose(1, 2)).transpose(1, 2)
