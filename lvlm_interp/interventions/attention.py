"""Interventions in attention: edges that are cut, and keys that are read more or less."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.interventions.intervention import Act, Intervention, Measured
from lvlm_interp.interventions.places import Heads, Layers, Places, chosen_layers, first_of, headed, layers_of, placed
from lvlm_interp.model.sites import Site
from lvlm_interp.model.vlm import HookedVLM

ON_EDGES = "attention on these edges"


@dataclass(frozen=True, eq=False, repr=False)
class OfEdges(Intervention):
    """Edges of attention, from rows that read to keys that are read.

    Attributes:
        rows: positions that read; by default the one that predicts the first token of the answer.
        keys: positions that are read.
        layers: in which blocks.
        heads: which heads.
    """

    rows: Places = "last"
    keys: Places = "image"
    layers: Layers = None
    heads: Heads = None

    def edges(
        self, x: Inputs, layer: int, pattern: Float[Tensor, "batch head row key"]
    ) -> Bool[Tensor, "head row key"]:
        """Which they are, in a pattern of these sizes."""
        _, heads, rows, keys = pattern.shape
        read, seen = placed(x, self.rows, rows), placed(x, self.keys, keys)
        found = headed(self.heads, layer, heads)[:, None, None] & read[:, None] & seen
        return found.to(pattern.device)

    def mass(self, x: Inputs, layer: int) -> Callable[[Tensor, Tensor], Measured]:
        """How much a row reads over these edges: the most that any row of any head does."""

        def measure(_: Tensor, pattern: Tensor) -> Measured:
            edges = self.edges(x, layer, pattern)
            return {ON_EDGES: float((pattern * edges).sum(-1).max())}

        return measure

    def places(self, vlm: HookedVLM, x: Inputs) -> list[tuple[int, Site, Site]]:
        """Layers, with the sites of their scores and their patterns.

        Raises:
            SiteError: a layer whose attention cannot be seen.
            InputError: what is read past these edges: over a state that is handed on, or by cross-attention.
        """
        chosen = chosen_layers(vlm, layers_of(self.heads, self.layers))
        if vlm.recurrent and self.layers is None and self.heads is None:
            raise InputError(
                f"{vlm.name!r} has layers that hand on a state from position to position, which no cut in attention "
                "stops: name the layers of attention that are meant, layers=[…]"
            )
        if crossing := [layer for layer in chosen if f"blocks.{layer}.cross_attn.hook_z" in vlm.sites]:
            raise InputError(
                f"block {crossing[0]} reads the image by cross-attention, where it has no positions of the prompt: "
                f"Ablate('blocks.*.cross_attn.hook_z', positions=…) cuts that, and layers=[…] leaves those blocks out"
            )
        names = ("hook_attn_scores", "hook_pattern")
        found = [(layer, *(vlm.sites.get(f"blocks.{layer}.attn.{name}") for name in names)) for layer in chosen]
        if unseen := [layer for layer, scores, _ in found if scores is None]:
            raise SiteError(
                f"block {unseen[0]} has no attention whose edges can be told apart; leave it out of layers="
            )
        return found  # type: ignore[return-value]


@dataclass(frozen=True, eq=False, repr=False)
class Knockout(OfEdges):
    """Edges of attention are cut: these rows do not see these keys, as in Geva et al. 2023.

    `Knockout("last", "image", layers=range(8, 17))` keeps the first token of the answer from reading the image there.
    A row keeps its other keys, which share what is cut. The certificate tells that cut edges have exactly no attention.
    """

    def acts(self, vlm: HookedVLM, x: Inputs) -> Sequence[Act]:
        return [
            Act(
                scores,
                functools.partial(self._cut, x, layer),
                pattern,
                self.mass(x, layer),
                _none_left,
                first=first_of(x, self.rows),
            )
            for layer, scores, pattern in self.places(vlm, x)
        ]

    def _cut(self, x: Inputs, layer: int, scores: Tensor) -> Tensor:
        lowest = torch.finfo(scores.dtype).min
        edges = self.edges(x, layer, scores)
        found = torch.where(edges & (scores > lowest / 2), lowest, scores)
        blind = (edges.any(-1) & ~(found > lowest / 2).any(-1)).any(0).any(0)
        if blind.any():
            raise InputError(
                f"{self.described} leaves the row {int(blind.nonzero()[0])} nothing to see in layer {layer}: leave it "
                "a key, itself or the template's"
            )
        return found


def _none_left(found: Measured) -> bool:
    return found.get(ON_EDGES) == 0


@dataclass(frozen=True, eq=False, repr=False)
class Scale(OfEdges):
    """Keys are read more, or less.

    Attributes:
        rows: by default all that predict a token of the answer.
        factor: by `"weights"`, attention on these edges is multiplied by it, and each row shared out anew to what it
            summed to; by `"scores"`, |score| times it is added to each score (PAI: Liu et al. 2024, α).
        by: which.
    """

    rows: Places = "predicting"
    factor: float = 1.0
    by: Literal["weights", "scores"] = "weights"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by == "weights" and self.factor < 0:
            raise InputError(f"weights are multiplied by 0 or more; got factor={self.factor}")

    def acts(self, vlm: HookedVLM, x: Inputs) -> Sequence[Act]:
        by_weights = self.by == "weights"
        change = self._reweighted if by_weights else self._rescored
        return [
            Act(
                pattern if by_weights else scores,
                functools.partial(change, x, layer),
                pattern,
                self.mass(x, layer),
                bool,
                first=first_of(x, self.rows),
            )
            for layer, scores, pattern in self.places(vlm, x)
        ]

    def _reweighted(self, x: Inputs, layer: int, pattern: Tensor) -> Tensor:
        weighed = torch.where(self.edges(x, layer, pattern), pattern * self.factor, pattern)
        sums, own = weighed.sum(-1, keepdim=True), pattern.sum(-1, keepdim=True)
        if bool(((sums == 0) & (own > 0)).any()):
            raise InputError(f"{self.described} leaves a row nothing to see in layer {layer}")
        touched = self.edges(x, layer, pattern).any(-1, keepdim=True)
        return torch.where(touched, weighed * (own / sums.clamp(min=torch.finfo(sums.dtype).tiny)), pattern)

    def _rescored(self, x: Inputs, layer: int, scores: Tensor) -> Tensor:
        open_ones = self.edges(x, layer, scores) & (scores > torch.finfo(scores.dtype).min / 2)
        return torch.where(open_ones, scores + self.factor * scores.abs(), scores)
