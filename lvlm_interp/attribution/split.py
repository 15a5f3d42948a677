"""What `credit` returns: a value of each part of an answer, shared out among players."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.attribution.against import rather_than
from lvlm_interp.attribution.shapley import Interactions, dividends, ordered_weights
from lvlm_interp.errors import InputError, VisibilityError
from lvlm_interp.inputs.example import CREDITED
from lvlm_interp.pairs import Comparable
from lvlm_interp.shown import table_html


@dataclass(frozen=True)
class CreditSplit(Comparable):
    """How much of each answer token (or word, sentence, …) each player accounts for.

    Attributes:
        tokens: the parts of the answer as text.
        players: their names, in order.
        player_roles: the role that each is, or is a part of; empty for one of several roles.
        player_texts: what stands there.
        value: which value `prior`, `credits` and `total` speak of.
        computed: the values that there are.
        units: nats or logits, of each.
        numbers: each value under every coalition, `[value, answer, 2^k]`; coalition number S has bit i set where player
            i may be seen.
        alternatives: for each part, the words that `odds` and `difference` compare it with.
        alternative_ids: their token ids; several readings may have one text.
        kept: the roles and players that are always visible.
        quoting: for each part, whether its words stand in the question, where the question asks; empty where it is a
            player like the others.
    """

    keys = ("token",)
    agreeing = ("tokens", "players", "value", "unit", "kept", "quoting", "compared")
    too_large: ClassVar[frozenset[str]] = frozenset({"numbers"})  # `to_dict` has them by name
    along: ClassVar[Mapping[str, str]] = {
        "tokens": "answer",
        "alternatives": "answer",
        "computed": "value",
        "units": "value",
    }
    tokens: tuple[str, ...]
    players: tuple[str, ...]
    player_roles: tuple[str, ...]
    player_texts: tuple[str, ...]
    value: str
    computed: tuple[str, ...]
    units: tuple[str, ...]
    numbers: Float[Tensor, "value answer coalition"]
    alternatives: tuple[tuple[str, ...], ...]
    kept: tuple[str, ...]
    quoting: tuple[bool, ...] = ()
    alternative_ids: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._checked(self.value)
        count, coalitions = len(self.players), self.numbers.shape[2]
        if coalitions != 1 << count or {len(self.player_roles), len(self.player_texts)} != {count}:
            raise InputError(
                f"{count} players have 2^{count} coalitions, a role and a text each; got {coalitions} coalitions, "
                f"{len(self.player_roles)} roles and {len(self.player_texts)} texts"
            )
        for name in ("quoting", "alternative_ids"):
            if len(getattr(self, name)) not in (0, len(self.tokens)):
                count = len(getattr(self, name))
                raise InputError(f"{name} is of each of {len(self.tokens)} parts, or empty; got {count}")

    # --- values under every coalition -------------------------------------------------------------

    @property
    def values(self) -> Float[Tensor, "answer coalition"]:
        """v(S) of the chosen value."""
        return self._under(self.value)

    @property
    def odds(self) -> Float[Tensor, "answer coalition"]:
        return self._under("odds")

    @property
    def full(self) -> Float[Tensor, "answer coalition"]:
        return self._under("full")

    @property
    def unit(self) -> str:
        """Nats or logits."""
        return self.units[self.computed.index(self.value)]

    @property
    def note(self) -> str:
        kept = f"; always visible: {', '.join(self.kept)}" if len(self.kept) > 1 else ""
        asked = "; prior: once asked" if self.asking else ""
        return f"{self.value}, in {self.unit}; prior + credits = total{rather_than(self.compared)}{asked}{kept}"

    @property
    def compared(self) -> tuple[tuple[str, ...], ...]:
        """The alternatives, where the chosen value compares with some."""
        return self.alternatives if self.value in ("odds", "difference") else ()

    def _under(self, value: str) -> Float[Tensor, "answer coalition"]:
        return self.numbers[self.computed.index(self._checked(value))]

    def _checked(self, value: str) -> str:
        if value not in self.computed:
            raise InputError(
                f"value {value!r} is not in this split, which has {list(self.computed)}: ask credit for it"
            )
        return value

    def with_value(self, value: str) -> CreditSplit:
        """The same split by another value.

        Raises:
            InputError: it was not computed; what compares with nothing always is.
        """
        return dataclasses.replace(self, value=self._checked(value))

    # --- who gets what ----------------------------------------------------------------------------

    @property
    def roles(self) -> tuple[str, ...]:
        """The players: roles, unless others were asked for."""
        return self.players

    @property
    def asking(self) -> bool:
        """Whether the question asks: what it brings that is no word of its own is the prior's."""
        return bool(self.quoting)

    @property
    def prior(self) -> Float[Tensor, " answer"]:
        """What is there with nothing of the user's to see; once asked, where the question asks."""
        nothing = self.values[:, 0]
        if not self.asking:
            return nothing
        brought = self._credits[:, self._first].sum(1)
        return nothing + brought.where(~torch.tensor(self.quoting), 0.0).to(nothing.dtype)

    @property
    def total(self) -> Float[Tensor, " answer"]:
        """v(all)."""
        return self.values[:, -1]

    @property
    def credits(self) -> Float[Tensor, "answer player"]:
        """Shapley value of every player; where the question asks, of the others when it is there."""
        credits = self._credits
        if self.asking:
            credits[:, self._first] = credits[:, self._first].where(torch.tensor(self.quoting)[:, None], 0.0)
        return credits

    @property
    def _first(self) -> list[int]:
        """The number of the player that comes first: the question, where it asks."""
        return [i for i, name in enumerate(self.players) if name == "question"] if self.asking else []

    @property
    def _credits(self) -> Float[Tensor, "answer player"]:
        return self.values.double() @ ordered_weights(len(self.players), tuple(self._first)).T

    def of(self, name: str) -> Float[Tensor, " answer"]:
        """Credit of one player (or `prior`, `total`); of a role that was split, what its parts have together.

        Raises:
            VisibilityError: it is not among the players.
        """
        if name in ("prior", "total"):
            return self.prior if name == "prior" else self.total
        members = self._members(name)
        credits = self.credits
        return credits[:, members[0]] if len(members) == 1 else credits[:, members].sum(1)

    def _members(self, name: str) -> list[int]:
        """The numbers of the players of that name, or of the parts of that role."""
        parts = [i for i, role in enumerate(self.player_roles) if role == name]
        if name in self.players and not (name in CREDITED and len(parts) > 1):
            return [self.players.index(name)]
        if not parts:
            raise VisibilityError(f"{name!r} has no credit here; the players are {list(self.players)}")
        return parts

    @property
    def question(self) -> Float[Tensor, " answer"]:
        return self.of("question")

    @property
    def context(self) -> Float[Tensor, " answer"]:
        return self.of("context")

    @property
    def system(self) -> Float[Tensor, " answer"]:
        return self.of("system")

    @property
    def image(self) -> Float[Tensor, " answer"]:
        return self.of("image")

    @property
    def interactions(self) -> Interactions:
        """Harsanyi dividends of the coalitions of two and more players: what they do together beyond their parts.

        A player's Shapley value is the sum, over the coalitions that it is in, of their dividends shared out equally;
        where the question asks, among the others alone.
        """
        return Interactions(self.players, dividends(self.values))

    # --- seen in other ways -----------------------------------------------------------------------

    def together(self) -> CreditSplit:
        """The split in which the question is a player like the others, as `credit(…, asking=False)` gives it."""
        about = self.provenance
        told = dataclasses.replace(about, parameters={**about.parameters, "asking": False})
        return dataclasses.replace(self, quoting=(), provenance=told)

    def keeping(self, *names: str) -> CreditSplit:
        """The split in which these players are always visible, as `credit(…, keep=…)` gives it; no model is run.

        The alternatives stay: with `keep=`, players other than the question may lead to others.

        Raises:
            VisibilityError: one that is not among the players.
        """
        always = {i for name in names for i in self._members(name)}
        quoting = () if {*self._first} <= always else self.quoting
        seen = sum(1 << i for i in always)
        columns = [s for s in range(1 << len(self.players)) if s & seen == seen]
        left = [i for i in range(len(self.players)) if i not in always]
        about, kept = self.provenance, kept_always((*self.kept, *names))
        return dataclasses.replace(
            self,
            players=tuple(self.players[i] for i in left),
            player_roles=tuple(self.player_roles[i] for i in left),
            player_texts=tuple(self.player_texts[i] for i in left),
            numbers=self.numbers[..., columns],
            kept=kept,
            quoting=quoting,
            provenance=dataclasses.replace(
                about, parameters={**about.parameters, "keep": list(kept), "asking": bool(quoting)}
            ),
        )

    def group(self, **groups: Sequence[str]) -> pd.DataFrame:
        """Credits added up: `group(text=("question", "context", "system"))` gives text / image / prior.

        Players that are in no group stay as they are; roles that are not present count 0.

        Raises:
            VisibilityError: an unknown player, one that is grouped twice, or a group named like another column.
        """
        frame = self._named(str)
        if alone := [name for name, members in groups.items() if isinstance(members, str)]:
            raise VisibilityError(f"a group is of several players: {alone[0]}=({groups[alone[0]]!r},) is of one")
        if unknown := [m for ms in groups.values() for m in ms if m not in (*self.players, *CREDITED, "prior")]:
            known = list(dict.fromkeys((*CREDITED, *self.players, "prior")))
            raise VisibilityError(f"cannot group {unknown}; players are {known}")
        columns = {name: [c for m in members for c in self._columns(m)] for name, members in groups.items()}
        grouped = [column for some in columns.values() for column in some]
        if twice := [m for m in dict.fromkeys(grouped) if grouped.count(m) > 1]:
            raise VisibilityError(f"{twice} would count twice: give each player to one group, once")
        sums = {name: frame[some].sum(axis=1) for name, some in columns.items()}
        frame = frame.drop(columns=grouped)
        if taken := [name for name in sums if name in frame]:
            raise VisibilityError(f"no group can be named {taken[0]!r}: that is another column")
        for name, values in sums.items():
            frame.insert(len(frame.columns) - 1, name, values)
        return frame

    def _columns(self, name: str) -> list[str]:
        """The columns of a player, or of the parts of a role; none of a role that is not present."""
        if name == "prior" or name not in (*self.players, *self.player_roles):
            return [name] if name == "prior" else []
        return [self.players[i] for i in self._members(name)]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; v(S) of each value under its name."""
        by_name = zip(self.computed, self.numbers.tolist(), strict=True)
        return {**super().to_dict(), **dict(by_name)}

    def to_frame(self) -> pd.DataFrame:
        """Columns `token`, `prior`, `credit[player]` for each player, `total`, `example`; nats (logits, of `logit`)."""
        return self.identified(self._named(lambda player: f"credit[{player}]"))

    def _named(self, column: Callable[[str], str]) -> pd.DataFrame:
        credits = self.credits
        parts = {column(name): credits[:, i].tolist() for i, name in enumerate(self.players)}
        return pd.DataFrame({"token": self.tokens, "prior": self.prior.tolist(), **parts, "total": self.total.tolist()})

    def _repr_html_(self) -> str:
        return table_html(self._named(str), 2, self.note)


def kept_always(keep: Sequence[str]) -> tuple[str, ...]:
    """What is always visible: the template too, which holds the attention sink."""
    return tuple(dict.fromkeys(("template", *keep)))
