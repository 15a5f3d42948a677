"""Regions one by one, each time the one that tells the most where few are seen, and is missed the most where few go."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import InputError
from lvlm_interp.heatmaps.game import OverSets
from lvlm_interp.heatmaps.regions import Regions

MANY = 256  # regions, of which all are tried at each step: some 65,000 sets for each part

Worth = Callable[[Bool[Tensor, "set player"]], Float[Tensor, "part set"]]


@dataclass(frozen=True)
class Greedy(OverSets):
    """What a region adds to both ends of the value when it is chosen; at each step, the one that adds the most.

    With S the regions that were chosen before, V all of them, and v the value that is asked for, a region a adds

        insight · (v(S + a) − v(S)) + necessity · (v(V − S) − v(V − S − a))

    divided by insight + necessity: what is gained where only the chosen ones are seen, and what is lost where only they
    are gone. That is its number when it is chosen; of the largest ones, the region with the lowest number is. Each of
    the two differences adds up to v(V) − v(nothing) over all regions, and so do the numbers, in the unit of the value.
    They need not fall from step to step, and depend on what came before: `order`, among the provenance's parameters,
    has the regions of each part as they were chosen. Two that tell the same share what `occlusion` gives to neither.

    The paper's v is a probability, the mean over the part's tokens; near 1 and near 0 regions hardly change it, and
    noise decides. So v is what `attribute(value=)` says here, as with all methods over sets. For the paper's own, hand
    it a value: `Value("probability", "nats", lambda found: found.logprob.exp().mean(1))`, which is no nats then. What
    is best for v(S) and v(V − S) is what insertion and deletion are scored by: hold such maps to another substrate.

    Attributes:
        regions: as of all methods over sets; 8 × 8 blocks by default, some 4,000 sets for each part.
        insight: the weight of what the chosen ones tell alone.
        necessity: the weight of what is lost without them.
        scope: try only this many regions at a step, the paper's faster variant (its code has 10): those that led
            farthest when all were tried. None tries all, at every step.
        update: with a scope, every so many steps all are tried, and put in order anew.
        pending: with a scope, after each step the other end is chosen too, from this many regions at the end of the
            order: the one without which most is left comes last. 0 leaves that end alone.

    Raises:
        InputError: weights below 0, or none above; a scope or update below 1, or pending below 0; more than 256 regions
            without a scope.
    """

    name: ClassVar[str] = "greedy"
    cost: ClassVar[str] = "N² for each part, half of it if one weight is 0; N regions; with a scope about a quarter"
    sums: ClassVar[str] = "everything seen, less no patch"
    source: ClassVar[str] = "Chen et al. 2025 (EAGLE)"
    regions: Regions = 8
    insight: float = 1.0
    necessity: float = 1.0
    scope: int | None = None
    update: int = 5
    pending: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = self.insight, self.necessity
        if not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
            raise InputError(f"insight and necessity are weights, 0 or more, and one of them above; got {weights}")
        if self.scope is not None and self.scope < 1:
            raise InputError(f"scope= is how many regions are tried at each step, 1 or more; got {self.scope}")
        if self.update < 1 or self.pending < 0:
            raise InputError(
                f"update= is 1 step or more, and pending= 0 regions or more; got {self.update} and {self.pending}"
            )

    def map(self, asked: Asked) -> PatchMap:
        game = self.game(asked)
        self._need_few(game.players)
        with game.bar(game.players) as bar:
            search = Search(game, game.nothing, game.whole, game.players, self)
            gains, order = search.run(bar.update)
        names = ("insight", "necessity", *(("scope", "update", "pending") if self.scope else ()))
        told = {"scope": None, **{name: getattr(self, name) for name in names}, "order": order.tolist()}
        residual = (game.whole - game.nothing - gains.sum(1)).float()
        return game.mapped(self.name, gains, told, says="added when chosen", residual=residual)

    def _need_few(self, players: int) -> None:
        if self.scope is None and players > MANY:
            raise InputError(
                f"greedy over {players} regions, all tried at each step, would score {players * players:,} sets for "
                "each part: take blocks, regions=8, or try fewer at a step, scope=10"
            )


class Search:
    """One greedy search for each part, step by step side by side, so that sets that several ask for are scored once.

    Args:
        worth: v of several sets, `[part, set]`.
        nothing, whole: v of no region and of all, `[part]`.
        players: how many regions there are.
        how: the weights, and how many are tried.
    """

    def __init__(
        self, worth: Worth, nothing: Float[Tensor, " part"], whole: Float[Tensor, " part"], players: int, how: Greedy
    ) -> None:
        self._worth, self._nothing, self._whole = worth, nothing.double(), whole.double()
        self._insight, self._how = how.insight / (how.insight + how.necessity), how
        self._left = torch.arange(players).repeat(len(nothing), 1)  # in order; without a scope, of their numbers
        self._first = torch.zeros(len(nothing), players, dtype=torch.bool)
        self._last = torch.zeros_like(self._first)

    def run(self, after: Callable[[], object]) -> tuple[Float[Tensor, "part player"], Int[Tensor, "part step"]]:
        """What each region added, and the regions in order; `after` is called for each region."""
        gains = torch.zeros(self._first.shape, dtype=torch.float64)
        ahead, behind = torch.zeros(len(gains), 1, dtype=torch.float64), (self._whole - self._nothing)[:, None]
        first: list[Tensor] = []
        last: list[Tensor] = []
        while self._left.shape[1]:
            best, reached = self._ahead(len(first))
            first.append(self._take(best, self._first, gains, reached - ahead))
            ahead = reached
            after()
            if count := self._pending(len(first)):
                least, reached = self._behind(count)
                last.insert(0, self._take(least, self._last, gains, behind - reached))
                behind = reached
                after()
        return gains, torch.cat([*first, *last], 1)

    def _ahead(self, step: int) -> tuple[Int[Tensor, "part 1"], Float[Tensor, "part 1"]]:
        """The region that comes next, and what is reached with it."""
        scope = self._how.scope
        fresh = scope is None or step % self._how.update == 0
        tried = self._left if fresh else self._left[:, :scope]
        reached = self._reached(self._first, tried)
        if fresh and scope is not None:
            order = reached.argsort(dim=1, descending=True, stable=True)
            tried, reached = tried.gather(1, order), reached.gather(1, order)
            self._left = tried
        best = reached.argmax(1, keepdim=True)  # the first of those that are alike
        return tried.gather(1, best), reached.gather(1, best)

    def _pending(self, steps: int) -> int:
        """How many regions are tried at the other end: after the first step the one that came last in order."""
        pending, left = self._how.pending, self._left.shape[1]
        if self._how.scope is None or not pending or not left:
            return 0
        return 1 if steps == 1 else pending if left > pending else 0

    def _behind(self, count: int) -> tuple[Int[Tensor, "part 1"], Float[Tensor, "part 1"]]:
        """The region that comes last of those that are left, and what is reached without it and those behind."""
        tried = self._left[:, -count:]
        reached = self._reached(self._last, tried, without=True)
        least = reached.argmax(1, keepdim=True)
        return tried.gather(1, least), reached.gather(1, least)

    def _take(
        self, one: Int[Tensor, "part 1"], end: Bool[Tensor, "part player"], gains: Tensor, gain: Float[Tensor, "part 1"]
    ) -> Int[Tensor, "part 1"]:
        end.scatter_(1, one, True)
        gains.scatter_(1, one, gain)
        self._left = self._left[self._left != one].view(len(one), -1)
        return one

    def _reached(
        self, end: Bool[Tensor, "part player"], tried: Int[Tensor, "part some"], without: bool = False
    ) -> Float[Tensor, "part some"]:
        """What an end is worth together with each that is tried, or all but these, both ways weighted: 0 of none."""
        sets = end[:, None].expand(-1, tried.shape[1], -1).scatter(2, tried[..., None], True) ^ without
        found = torch.zeros(tried.shape, dtype=torch.float64)
        if self._insight > 0:  # what has no weight need not be scored
            found += self._insight * (self._valued(sets) - self._nothing[:, None])
        if self._insight < 1:
            found += (1 - self._insight) * (self._whole[:, None] - self._valued(~sets))
        return found

    def _valued(self, sets: Bool[Tensor, "part some player"]) -> Float[Tensor, "part some"]:
        """v of each part of its own sets; of none and of all it is known."""
        distinct, place = sets.flatten(0, 1).unique(dim=0, return_inverse=True)
        between = distinct.any(1) & ~distinct.all(1)
        values = torch.where(distinct.all(1), self._whole[:, None], self._nothing[:, None])
        if between.any():
            values[:, between] = self._worth(distinct[between]).double()
        return values.gather(1, place.view(sets.shape[:2]))
