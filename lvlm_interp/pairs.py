"""Two results side by side: of two pictures, two models, or two ways of being without the image."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lvlm_interp.errors import InputError
from lvlm_interp.results import Provenance, Result
from lvlm_interp.storing import is_tensor

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("first", "second")


class Comparable(Result):
    """A result that another of its kind can be taken from: `a - b` is a `Pair`.

    Attributes:
        keys: columns of its frame that say what a row is about.
        agreeing: attributes that two results must have alike: numbers of different things have no difference.
        settings: the same of parameters that they were computed with.
        beside: columns of numbers whose difference says nothing: errors, say.
    """

    keys: ClassVar[tuple[str, ...]] = ()
    agreeing: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()

    def __sub__(self, other: object) -> Pair:
        """Both side by side.

        Raises:
            InputError: they are about different words, patches or layers, or measure different things.
        """
        return paired(self, other)


@dataclass(frozen=True)
class Pair(Result):
    """Two results of one kind that are about the same words, patches or layers; the difference is first − second.

    Attributes:
        first, second: the results.
        names: what they are called in tables and figures; `dataclasses.replace(pair, names=…)` gives others.
    """

    first: Result
    second: Result
    names: tuple[str, str] = NAMES

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({*self.names, "difference"}) < 3:
            raise InputError(f"the two results, and their difference, have names of their own; got {self.names}")

    @property
    def note(self) -> str:
        """What both say of their numbers, once if they say the same."""
        one, two = self.first.note, self.second.note
        return one if one == two else "; ".join(f"{n}: {note}" for n, note in zip(self.names, (one, two), strict=True))

    def to_frame(self) -> pd.DataFrame:
        """A row as in the frame of either; every number of both, and their difference."""
        one, two = self.first.to_frame(), self.second.to_frame()
        keys = [name for name in type(self.first).keys if name in one]  # type: ignore[attr-defined]
        frame = one[keys].copy()
        for name in (name for name in one.columns if name not in keys and name in two):
            frame[f"{name} ({self.names[0]})"], frame[f"{name} ({self.names[1]})"] = one[name], two[name]
            beside = name in type(self.first).beside  # type: ignore[attr-defined]
            if one[name].dtype.kind in "fiu" and two[name].dtype.kind in "fiu" and not beside:
                frame[f"{name} difference"] = one[name] - two[name]
        return frame


def paired(first: Comparable, second: object) -> Pair:
    """`first - second`.

    Raises:
        InputError: they do not fit.
    """
    if type(first) is not type(second):
        raise InputError(f"{type(first).__name__} minus {type(second).__name__}: both must be of one kind")
    assert isinstance(second, Comparable)
    for name in first.agreeing:
        one, two = getattr(first, name), getattr(second, name)
        if not _alike(one, two):
            raise InputError(_unlike(type(first).__name__, name, one, two))
    for name in first.settings:
        one, two = (result.provenance.parameters.get(name) for result in (first, second))
        if one != two:
            raise InputError(_unlike(type(first).__name__, name, one, two))
    names = _names(first.provenance, second.provenance)
    return Pair(first, second, names, provenance=_both(first.provenance, second.provenance))


def _alike(one: Any, two: Any) -> bool:
    return bool(one.shape == two.shape and (one == two).all()) if is_tensor(one) else one == two


def _unlike(kind: str, name: str, one: Any, two: Any) -> str:
    shown = (f"{list(v.shape)} numbers" if is_tensor(v) else repr(v) for v in (one, two))
    hint = {
        "compared": "; give both the same with against=, or take a value that compares with nothing",
        "alternatives": "; give both the same with against=",
        "quoting": " (whether the words stand in the question, where it asks); take .together() of both",
        "tokens": "; explain the same answer in both, in the same unit",
    }.get(name, "")
    what = {"compared": "alternatives"}.get(name, name)
    return f"these two {kind} cannot be subtracted, their {what} are not the same: {' and '.join(shown)}{hint}"


def _names(one: Provenance, two: Provenance) -> tuple[str, str]:
    """What tells them apart: the model, or the counterfactual."""
    for left, right in ((one.model, two.model), (one.parameters.get("without"), two.parameters.get("without"))):
        if left != right and left and right:
            return str(left), str(right)
    return NAMES


def _both(one: Provenance, two: Provenance) -> Provenance:
    """What was computed of both; fields that differ name both."""
    fields = [(name, getattr(one, name), getattr(two, name)) for name in ("model", "weights", "example", "revision")]
    told: dict[str, Any] = {name: left if left == right else f"{left} − {right}" for name, left, right in fields}
    return dataclasses.replace(one, **told, method=f"{one.method}, difference", parameters={})
