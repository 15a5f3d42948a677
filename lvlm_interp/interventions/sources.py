"""What an intervention takes from another run: examples are run, captures are read.

Many interventions that take from the same examples have each run once (`remembering`).
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.interventions.places import Places, placed
from lvlm_interp.model.capture import Capture, Captured
from lvlm_interp.model.choice import axes_of, off_the_prompt
from lvlm_interp.model.vlm import HookedVLM

One = Inputs | Capture | Captured
Source = Inputs | Capture | Captured | Sequence[Inputs]
_KNOWN: ContextVar[Mapping[Inputs, Capture] | None] = ContextVar("known", default=None)


def examples_of(source: Source | None, names: Sequence[str]) -> list[tuple[Inputs, Sequence[str]]]:
    """The examples that have to be run for a source, and what is taken from each."""
    several = [source] if isinstance(source, (Inputs, Capture, Captured)) else list(source or ())
    return [(one, names) for one in several if isinstance(one, Inputs)]


@contextlib.contextmanager
def remembering(vlm: HookedVLM, reads: Iterable[tuple[Inputs, Sequence[str]]]) -> Iterator[None]:
    """Within the `with`, what these examples have at these sites is known: each was run once."""
    wanted: dict[Inputs, dict[str, None]] = defaultdict(dict)
    for x, names in reads:
        wanted[x].update(dict.fromkeys(names))
    token = _KNOWN.set({x: vlm.capture(x, list(names)) for x, names in wanted.items()})
    try:
        yield
    finally:
        _KNOWN.reset(token)


def _captured(vlm: HookedVLM, x: Inputs, names: Sequence[str]) -> Mapping[str, Tensor]:
    known = (_KNOWN.get() or {}).get(x)
    return known if known is not None and {*names} <= {*known} else vlm.capture(x, list(names))


def values_at(
    vlm: HookedVLM,
    x: Inputs,
    source: Source,
    names: Sequence[str],
    here: Places | None,
    there: Places | None,
    mean: bool = False,
) -> dict[str, Callable[[Tensor], Tensor]]:
    """By site, a function that puts into a value what stands at the places in the source, or their mean.

    Raises:
        InputError: another model's capture, other sites, or another number of places.
    """
    several = [source] if isinstance(source, (Inputs, Capture, Captured)) else list(source)
    if not several or (len(several) > 1 and not mean):
        raise InputError(f"a source is one example or capture, and several are for a mean; got {len(several)}")
    if mean:
        means = [_taken(vlm, x, one, names, there, mean=True) for one in several]
        return {
            name: functools.partial(_in_place_of_all, torch.stack([m[name] for m in means]).mean(0)) for name in names
        }
    taken = _taken(vlm, x, several[0], names, there, mean=False)
    _need_as_many(x, several[0], here, there)
    return {name: functools.partial(_in_place, x, name, here, taken[name]) for name in names}


def _taken(
    vlm: HookedVLM, x: Inputs, source: One, names: Sequence[str], there: Places | None, mean: bool
) -> dict[str, Tensor]:
    """What stands there; of a capture that has other positions than the example, all that it has."""
    of, values = (source, _captured(vlm, source, names)) if isinstance(source, Inputs) else (x, _own(vlm, source))
    found = {}
    for name in names:
        rows = axes_of(name)[0]
        value = values[name]
        if not off_the_prompt(name) and value.shape[rows] == of.length:
            places = placed(of, there, of.length).nonzero()[:, 0]
            value = value.index_select(rows, places.to(value.device))
        if mean and off_the_prompt(name):
            raise InputError(f"{name!r} has positions of its own: a mean is taken over those of the prompt")
        found[name] = value.mean(rows, keepdim=True) if mean else value
    return found


def _own(vlm: HookedVLM, source: Capture | Captured) -> Mapping[str, Tensor]:
    """A capture, if it is this model's."""
    if source.provenance.weights != vlm.identity:
        raise InputError("the source is a capture of another model, or of this one before its weights changed")
    return source


def _need_as_many(x: Inputs, source: One, here: Places | None, there: Places | None) -> None:
    """Raise where examples are of other lengths, or roles that are to be exchanged.

    Raises:
        InputError: names the first position at which they differ.
    """
    if not isinstance(source, Inputs):
        return
    own, other = (int(placed(one, places, one.length).sum()) for one, places in ((x, here), (source, there)))
    if own == other:
        return
    roles = zip(x.roles, source.roles, strict=False)
    first = next((n for n, (a, b) in enumerate(roles) if a != b), min(x.length, source.length))
    raise InputError(
        f"{own} positions here and {other} in the source: states are exchanged one for one. Position {first} is the "
        f"first that differs in its role; the example has {x.length} positions, the source {source.length}"
    )


def _in_place_of_all(mean: Tensor, value: Tensor) -> Tensor:
    return mean.to(value).expand_as(value)


def _in_place(x: Inputs, name: str, here: Places | None, taken: Tensor, value: Tensor) -> Tensor:
    """The value, with what was taken at these places."""
    rows = axes_of(name)[0]
    if off_the_prompt(name):
        places = torch.arange(value.shape[rows])
    else:
        places = placed(x, here, value.shape[rows]).nonzero()[:, 0]
    if len(places) > taken.shape[rows] and value.shape[rows] == x.length:
        raise InputError(f"{name!r} has {len(places)} positions to be exchanged, and the source {taken.shape[rows]}")
    places = places[: taken.shape[rows]]  # another answer may be longer than the one that was taken from
    return value.index_copy(rows, places.to(value.device), taken.narrow(rows, 0, len(places)).to(value))
