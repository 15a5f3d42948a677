"""Where the difference between two runs is carried: states of one are put into the other (causal tracing).

Into the corrupt run those of the clean one (denoising): what brings the answer back suffices for it. Into the clean run
those of the corrupt one (noising): what loses it is needed. Where two parts do the same, or one takes two, they differ
(Heimersheim & Nanda 2024, arXiv 2404.15255). Pairs that differ in one thing, such as two pictures with one object
recoloured, leave the model where it was trained; noise does not (Zhang & Nanda 2023, arXiv 2309.16042).

A share is of the whole difference between the runs, means over pairs divided by each other: a mean of quotients would
hang on the pairs that differ least.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.attribution.against import Against
from lvlm_interp.attribution.value import Target, Value, target_of
from lvlm_interp.bootstrap import bootstrap_weights, interval
from lvlm_interp.columns import Column, numbered
from lvlm_interp.errors import InputError
from lvlm_interp.fields import POSITIVE, Range
from lvlm_interp.given import explained, need_seed
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Unit, parts_of, unit_name
from lvlm_interp.interventions.axes import Cell, Label, Over, cells_of
from lvlm_interp.interventions.readings import Readings
from lvlm_interp.interventions.sources import remembering
from lvlm_interp.interventions.states import Patch
from lvlm_interp.interventions.sweep import under
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result

DIRECTIONS = ("denoising", "noising")
LEAST = 0.1  # of a value's unit, by which clean and corrupt runs must differ for a share to mean anything
Pair = tuple[Inputs, Inputs]
"""A clean example and a corrupt one."""


@dataclass(frozen=True)
class Tracing(Result):
    """The share of the difference between clean and corrupt runs that states at each place carry.

    Attributes:
        values: which values were looked at.
        directions: `denoising`, the share that clean states bring back into the corrupt run; `noising`, the share that
            corrupt states take from the clean run.
        axes: over what it goes: the names of the columns that tell one place from another.
        labels: what stands there, for each place.
        share: `[value, direction, cell]`, of the difference between the means of the runs.
        low, high: its interval; NaN of one pair.
        clean, corrupt: the mean of each value in the two runs.
        pairs: how many there are.
        units: of the values.
        confidence: of the intervals.
    """

    along: ClassVar[Mapping[str, str]] = {
        "values": "value",
        "units": "value",
        "directions": "direction",
        "labels": "cell",
    }
    blank: ClassVar[frozenset[str]] = frozenset({"low", "high"})
    ranges: ClassVar[Mapping[str, Range]] = {"pairs": POSITIVE, "confidence": (0, 1)}
    values: tuple[str, ...]
    directions: tuple[str, ...]
    axes: tuple[str, ...]
    labels: tuple[tuple[str | int, ...], ...]
    share: Float[Tensor, "value direction cell"]
    low: Float[Tensor, "value direction cell"]
    high: Float[Tensor, "value direction cell"]
    clean: Float[Tensor, " value"]
    corrupt: Float[Tensor, " value"]
    pairs: int
    units: tuple[str, ...]
    confidence: float

    @property
    def note(self) -> str:
        told = [
            f"{name} {float(self.clean[n]):.2f} clean, {float(self.corrupt[n]):.2f} corrupt ({self.units[n]})"
            for n, name in enumerate(self.values)
        ]
        return f"shares of the difference, pairs: {self.pairs}; {'; '.join(told)}"

    def to_frame(self) -> pd.DataFrame:
        """One row for each value, direction and place."""
        rows: list[dict[str, Label | float]] = []
        for v, value in enumerate(self.values):
            for d, direction in enumerate(self.directions):
                for c, label in enumerate(self.labels):
                    named = {"value": value, "direction": direction, **dict(zip(self.axes, label, strict=True))}
                    numbers = {name: float(getattr(self, name)[v, d, c]) for name in ("share", "low", "high")}
                    rows.append({**named, **numbers})
        return self.identified(pd.DataFrame(rows))


@explained
@in_one_go
@torch.no_grad()
def causal_trace(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    patch: Patch | None = None,
    over: Over | Callable[[Inputs], Over] = "layers",
    *,
    values: Sequence[str | Value] = ("difference", "logprob"),
    unit: Unit = "word",
    against: Against | None = None,
    groups: Column | None = None,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Tracing:
    """Put states of one run into another, place after place, both ways.

    `causal_trace(vlm, [(purple, yellow)], Patch("blocks.*.hook_resid_post"), {"layers": "each", "positions": ["image",
    "question", "last"]})` tells at which layer and where the banana's colour is.

    Args:
        vlm: the model.
        pairs: clean and corrupt examples, as long as each other. What is looked at is the clean one's answer, in both
            runs; its foil is the corrupt one's, if that has one. `counterfactuals` make corrupt pictures (noise, blur).
        patch: which states are exchanged; `source` is set here. The residual stream behind each block by default.
        over: places, as in `sweep`; or what makes them of a clean example, where each has others of the same names.
        values: what is told, several side by side.
        unit: of the first part of the answer, which is looked at.
        against: another foil.
        groups: which pairs are not independent; by default each is alone.
        confidence: of the intervals.
        samples: of the bootstrap.
        seed: of what it draws.
        progress: show a progress bar.

    Raises:
        InputError: no pairs; examples of other lengths (named by the first position that differs), without an answer or
            a foil, or whose runs do not differ enough for a share to mean anything.
        SiteError: a site, layer or head that is not there.
    """
    need_seed(seed)
    numbers = torch.arange(len(pairs)) if groups is None else numbered(groups)
    if not pairs or len(numbers) != len(pairs) or not 0 < confidence < 1 or samples < 2:
        raise InputError(
            f"{len(pairs)} pairs, {len(numbers)} groups, a confidence of {confidence}, {samples} samples: give a pair "
            "or more, a group for each or none, a confidence between 0 and 1, 2 samples or more"
        )
    asked = [(pair, target_of_pair(vlm, pair, values, unit, against)) for pair in pairs]
    target = asked[0][1]
    wholes = torch.stack([Runs(vlm, *one).whole for one in asked])
    _need_difference(target, wholes)
    axes: tuple[str, ...] = ()
    found, labels = list[Tensor](), list[tuple[tuple[Label, ...], ...]]()
    for one in tqdm(asked, desc="pairs", disable=not progress, leave=False):
        run = Runs(vlm, *one)  # made anew: states of all pairs together take much memory
        axes, cells = cells_of(vlm, run.clean.x, patch or Patch(), over(run.clean.x) if callable(over) else over)
        labels.append(tuple(cell.label for cell in cells))
        _need_the_same(labels)
        found.append(run.exchanged(cells))
    told = {"patch": (patch or Patch()).described, "over": axes, "unit": unit_name(unit), "samples": samples}
    both = [x for pair in pairs for x in pair]
    return Tracing(
        values=tuple(value.name for value in target.values),
        directions=DIRECTIONS,
        axes=axes,
        labels=labels[0],
        **_shares(torch.stack(found), wholes, numbers, confidence, samples, seed),
        clean=wholes.mean(0)[0].float(),
        corrupt=wholes.mean(0)[1].float(),
        pairs=len(pairs),
        units=tuple(value.unit for value in target.values),
        confidence=confidence,
        provenance=vlm.provenance("causal_trace", *both, seed=seed, **told),
    )


class Runs:
    """The clean and the corrupt run of a pair, both read at the clean one's answer."""

    def __init__(self, vlm: HookedVLM, pair: Pair, target: Target) -> None:
        clean, corrupt = pair
        answered = corrupt.with_answer(clean.answer_ids.tolist(), clean.answer_tokens, clean.answer)
        self.clean, self.corrupt = Readings(vlm, clean, target), Readings(vlm, answered, target)
        self.whole = torch.stack([run.untouched.values[:, 0] for run in (self.clean, self.corrupt)])

    def exchanged(self, cells: Sequence[Cell]) -> Float[Tensor, "value direction cell"]:
        """What clean states bring back into the corrupt run, and corrupt ones take from the clean run."""
        ways = ((self.corrupt, self.clean, 1.0), (self.clean, self.corrupt, -1.0))
        found = []
        for into, source, sign in ways:
            patches: list[Any] = [dataclasses.replace(cast(Patch, c.intervention), source=source.x) for c in cells]
            found.append(sign * (_read(into, patches) - into.untouched.values[:, :1]))
        return torch.stack(found, 1)


