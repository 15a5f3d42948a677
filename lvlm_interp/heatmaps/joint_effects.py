"""What `interactions` returns: the dividends of all coalitions, and what is read off them exactly.

Harsanyi 1963; Shapley 1953; interaction indices of pairs: Grabisch and Roubens 1999; Shapley-Taylor indices:
Sundararajan, Dhamdhere and Agarwal 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from lvlm_interp.attribution.against import rather_than
from lvlm_interp.attribution.asked import need_same_part, span_of
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.engine.score import HideFrom
from lvlm_interp.errors import InputError
from lvlm_interp.results import Result, heading, html, number_of, table, text
from lvlm_interp.shown import table_html

Kind = Literal["image", "text"]


@dataclass(frozen=True)
class JointEffects(Result):
    """What players do by themselves and together, for each part of an answer; coalition S has bit i set for player i.

    Attributes:
        tokens: the parts of the answer as text.
        players: their names, the regions of the picture in front.
        kinds: whether each is of the `image` or of the `text`.
        player_texts: what stands there; empty for images.
        regions: the number of the player that each patch of the picture is in, `[row, column]`; -1 for none.
        dividends: Harsanyi dividends of all coalitions, float64, `[part, 2^k]`; that of none is v(∅). One of n players
            adds up 2^n values, so that what a model rounds grows with √2^n; `image_only`, `text_only` and `joint` are
            differences of four values at most.
        total: v(all) − v(∅), of passes of its own, `[part]`.
        value: which value.
        unit: nats or logits.
        hide_from: who lost sight of regions: `text` rows only, or `all` rows; of phrases, everybody.
        alternatives: for each part, what the value compares it with; nothing for those that compare with none.
        alternative_ids: their token ids.
    """

    along: ClassVar[Mapping[str, str]] = {"tokens": "part"}
    tokens: tuple[str, ...]
    players: tuple[str, ...]
    kinds: tuple[Kind, ...]
    player_texts: tuple[str, ...]
    regions: Int[Tensor, "row column"]
    dividends: Float[Tensor, "part coalition"]
    total: Float[Tensor, " part"]
    value: str
    unit: str
    hide_from: HideFrom
    alternatives: tuple[tuple[str, ...], ...] = ()
    alternative_ids: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "dividends", self.dividends.double())  # sums of thousands are read off them
        count, coalitions = len(self.players), self.dividends.shape[1]
        if coalitions != 1 << count or {len(self.kinds), len(self.player_texts)} != {count}:
            raise InputError(
                f"{count} players have 2^{count} coalitions, a kind and a text each; got {coalitions} coalitions, "
                f"{len(self.kinds)} kinds and {len(self.player_texts)} texts"
            )
        shown = {-1, *(i for i, kind in enumerate(self.kinds) if kind == "image")}
        if strange := sorted({*self.regions.flatten().tolist()} - shown):
            raise InputError(f"regions are numbers of players of the image, or -1; got {strange[0]}")

    @property
    def note(self) -> str:
        hidden = f"regions hidden from {self.hide_from}"
        rather = rather_than(self.alternatives)
        return f"{self.value}, in {self.unit}; image only + text only + joint = total; {hidden}{rather}"

    # --- what each coalition is of ----------------------------------------------------------------

    @property
    def _members(self) -> Bool[Tensor, "coalition player"]:
        return coalitions_of(len(self.players))

    def _counts(self, kind: Kind) -> Float[Tensor, " coalition"]:
        """How many players of a kind are in each coalition."""
        return self._members[:, [one == kind for one in self.kinds]].sum(1).double()

    def _sum(self, image: bool, words: bool) -> Float[Tensor, " part"]:
        """The dividends of coalitions with players of these kinds, and of these only."""
        return self.dividends[:, self._of(image, words)].sum(1)

    def _of(self, image: bool, words: bool) -> Bool[Tensor, " coalition"]:
        return ((self._counts("image") > 0) == image) & ((self._counts("text") > 0) == words)

    @property
    def image_only(self) -> Float[Tensor, " part"]:
        """What the picture adds where none of the phrases is seen."""
        return self._sum(True, False)

    @property
    def text_only(self) -> Float[Tensor, " part"]:
        """What the phrases add where nothing of the picture is seen."""
        return self._sum(False, True)

    @property
    def joint(self) -> Float[Tensor, " part"]:
        """What picture and phrases add together beyond what each adds alone."""
        return self._sum(True, True)

    @property
    def residual(self) -> Float[Tensor, " part"]:
        """`total` less the sum of the dividends of all coalitions but none; float error."""
        return self.total - self.dividends[:, 1:].sum(1)

    # --- shared out among players -----------------------------------------------------------------

    @property
    def shapley(self) -> Float[Tensor, "part player"]:
        """Shapley values: Σ d(S) / |S| over the coalitions S that a player is in."""
        return self._divided(self._members.sum(1).clamp(min=1)) @ self._members.double()

    @property
    def joint_shares(self) -> Float[Tensor, "part player"]:
        """Joint effects shared out among the players of one kind, equally: those of the image have them all, as have
        those of the text.

        Of an image's player Σ d(S) / (players of the image in S), over the coalitions S of both kinds that it is in.
        """
        both = self._of(True, True)
        each = [
            self._divided(self._counts(kind).clamp(min=1))[:, both] @ self._members[both, i].double()
            for i, kind in enumerate(self.kinds)
        ]
        return torch.stack(each, 1)

    def joint_of(self, player: str) -> Float[Tensor, " part"]:
        """What a player has of the joint effects; see `joint_shares`.

        Raises:
            InputError: it is not among the players.
        """
        if player not in self.players:
            raise InputError(f"there is no player {player!r}: the players are {list(self.players)}")
        return self.joint_shares[:, self.players.index(player)]

    @property
    def pairs(self) -> Float[Tensor, "part player player"]:
        """Shapley interaction indices of pairs, Σ d(S) / (|S| − 1) over the coalitions S that both are in; of a player
        with itself, its Shapley value."""
        sizes = self._members.sum(1)
        return self._paired(self._divided((sizes - 1).clamp(min=1)), self.shapley)

    @property
    def shapley_taylor(self) -> Float[Tensor, "part player player"]:
        """Shapley-Taylor indices of order 2: d(S) shared out among the pairs in S; of a player with itself, d({i}).

        The numbers on and above the diagonal add up to the sum of the dividends.
        """
        sizes = self._members.sum(1)
        alone = self.dividends[:, [1 << i for i in range(len(self.players))]]
        return self._paired(self._divided((sizes * (sizes - 1) / 2).clamp(min=1)), alone)

    def _divided(self, among: Float[Tensor, " coalition"] | Int[Tensor, " coalition"]) -> Float[Tensor, "part _"]:
        return self.dividends / among

    def _paired(
        self, shares: Float[Tensor, "part coalition"], alone: Float[Tensor, "part player"]
    ) -> Float[Tensor, "part player player"]:
        """Sums over the coalitions that both players are in, and other numbers on the diagonal."""
        members = self._members.double()
        found = torch.einsum("pc,ci,cj->pij", shares, members, members)
        found.diagonal(dim1=1, dim2=2).copy_(alone)
        return found

    # --- seen in other ways -----------------------------------------------------------------------

    def scored(self, maps: PatchMap | Mapping[str, PatchMap], token: int | str = 0) -> pd.DataFrame:
        """How maps of one part rank the regions, against the truth: one row a map.

        A map's number of a region is the sum over its patches. Columns are Spearman's rank correlations, over the
        regions, with their Shapley values (`shapley`) and with what they have of the joint effects (`joint`); NaN where
        either does not vary.

        Raises:
            InputError: no map, no such part, maps of another part or of other patches.
        """
        named = {"map": maps} if isinstance(maps, PatchMap) else dict(maps)
        if not named:
            raise InputError("give at least one map to score, what li.attribute makes")
        part = number_of(self.tokens, token, "the result")
        regions = self.regions[self.regions >= 0].unique()
        truths = {"shapley": self.shapley[part, regions], "joint": self.joint_shares[part, regions]}
        given = [self._by_region(name, one, token, part) for name, one in named.items()]
        columns = {name: [_correlation(sums, truth) for sums in given] for name, truth in truths.items()}
        return self.identified(pd.DataFrame({"map": list(named), "token": self.tokens[part], **columns}))

    def _by_region(self, name: str, one: PatchMap, token: int | str, part: int) -> Float[Tensor, " region"]:
        """What a map gives each region."""
        if one.values.shape[1:] != self.regions.shape:
            raise InputError(
                f"the map {name!r} has {list(one.values.shape[1:])} patches, and these are regions of "
                f"{list(self.regions.shape)}"
            )
        number = number_of(one.tokens, token, f"the map {name!r}")
        if one.tokens[number].strip() != self.tokens[part].strip():
            raise InputError(
                f"the map {name!r} is of {one.tokens[number]!r}, and this is the truth of {self.tokens[part]!r}: make "
                "both with the same unit= and target="
            )
        need_same_part(name, one, number, self, span_of(self, part))
        inside = self.regions.flatten() >= 0
        values, labels = one.values[number].flatten().double()[inside], self.regions.flatten()[inside]
        return torch.zeros(len(self.players), dtype=torch.float64).index_add(0, labels, values)[labels.unique()]

    def effects(self) -> pd.DataFrame:
        """One row a part: what image and text do alone, and what they do together."""
        kinds = {"image only": self.image_only, "text only": self.text_only, "joint": self.joint, "total": self.total}
        return pd.DataFrame({"token": self.tokens, **{name: one.tolist() for name, one in kinds.items()}})

    def to_frame(self) -> pd.DataFrame:
        """One row for each part and coalition but none, the largest dividends first: `token`, `players`, how many they
        are (`order`), `kind` (image, text, joint) and `dividend`."""
        members, both, image = self._members, self._of(True, True), self._of(True, False)
        names = [" + ".join(p for p, there in zip(self.players, row, strict=True) if there) for row in members.tolist()]
        kinds = ["joint" if b else "image" if i else "text" for b, i in zip(both, image, strict=True)]
        orders = self.dividends.abs()[:, 1:].argsort(dim=1, descending=True, stable=True) + 1
        rows = [
            (token, names[s], int(members[s].sum()), kinds[s], float(found[s]))
            for token, found, order in zip(self.tokens, self.dividends, orders.tolist(), strict=True)
            for s in order
        ]
        return self.identified(pd.DataFrame(rows, columns=["token", "players", "order", "kind", "dividend"]))


@text.register
def _effects(result: JointEffects) -> str:
    return f"{heading(result)}\n{table(result.effects())}"


@html.register
def _effects_in_a_cell(result: JointEffects) -> str:
    return table_html(result.effects(), caption=result.note)


def coalitions_of(players: int) -> Bool[Tensor, "coalition player"]:
    """Who is in each coalition; number S has bit i set where player i is in it."""
    return (torch.arange(1 << players)[:, None] >> torch.arange(players) & 1).bool()


def _correlation(one: Float[Tensor, " region"], other: Float[Tensor, " region"]) -> float:
    """Spearman's; NaN where either does not vary."""
    if one.unique().numel() < 2 or other.unique().numel() < 2:
        return float("nan")
    return float(spearmanr(one.numpy(), other.numpy()).statistic)
