"""Sharing a value out among players, exactly: Shapley values and Harsanyi dividends of v over all coalitions.

Coalition number S has bit i set where player i is in it. Shapley 1953; dividends after Harsanyi 1963; players that come
first after Frye, Rowat and Feige 2020.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.given import explained, explaining

MOST = 20  # players, of which a table of all coalitions is made


@explained
@functools.lru_cache(maxsize=16)
def shapley_weights(players: int) -> Float[Tensor, "player coalition"]:
    """The linear map from v `[2^k]` to Shapley values `[k]`, float64. It is kept: do not write to it.

    Raises:
        InputError: fewer than no players, or more than a table of all coalitions is made for.
    """
    if not 0 <= players <= MOST:
        raise InputError(f"weights are of 0 to {MOST} players, whose coalitions are all listed; got {players}")
    count = 1 << players
    weights = torch.zeros(players, count, dtype=torch.float64)
    for coalition in range(count):
        size = coalition.bit_count()
        for i in range(players):
            inside = coalition >> i & 1
            before = size - inside  # other players that are there already
            share = math.factorial(before) * math.factorial(players - before - 1) / math.factorial(players)
            weights[i, coalition] = share if inside else -share
    return weights


@explained
@functools.lru_cache(maxsize=16)
def ordered_weights(players: int, first: tuple[int, ...]) -> Float[Tensor, "player coalition"]:
    """The linear map to asymmetric Shapley values, float64: some players come first, the others when those are there.

    Frye, Rowat and Feige 2020, Asymmetric Shapley values. What the first add to nothing is theirs, and what the others
    add to that is the others'; all together it is v(all) − v(∅) again. It is kept: do not write to it.

    Raises:
        InputError: players that there are not; see `shapley_weights`.
    """
    if not set(first) <= set(range(players)):
        raise InputError(f"players that come first are of 0 to {players - 1}, got {list(first)}")
    weights = torch.zeros(players, 1 << players, dtype=torch.float64)
    last, before = [i for i in range(players) if i not in first], sum(1 << i for i in first)
    for tier, there in ((list(first), 0), (last, before)):
        joined = [there + sum(1 << i for n, i in enumerate(tier) if s >> n & 1) for s in range(1 << len(tier))]
        for row, i in zip(shapley_weights(len(tier)), tier, strict=True):
            weights[i, joined] = row
    return weights


@explained
def dividends(values: Float[Tensor, "*part coalition"]) -> Float[Tensor, "*part coalition"]:
    """Harsanyi dividends of v: d(S) = Σ_{T ⊆ S} (−1)^{|S|−|T|} v(T).

    The Möbius transform, one player after the other: k · 2^k subtractions instead of a matrix of 4^k numbers.

    Raises:
        InputError: the values are not those of all 2^k coalitions.
    """
    if (count := values.shape[-1]).bit_count() != 1:
        raise InputError(f"k players have 2^k coalitions, each with its value: 1, 2, 4, 8, …; got {count} values")
    found = values.clone()
    for player in range((values.shape[-1] - 1).bit_length()):
        pairs = found.view(*values.shape[:-1], -1, 2, 1 << player)  # without this player, with it
        pairs[..., 1, :] -= pairs[..., 0, :]
    return found


@explaining
@dataclass(frozen=True, eq=False)
class Interactions(Mapping[tuple[str, ...], Tensor]):
    """What players do together beyond what they do apart: names of two and more players → their Harsanyi dividend.

    In the order of their size, largest first, over all parts of the answer; `up_to` and `largest` leave most out.

    Attributes:
        players: all players, in order.
        found: dividends of all coalitions, `[part, 2^k]`.
        most: how many players stand together at most.
    """

    players: tuple[str, ...]
    found: Float[Tensor, "part coalition"] = field(repr=False)
    most: int | None = None

    @functools.cached_property
    def _numbers(self) -> dict[tuple[str, ...], int]:
        most = len(self.players) if self.most is None else self.most
        sizes = self.found.abs().amax(0)
        numbers = [s for s in range(self.found.shape[1]) if 2 <= s.bit_count() <= most]
        numbers.sort(key=lambda s: -float(sizes[s]))
        return {self._names(s): s for s in numbers}

    def _names(self, number: int) -> tuple[str, ...]:
        return tuple(name for i, name in enumerate(self.players) if number >> i & 1)

    def __getitem__(self, names: tuple[str, ...]) -> Float[Tensor, " part"]:
        number = self._numbers[tuple(name for name in self.players if name in names)]
        return self.found[:, number]

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def up_to(self, order: int) -> Interactions:
        """Those of at most `order` players.

        Raises:
            InputError: fewer than two players.
        """
        if order < 2:
            raise InputError(f"an interaction is of two or more players; order={order} has none")
        return Interactions(self.players, self.found, order)

    def to_frame(self, tokens: Sequence[str] | None = None, largest: int | None = None) -> pd.DataFrame:
        """One row an interaction, largest first: `players`, `order`, and a column for each part of the answer.

        Raises:
            InputError: tokens of another number than there are parts.
        """
        if tokens is not None and len(tokens) != len(self.found):
            raise InputError(
                f"interactions of {len(self.found)} parts of an answer have as many tokens; got {len(tokens)}"
            )
        rows = list(self._numbers)[:largest]
        numbers = {
            str(n) if tokens is None else f"{n} {tokens[n]}": [float(self[names][n]) for names in rows]
            for n in range(len(self.found))
        }
        return pd.DataFrame({"players": [" + ".join(names) for names in rows], "order": list(map(len, rows))} | numbers)


@explained
def shares(credits: Mapping[str, float]) -> dict[str, float]:
    """Positive credits as shares of their sum; for reading, not for adding up.

    Raises:
        InputError: a credit that is NaN or infinite, which has no share.
    """
    if wrong := [name for name, value in credits.items() if not math.isfinite(value)]:
        raise InputError(f"the credit of {wrong[0]!r} is {credits[wrong[0]]}, which has no share of a sum")
    positive = {name: max(0.0, value) for name, value in credits.items()}
    whole = sum(positive.values())
    return {name: value / whole if whole else 0.0 for name, value in positive.items()}