def _read(into: Readings, patches: Sequence[Patch]) -> Float[Tensor, "value cell"]:
    reads = [read for patch in patches for read in patch.reads(into.vlm, into.x)]
    with remembering(into.vlm, reads):
        return torch.stack([under(into, patch)[0].values[:, 0] for patch in patches], 1)


def target_of_pair(
    vlm: HookedVLM, pair: Pair, values: Sequence[str | Value], unit: Unit, against: Against | None
) -> Target:
    """The first part of the clean answer, beside what was asked for, or what the corrupt example is answered with.

    Raises:
        InputError: examples of other lengths, no answer, or none to compare with.
    """
    clean, corrupt = pair
    clean.need_answer()
    need_alike(pair)
    target = target_of(vlm, clean, values, unit, against).only(0)
    if against is not None or not target.compares:
        return target
    if corrupt.answer_start == corrupt.length:
        raise InputError("the corrupt example has no answer to compare with: give it one, or against=")
    own, other = (parts_of(x, unit, vlm.decode)[0] for x in pair)
    ids = tuple(corrupt.answer_ids[other.start : other.stop].tolist())
    if ids == tuple(clean.answer_ids[own.start : own.stop].tolist()):
        raise InputError(f"both examples of a pair are answered {own.text.strip()!r}: there is no difference to trace")
    search = dataclasses.replace(target.search, given={0: (vlm.text_of(ids),)}, ids={0: (ids,)}, written=True)
    return dataclasses.replace(target, search=search)


