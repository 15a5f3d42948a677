"""Interventions on states: what stands at a site is removed, exchanged, held as it was, or pushed along a direction."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.given import need_seed
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.interventions.intervention import Act, Intervention, Measured, Reads
from lvlm_interp.interventions.places import (
    Heads,
    Layers,
    Places,
    chosen_sites,
    first_of,
    headed,
    layer_of,
    layers_of,
    placed,
)
from lvlm_interp.interventions.sources import Source, examples_of, values_at
from lvlm_interp.model.choice import axes_of, has_heads, off_the_prompt
from lvlm_interp.model.sites import Site
from lvlm_interp.model.vlm import HookedVLM

HEADS = "blocks.*.attn.hook_z"
STREAM = "blocks.*.hook_resid_post"
DISTANCE, COSINE, NORM = "distance to what replaces it", "cosine with the direction", "length of the push"
WHOLE = 16  # rows that noise is drawn for at once
Made = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class _OfStates(Intervention):
    """States at a site, or at several.

    Attributes:
        site: a name or glob, or several.
        positions: which; None means all.
        layers: in which blocks.
        heads: which heads, at sites that have some.
        neurons: which numbers along the last axis.
    """

    site: str | Sequence[str] = HEADS
    positions: Places | None = None
    layers: Layers = None
    heads: Heads = None
    neurons: int | Iterable[int] | None = None

    def sites(self, vlm: HookedVLM) -> list[Site]:
        """Where.

        Raises:
            SiteError: there is nothing, or what is chosen among is not there.
        """
        found = chosen_sites(vlm, self.site, layers_of(self.heads, self.layers))
        for site in found:
            if self.heads is not None and not has_heads(site.name):
                raise SiteError(f"{site.name!r} has no heads, so heads= cannot choose among them")
            if self.positions is not None and off_the_prompt(site.name):
                raise SiteError(f"{site.name!r} has positions of its own, so positions= cannot choose among them")
        return found

    def first(self, x: Inputs, name: str) -> int:
        """The first position that is changed or looked at."""
        return 0 if off_the_prompt(name) else first_of(x, self.positions)

    def where(self, x: Inputs, name: str, value: Tensor) -> Bool[Tensor, "*shape"]:
        """Which numbers of a site's value, on axes that broadcast over it."""
        rows, heads = axes_of(name)
        found = _along(value, rows, placed(x, self.positions, value.shape[rows]) if not off_the_prompt(name) else None)
        if self.heads is not None:
            found = found & _along(value, heads, headed(self.heads, layer_of(name), value.shape[heads]))
        if self.neurons is not None:
            found = found & _along(value, -1, _numbers(self.neurons, value.shape[-1], name))
        return found


def _along(value: Tensor, axis: int, chosen: Bool[Tensor, " one"] | None) -> Bool[Tensor, "*shape"]:
    """A choice along one axis, where others broadcast."""
    if chosen is None:
        return torch.ones((1,) * value.ndim, dtype=torch.bool, device=value.device)
    shape = [1] * value.ndim
    shape[axis] = len(chosen)
    return chosen.reshape(shape).to(value.device)


def _numbers(asked: int | Iterable[int], count: int, name: str) -> Bool[Tensor, " one"]:
    found = torch.zeros(count, dtype=torch.bool)
    for one in [asked] if isinstance(asked, int) else asked:
        if not 0 <= one < count:
            raise SiteError(f"there is no neuron {one} at {name!r}, which has {count}, counted from 0")
        found[one] = True
    return found


@dataclass(frozen=True, eq=False, repr=False)
class _Replacing(_OfStates):
    """States whose place others take.

    Attributes:
        directions: only the part of a state that lies in their span is replaced, `[direction, width]` or one.
    """

    directions: Float[Tensor, "*direction width"] | None = None

    @abc.abstractmethod
    def replacements(self, vlm: HookedVLM, x: Inputs, sites: Sequence[Site]) -> Mapping[str, Made]:
        """By site, what takes the place of its value, of the value's shape or one that broadcasts over it."""

    def acts(self, vlm: HookedVLM, x: Inputs) -> Sequence[Act]:
        sites = self.sites(vlm)
        made = self.replacements(vlm, x, sites)
        return [self._act(x, site, made[site.name]) for site in sites]

    def _act(self, x: Inputs, site: Site, made: Made) -> Act:
        wanted = functools.partial(self._wanted, x, site.name, made)

        def measure(before: Tensor, after: Tensor) -> Measured:
            return {DISTANCE: float((wanted(before) - after).abs().max())}

        return Act(site, wanted, site, measure, _exactly, isinstance(self, Freeze), self.first(x, site.name))

    def _wanted(self, x: Inputs, name: str, made: Made, value: Tensor) -> Tensor:
        new = made(value).to(value).expand_as(value)
        if self.directions is not None:
            new = value + _projected(new - value, self.directions, name)
        return torch.where(self.where(x, name, value), new, value)


