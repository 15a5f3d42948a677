"""An intervention is data: what is changed, where, and by what. One engine applies it to whatever a model runs.

Each change is watched where the model goes on from it, and certified: how often it fired, how much it changed, and
whether what it was to achieve holds. One that changed nothing is an error.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.fields import shown
from lvlm_interp.given import Parametric, explained, explaining
from lvlm_interp.inputs.called import digest
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.choice import axes_of, off_the_prompt
from lvlm_interp.model.sites import Site
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.storing import is_tensor, storable

Measured = Mapping[str, float]
Reads = Sequence[tuple[Inputs, Sequence[str]]]


@dataclass(frozen=True, eq=False)
class Act:
    """One change at one site.

    Attributes:
        site: where.
        change: is given the site's whole value, and returns the value to go on with.
        seen: the site at which it is told what was achieved: the same, or one that follows from it.
        measure: what is told, of the value before and after the change where `seen` is `site`, else of the same value
            twice.
        holds: whether that is what was to be achieved.
        may_be_idle: whether the model may be as it was afterwards.
        first: the first position that is changed, or looked at for it; those before may be shown as 0.
    """

    site: Site
    change: Callable[[Tensor], Tensor]
    seen: Site
    measure: Callable[[Tensor, Tensor], Measured]
    holds: Callable[[Measured], bool]
    may_be_idle: bool = False
    first: int = 0


@explaining
class Intervention(Parametric, abc.ABC):
    """Something that is changed; subclasses are frozen dataclasses. `one + other` does both, in this order."""

    @abc.abstractmethod
    def acts(self, vlm: HookedVLM, x: Inputs) -> Sequence[Act]:
        """Its changes in a model, for an example; what it takes from other examples is computed here."""

    def reads(self, vlm: HookedVLM, x: Inputs) -> Reads:
        """Examples that it takes states from, and at which sites: computed once for many interventions."""
        return []

    def __add__(self, other: Intervention) -> Together:
        if not isinstance(other, Intervention):
            raise InputError(f"an intervention is added to another one; got {shown(other)}")
        return Together((*each_of(self), *each_of(other)))

    @property
    def described(self) -> str:
        """It, in a line, for results: tensors and examples by their digests."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        values = {one.name: getattr(self, one.name) for one in fields}
        given = [f"{name}={_told(value)}" for name, value in values.items() if value is not None]
        return f"{type(self).__name__}({', '.join(given)})"

    def __repr__(self) -> str:
        return self.described


@dataclass(frozen=True, eq=False, repr=False)
class Together(Intervention):
    """Several interventions, one after the other where they change one place."""

    each: tuple[Intervention, ...]

    def acts(self, vlm: HookedVLM, x: Inputs) -> Sequence[Act]:
        return [act for one in self.each for act in one.acts(vlm, x)]

    def reads(self, vlm: HookedVLM, x: Inputs) -> Reads:
        return [read for one in self.each for read in one.reads(vlm, x)]

    @property
    def described(self) -> str:
        return " + ".join(one.described for one in self.each)


def each_of(one: Intervention) -> tuple[Intervention, ...]:
    return one.each if isinstance(one, Together) else (one,)


def _told(value: Any) -> str:
    if isinstance(value, Inputs):
        return f"example {digest(value)[:8]}"
    if is_tensor(value):
        numbers = value.detach().cpu().contiguous().float().numpy()
        return f"{shown(value)} {xxhash.xxh3_64_hexdigest(numbers.tobytes())[:8]}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_told(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)) and any(isinstance(one, Inputs) or is_tensor(one) for one in value):
        return f"[{', '.join(map(_told, value))}]"
    return repr(value)


@storable
@dataclass(frozen=True)
class Certificate:
    """That an intervention took place at a site.

    Attributes:
        intervention: which.
        site: where.
        fired: how many passes went through it.
        changed: how many numbers there became others, in all passes together.
        untouched: what is measured, in the run without interventions.
        achieved: the same with them.
        holds: whether it achieved what it was to.
    """

    intervention: str
    site: str
    fired: int
    changed: int
    untouched: Mapping[str, float]
    achieved: Mapping[str, float]
    holds: bool


@dataclass(eq=False)
class _Entry:
    """What is noted of one change while the model runs."""

    by: Intervention
    act: Act
    fired: int = 0
    changed: int = 0
    untouched: Measured = field(default_factory=dict)
    achieved: Measured = field(default_factory=dict)

    def certificate(self) -> Certificate:
        holds = self.act.holds(self.achieved)
        told = (self.by.described, self.act.site.name, self.fired, self.changed)
        return Certificate(*told, dict(self.untouched), dict(self.achieved), holds)