def need_alike(pair: Pair) -> None:
    """Raise for prompts whose positions are not each other's.

    Raises:
        InputError: names the first that differs.
    """
    prompts = [x.roles[: x.answer_start] for x in pair]
    if prompts[0] != prompts[1]:
        both = zip(*prompts, strict=False)
        first = next((n for n, (a, b) in enumerate(both) if a != b), min(map(len, prompts)))
        raise InputError(
            f"states are exchanged position by position; these prompts have {len(prompts[0])} and {len(prompts[1])}, "
            f"and position {first} is the first that differs in its role"
        )


def _need_difference(target: Target, wholes: Float[Tensor, "pair run value"]) -> None:
    """Raise where a share would be of next to nothing.

    Raises:
        InputError: names the value.
    """
    clean, corrupt = wholes.mean(0)
    for n, value in enumerate(target.values):
        if abs(float(clean[n] - corrupt[n])) < LEAST:
            raise InputError(
                f"{value.name} is {float(clean[n]):.3f} in clean runs and {float(corrupt[n]):.3f} in corrupt ones, in "
                f"{value.unit}: less than {LEAST} apart, of which no share can be told"
            )


def _need_the_same(labels: Sequence[object]) -> None:
    if labels[-1] != labels[0]:
        raise InputError("the places of all pairs must have the same names: give over= labels, {'positions': {…}}")


def _shares(
    gained: Float[Tensor, "pair value direction cell"],
    wholes: Float[Tensor, "pair run value"],
    groups: Tensor,
    confidence: float,
    samples: int,
    seed: int,
) -> dict[str, Tensor]:
    """Means divided by means, over pairs as they are drawn."""
    whole = wholes[:, 0] - wholes[:, 1]
    drawn = bootstrap_weights(groups, samples, torch.Generator().manual_seed(int(seed))).double()
    over, under_ = torch.einsum("sp,pvdc->svdc", drawn, gained), (drawn @ whole)[:, :, None, None]
    shares = (over / under_).flatten(1).T
    low, high = interval(shares, confidence, int(groups.max()) + 1)
    shape = gained.shape[1:]
    return {name: one.view(shape).float() for name, one in (("share", shares[:, 0]), ("low", low), ("high", high))}
