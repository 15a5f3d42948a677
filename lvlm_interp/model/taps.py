"""What attention functions hand their intermediates to: visits in turn; or, where nothing is changed, rows alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from lvlm_interp.model.attention import SQUARE, Rows, Tap, tapped
from lvlm_interp.model.holding import Whose
from lvlm_interp.model.sums import in_turn

Visit = Callable[[Tensor], Tensor]
"""Is given a site's value and returns the value to go on with."""
Parts = Mapping[str, Sequence[Visit]]
_STANDING: WeakKeyDictionary[nn.Module, list[Parts]] = WeakKeyDictionary()  # what each open `with` visits, outer first


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


@contextlib.contextmanager
def attended(model: PreTrainedModel, taps: Mapping[nn.Module, Parts], whose: Whose) -> Iterator[None]:
    """What attention modules compute passes through visits: in one tap for all `with`s that are open, outer first."""
    for module, parts in taps.items():
        _STANDING.setdefault(module, []).append(parts)
    try:
        with tapped(model, {module: tap_of(_joined(_STANDING[module])) for module in taps}, whose):
            yield
    finally:
        for module in taps:
            _STANDING[module].pop()


def _joined(standing: Sequence[Parts]) -> dict[str, list[Visit]]:
    names = dict.fromkeys(name for parts in standing for name in parts)
    return {name: [visit for parts in standing for visit in parts.get(name, ())] for name in names}