@explaining
class Ledger:
    """What the changes of interventions did so far."""

    def __init__(self, entries: Sequence[_Entry], prompt: int) -> None:
        self._entries, self._prompt = entries, prompt

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        return tuple(entry.certificate() for entry in self._entries)

    @property
    def acts(self) -> list[Act]:
        return [entry.act for entry in self._entries]

    @property
    def changed(self) -> int:
        """How many numbers became others so far."""
        return sum(entry.changed for entry in self._entries)

    def need_achieved(self) -> None:
        """Raise for an intervention that ran, and did not achieve what it was to.

        Raises:
            InputError: names it.
        """
        for entry in self._entries:
            if entry.fired and not entry.act.holds(entry.achieved):
                raise InputError(
                    f"{entry.by.described} did not achieve at {entry.act.site.name!r} what it was to: "
                    f"{dict(entry.achieved)}, without it {dict(entry.untouched)}"
                )

    def need_done(self) -> None:
        """Raise for an intervention that ran, and changed nothing, or not what it was to change.

        Raises:
            InputError: names it.
        """
        for by in dict.fromkeys(entry.by for entry in self._entries):
            ran = [entry for entry in self._entries if entry.by is by and entry.fired]
            if ran and not any(entry.changed or entry.act.may_be_idle for entry in ran):
                sites = [entry.act.site.name for entry in ran]
                raise InputError(f"{by.described} changed nothing at {sites[0]!r}{_more(sites)}: it touches nothing")
        self.need_achieved()

    def visits(self, acting: bool) -> dict[Site, Callable[[Tensor], Tensor]]:
        """What is put at each site: the changes, or only the look at what is there without them."""
        sites = dict.fromkeys(site for entry in self._entries for site in (entry.act.site, entry.act.seen))
        return {site: self._visit(site, acting) for site in sites}

    def _visit(self, site: Site, acting: bool) -> Callable[[Tensor], Tensor]:
        changing = [entry for entry in self._entries if entry.act.site == site]
        seeing = [entry for entry in self._entries if entry.act.seen == site != entry.act.site]

        def visit(value: Tensor) -> Tensor:
            self._need_example(site, value)
            for entry in changing:
                value = self._changed(entry, value) if acting else self._looked_at(entry, value)
            for entry in seeing:
                self._noted(entry, acting, value, value)
            return value

        return visit

    def _need_example(self, site: Site, value: Tensor) -> None:
        """Raise for a pass of other examples, in which positions would mean others."""
        rows = value.shape[axes_of(site.name)[0]]
        if not off_the_prompt(site.name) and (len(value) != 1 or rows < self._prompt):
            raise InputError(
                f"positions of an intervention are those of its example, whose prompt has {self._prompt}; a pass of "
                f"{len(value)} × {rows} is of others: run these under interventions of their own"
            )

    def _changed(self, entry: _Entry, value: Tensor) -> Tensor:
        found = entry.act.change(value)
        entry.fired += 1
        if found.shape == value.shape:
            entry.changed += int((found != value).sum())
        if entry.act.seen == entry.act.site:
            self._noted(entry, True, value, found)
        return found

    def _looked_at(self, entry: _Entry, value: Tensor) -> Tensor:
        if entry.act.seen == entry.act.site:
            self._noted(entry, False, value, value)
        return value

    def _noted(self, entry: _Entry, acting: bool, before: Tensor, after: Tensor) -> None:
        """The first pass is noted: that of the answer itself."""
        if acting and not entry.achieved:
            entry.achieved = entry.act.measure(before, after)
        elif not acting and not entry.untouched:
            entry.untouched = entry.act.measure(before, after)


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def ledger_of(vlm: HookedVLM, x: Inputs, interventions: Intervention) -> Ledger:
    """The changes of interventions, prepared.

    Raises:
        InputError: nothing is changed.
    """
    entries = [_Entry(one, act) for one in each_of(interventions) for act in one.acts(vlm, x)]
    if not entries:
        raise InputError("no intervention is given, so that nothing would change")
    return Ledger(entries, x.answer_start)


@explained
@contextlib.contextmanager
def intervening(vlm: HookedVLM, x: Inputs, interventions: Intervention) -> Iterator[Ledger]:
    """Within the `with` the model runs under interventions: `vlm.generate(x)`, `li.contrast(vlm, x)`, whatever runs.

    Args:
        vlm: the model.
        x: the example whose positions are meant.
        interventions: one, or several, `one + other`.

    Yields:
        A `Ledger`, whose `certificates` say what was done so far.

    Raises:
        InputError: a pass of other examples; on leaving without another error, an intervention that ran and changed
            nothing, or did not achieve what it was to.
    """
    ledger = ledger_of(vlm, x, interventions)
    with vlm.visiting(ledger.visits(acting=True)):
        yield ledger
    ledger.need_done()
