"""What sparse coders of others find in a model's states; and their features, taken out.

A coder tells nothing of a model on whose states it was not trained: what it leaves unexplained stands on the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.fields import POSITIVE, Range
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.interventions.coders import SparseCoder
from lvlm_interp.interventions.intervention import Act, Intervention, Measured
from lvlm_interp.interventions.places import Places, first_of, placed
from lvlm_interp.interventions.states import DISTANCE
from lvlm_interp.model.finite import need_finite
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.sites import Site
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result


@dataclass(frozen=True)
class SparseFeatures(Result):
    """Which features are active at positions, strongest first, and how well they stand for the states.

    Attributes:
        positions: numbers of the positions, with their `tokens`.
        ids, strength: the strongest features, `[position, feature]`; 0 where fewer are active.
        active: how many are.
        unexplained: the share of the state's length, squared, about the mean of these positions, that what is decoded
            misses. At 1 a coder says nothing; it may be more. NaN where one position, or equal ones, have no mean to
            be apart from.
        site: where states were read.
    """

    along: ClassVar[Mapping[str, str]] = {"tokens": "position"}
    ranges: ClassVar[Mapping[str, Range]] = dict.fromkeys(
        ("positions", "ids", "strength", "active", "unexplained"), POSITIVE
    )
    blank: ClassVar[frozenset[str]] = frozenset({"unexplained"})
    positions: Int[Tensor, " position"]
    tokens: tuple[str, ...]
    ids: Int[Tensor, "position feature"]
    strength: Float[Tensor, "position feature"]
    active: Int[Tensor, " position"]
    unexplained: Float[Tensor, " position"]
    site: str

    @property
    def note(self) -> str:
        return (
            f"at {self.site}: {self.active.double().mean():.1f} features active, "
            f"{100 * self.unexplained.double().mean():.0f}% of the states unexplained, means over positions"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each position and feature that is active there."""
        row, rank = (self.strength > 0).nonzero().unbind(1)
        columns = {
            "position": self.positions[row].tolist(),
            "token": [self.tokens[n] for n in row.tolist()],
            "feature": self.ids[row, rank].tolist(),
            "strength": self.strength[row, rank].tolist(),
            "unexplained": self.unexplained[row].tolist(),
        }
        return self.identified(pd.DataFrame(columns))


@explained
@in_one_go
@torch.no_grad()
def sparse_features(
    vlm: HookedVLM, x: Inputs, coder: SparseCoder, *, positions: Places | None = None, top: int = 8
) -> SparseFeatures:
    """Which features of a coder are active.

    Args:
        vlm: the model.
        x: an example.
        coder: from `load_sparse_coder`.
        positions: which; all by default.
        top: how many of the strongest are told.

    Raises:
        SiteError: the model lacks its site.
        InputError: states of another width, no position, or none of the strongest asked for.
        ModelError: the model gives NaN or infinity.
    """
    if not 0 < top <= coder.count:
        raise InputError(f"top is 1 to {coder.count} features; got {top}")
    chosen = placed(x, positions, x.length).nonzero()[:, 0]
    if not len(chosen):
        raise InputError(f"no position of the example is {positions!r}")
    sites = [coder.site] if coder.written == coder.site else [coder.site, coder.written]
    found = vlm.capture(x, sites, positions=chosen.tolist())
    need_finite(vlm, x, found["logits"])
    states, target = (found[name][0] for name in (coder.site, coder.written))
    active = coder.encode(states)
    missed = target.to(active) - coder.decode(active, states)
    spread = (target - target.mean(0)).to(active).square().sum(-1)
    strength, ids = active.topk(top, dim=-1)
    return SparseFeatures(
        positions=chosen,
        tokens=tuple(x.tokens[n] for n in chosen.tolist()),
        ids=ids.cpu(),
        strength=strength.float().cpu(),
        active=(active > 0).sum(-1).cpu(),
        unexplained=torch.where(spread.mean() > 0, missed.square().sum(-1) / spread.mean(), torch.nan).float().cpu(),
        site=coder.site,
        provenance=vlm.provenance("sparse_features", x, coder=repr(coder), positions=positions, top=top),
    )


@dataclass(frozen=True, eq=False, repr=False)
class AblateFeatures(Intervention):
    """Features are taken out of states: what they add is, and nothing else, so that what a coder misses stays.

    Attributes:
        coder: from `load_sparse_coder`. A transcoder's features are those of what it reads in the same pass, and what
            they add is taken out where it writes.
        features: which.
        positions: where; None means everywhere.
    """

    coder: SparseCoder
    features: int | Sequence[int]
    positions: Places | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.coder.need_features(self._features)

    @property
    def _features(self) -> list[int]:
        return [self.features] if isinstance(self.features, int) else [*self.features]

    def acts(self, vlm: HookedVLM, x: Inputs) -> Sequence[Act]:
        read, written = (_site(vlm, name) for name in (self.coder.site, self.coder.written))
        taking, first = _Taking(self.coder, self._features, x, self.positions), first_of(x, self.positions)
        taken = Act(written, taking.without, written, taking.distance, _exactly, first=first)
        if read == written:
            return [taken]
        return [Act(read, taking.noted, read, taking.seen, _always, first=first), taken]


def _site(vlm: HookedVLM, name: str) -> Site:
    """A site that a coder reads or writes.

    Raises:
        SiteError: the model lacks it.
    """
    if (site := vlm.sites.get(name)) is None:
        raise SiteError(f"{vlm.name!r} has no {name!r}, which this coder reads or writes")
    return site


@dataclass(eq=False)
class _Taking:
    """Features being taken out in a pass; what a transcoder reads is kept until it would write."""

    coder: SparseCoder
    features: Sequence[int]
    x: Inputs
    positions: Places | None
    read: Tensor | None = None

    def noted(self, value: Tensor) -> Tensor:
        self.read = value
        return value

    def seen(self, before: Tensor, after: Tensor) -> Measured:
        self.noted(after)
        return {}

    def without(self, value: Float[Tensor, "batch position width"]) -> Tensor:
        gone = self.coder.contributions(self._states(value), self.features)
        if gone.shape != value.shape:
            raise InputError(f"the coder writes {gone.shape[-1]} numbers, where the model has {value.shape[-1]}")
        where = placed(self.x, self.positions, value.shape[1]).to(value.device)[:, None]
        return torch.where(where, (value.to(gone) - gone).to(value.dtype), value)

    def distance(self, before: Tensor, after: Tensor) -> Measured:
        return {DISTANCE: float((self.without(before) - after).abs().max())}

    def _states(self, value: Tensor) -> Tensor:
        """What the coder reads.

        Raises:
            InputError: it writes where it has not read yet.
        """
        if self.coder.site == self.coder.written:
            return value
        if self.read is None:
            raise InputError(
                f"{self.coder!r} would write before it reads: the model comes to its place of reading later"
            )
        return self.read


def _always(found: Measured) -> bool:
    return True


def _exactly(found: Measured) -> bool:
    return found.get(DISTANCE) == 0