def _exactly(found: Measured) -> bool:
    return found.get(DISTANCE) == 0


def _projected(value: Tensor, directions: Tensor, name: str) -> Tensor:
    """The part of states that lies in the span of directions.

    Raises:
        InputError: directions of another width, or that are no basis.
    """
    rows = torch.atleast_2d(directions).to(value.device, torch.float64)
    if rows.shape[-1] != value.shape[-1]:
        raise InputError(f"directions are {rows.shape[-1]} wide, and {name!r} is {value.shape[-1]} wide")
    basis, sizes = torch.linalg.qr(rows.T)
    if not bool(sizes.diagonal().abs().min() > 1e-9 * rows.norm(dim=-1).max()):
        raise InputError("directions are zero, or follow from each other: give such as span a space")
    return ((value.double() @ basis) @ basis.T).to(value.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class Ablate(_Replacing):
    """Heads, neurons, directions or whole states are removed.

    `Ablate(heads=[(12, 3), (14, 5)])` removes two heads; what they wrote is gone.

    Attributes:
        by: what takes their place: nothing (`"zero"`); the mean over their positions (`"mean"`), of this run, or of
            `source`; what stands there in `source` (`"resample"`); or normal noise as wide as they are (`"noise"`).
        source: another example, or several for a mean; a capture that was kept.
        seed: of the noise.
    """

    by: Literal["zero", "mean", "resample", "noise"] = "zero"
    source: Source | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        need_seed(self.seed)
        if self.by == "resample" and self.source is None:
            raise InputError("by='resample' takes what stands in another example: give source=")
        if self.by in ("zero", "noise") and self.source is not None:
            raise InputError(f"by={self.by!r} takes nothing from another example: leave source= out")

    def replacements(self, vlm: HookedVLM, x: Inputs, sites: Sequence[Site]) -> Mapping[str, Made]:
        if self.by == "zero":
            return dict.fromkeys((site.name for site in sites), torch.zeros_like)
        if self.by == "noise":
            return {site.name: functools.partial(self._noise, x, site.name) for site in sites}
        if self.source is None:
            return {site.name: functools.partial(self._mean, x, site.name) for site in sites}
        mean = self.by == "mean"
        return values_at(vlm, x, self.source, [site.name for site in sites], self.positions, self.positions, mean)

    def first(self, x: Inputs, name: str) -> int:
        return 0 if self.by == "noise" else super().first(x, name)  # noise is as wide as all positions are

    def reads(self, vlm: HookedVLM, x: Inputs) -> Reads:
        return examples_of(self.source, [site.name for site in self.sites(vlm)])

    def _mean(self, x: Inputs, name: str, value: Tensor) -> Tensor:
        rows = axes_of(name)[0]
        chosen = torch.ones(value.shape[rows], dtype=torch.bool)
        if not off_the_prompt(name):
            chosen = placed(x, self.positions, value.shape[rows])
        return value.index_select(rows, chosen.nonzero()[:, 0].to(value.device)).mean(rows, keepdim=True)

    def _noise(self, x: Inputs, name: str, value: Tensor) -> Tensor:
        """Drawn alike each time that it is asked for, however many positions follow; as wide as the prompt's are."""
        seed = (self.seed << 16) + (layer_of(name) or 0)
        by_row = value.movedim(axes_of(name)[0], 0)
        shape = (-(-len(by_row) // WHOLE) * WHOLE, *by_row.shape[1:])  # torch draws the last few of a tensor otherwise
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**63))[: len(by_row)].to(value)
        of_prompt = by_row if off_the_prompt(name) else by_row[: x.answer_start]
        made = of_prompt.mean(0) + of_prompt.std(0) * drawn
        return made.movedim(0, axes_of(name)[0])


@dataclass(frozen=True, eq=False, repr=False)
class Patch(_Replacing):
    """States are exchanged for those of another run (Zhang & Nanda 2023).

    `Patch("blocks.8.hook_resid_post", "image", source=purple)` puts in the purple banana's picture, as that layer
    holds it.

    Attributes:
        source: an example, a capture that was kept, or None for this example itself.
        source_site: the one site to take from, where it is another one; back-patching takes from a later layer
            (Biran et al. 2024).
        source_positions: where they stand there, as many as here; by default the same places.
    """

    site: str | Sequence[str] = STREAM
    source: Source | None = None
    source_site: str | None = None
    source_positions: Places | None = None

    def replacements(self, vlm: HookedVLM, x: Inputs, sites: Sequence[Site]) -> Mapping[str, Made]:
        own = [site.name for site in sites]
        taken = own if self.source_site is None else [self.source_site]
        there = self.positions if self.source_positions is None else self.source_positions
        source = x if self.source is None else self.source
        found = values_at(vlm, x, source, taken, self.positions, there)
        return found if self.source_site is None else dict.fromkeys(own, found[self.source_site])

    def reads(self, vlm: HookedVLM, x: Inputs) -> Reads:
        own = [site.name for site in self.sites(vlm)]
        return examples_of(self.source or x, own if self.source_site is None else [self.source_site])


@dataclass(frozen=True, eq=False, repr=False)
class Freeze(_Replacing):
    """States are held as they are without interventions: what others change does not pass through them."""

    def replacements(self, vlm: HookedVLM, x: Inputs, sites: Sequence[Site]) -> Mapping[str, Made]:
        return values_at(vlm, x, x, [site.name for site in sites], self.positions, self.positions)

    def reads(self, vlm: HookedVLM, x: Inputs) -> Reads:
        return examples_of(x, [site.name for site in self.sites(vlm)])


@dataclass(frozen=True, eq=False, repr=False)
class Steer(_OfStates):
    """States are pushed along a direction.

    Attributes:
        direction: `[width]`, or one for each layer by its number.
        alpha: how far: of `"add"`, in lengths of the direction; of `"keep"`, x becomes |x| times the unit of
            x / |x| + α · d / |d| (VTI: Liu et al. 2024).
        norm: whether the length of a state may change.
    """

    site: str | Sequence[str] = STREAM
    direction: Float[Tensor, " width"] | Mapping[int, Float[Tensor, " width"]] | None = None
    alpha: float = 1.0
    norm: Literal["add", "keep"] = "add"

    def __post_init__(self) -> None:
        super().__post_init__()
        for one in self.direction.values() if isinstance(self.direction, Mapping) else [self.direction]:
            if one is None or one.ndim != 1 or not bool(one.isfinite().all()) or not bool(one.any()):
                raise InputError("a direction is a tensor [width] of finite numbers that are not all 0")
        if not math.isfinite(self.alpha):
            raise InputError(f"alpha is a finite number; got {self.alpha}")

    def acts(self, vlm: HookedVLM, x: Inputs) -> Sequence[Act]:
        sites = self.sites(vlm)
        if isinstance(self.direction, Mapping):
            known = {layer_of(site.name) for site in sites}
            if left := sorted(layer for layer in self.direction if layer not in known):
                raise SiteError(f"there is a direction for layer {left[0]}, and no site of it is meant")
            sites = [site for site in sites if layer_of(site.name) in self.direction]
        return [self._act(x, site) for site in sites]

    def _act(self, x: Inputs, site: Site) -> Act:
        way: Any = self.direction[layer_of(site.name)] if isinstance(self.direction, Mapping) else self.direction  # type: ignore[index]

        def measure(before: Tensor, after: Tensor) -> Measured:
            return _push(self.where(x, site.name, before), before, after, _as_wide(way, before, site.name))

        change = functools.partial(self._pushed, x, site.name, way)
        return Act(site, change, site, measure, self._holds, first=self.first(x, site.name))

    def _pushed(self, x: Inputs, name: str, way: Tensor, value: Tensor) -> Tensor:
        way = _as_wide(way, value, name).to(value.device, torch.float32)
        states = value.float()
        if self.norm == "add":
            new = states + self.alpha * way
        else:
            length = states.norm(dim=-1, keepdim=True)
            turned = states / length.clamp(min=1e-9) + self.alpha * way / way.norm()
            new = length * turned / turned.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        return torch.where(self.where(x, name, value), new.to(value.dtype), value)

    def _holds(self, found: Measured) -> bool:
        return bool(found) and (self.alpha == 0 or found[COSINE] * self.alpha > 0)


def _as_wide(way: Float[Tensor, " width"], value: Tensor, name: str) -> Float[Tensor, " width"]:
    """A direction, if it is as wide as the states."""
    if len(way) != value.shape[-1]:
        raise InputError(f"the direction is {len(way)} wide, and {name!r} is {value.shape[-1]} wide")
    return way


def _push(where: Tensor, before: Tensor, after: Tensor, way: Tensor) -> Measured:
    """How far states went, and how far along the direction; means over those that were pushed."""
    moved = (after - before).double()[where.expand(before.shape)[..., 0]]
    way = way.to(moved)
    cosine = (moved @ way) / (moved.norm(dim=-1) * way.norm()).clamp(min=1e-12)
    return {COSINE: float(cosine.mean()), NORM: float(moved.norm(dim=-1).mean())}
