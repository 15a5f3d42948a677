"""Decoding that contrasts the last layer with earlier ones, or adds what they knew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.generation.choosing import Changing, Step, need_probabilities, unlikely


@dataclass(frozen=True)
class _Layered(Changing):
    """What looks at earlier layers.

    Attributes:
        layers: numbers of blocks, counted from 0, negative ones from the last; or a span of the depth, as shares.
    """

    layers: tuple[int, ...] | tuple[float, float] = (0.0, 0.5)

    def layers_of(self, depth: int) -> Sequence[int]:
        """Which blocks.

        Raises:
            InputError: blocks that are not there, or none.
        """
        found = self._span(depth) if any(isinstance(one, float) for one in self.layers) else self._named(depth)
        if not found:
            raise InputError(f"{self.layers} are no blocks of a model of {depth}")
        return found

    def _span(self, depth: int) -> list[int]:
        first, last = self.layers
        return [n for n in range(depth - 1) if first * depth <= n < last * depth]

    def _named(self, depth: int) -> list[int]:
        if wrong := [n for n in self.layers if not -depth <= n < depth]:
            raise InputError(f"there is no block {wrong[0]} in a model of {depth}, counted from 0")
        return sorted({int(n) % depth for n in self.layers})


@dataclass(frozen=True)
class DoLa(_Layered):
    """log p of the last layer less log p of the earlier one that differs most from it (Chuang et al. 2024, DoLa).

    Attributes:
        layers: among which it is sought; by default those of the lower half, as the paper has it for short answers.
        cut: the share of the largest probability that a token must have.
        reading: how far layers differ: the Jensen–Shannon divergence, ½ KL(p ‖ m) + ½ KL(q ‖ m), as in the paper; or as
            the published code computes it, ½ KL(m ‖ p) + ½ KL(m ‖ q).
        then: how a token is taken of what comes out.
    """

    cut: float = 0.1
    reading: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        need_probabilities(cut=self.cut)

    def changed(self, step: Step) -> Float[Tensor, " vocabulary"]:
        last = step.logits[0].log_softmax(-1)
        early = {n: logits.to(last).log_softmax(-1) for n, logits in step.layers.items()}
        chosen = max(early, key=lambda n: self.distance(last, early[n]))
        return (last - early[chosen]).masked_fill(unlikely(last, self.cut), -math.inf)

    def distance(self, one: Float[Tensor, " vocabulary"], other: Float[Tensor, " vocabulary"]) -> float:
        """How far apart two distributions are, from their log-probabilities."""
        middle = torch.logaddexp(one, other) - math.log(2)
        if self.reading == "code":
            return float((middle.exp() * (middle - (one + other) / 2)).sum())
        return float(((one.exp() * (one - middle)).sum() + (other.exp() * (other - middle)).sum()) / 2)


@dataclass(frozen=True)
class DeCo(_Layered):
    """l + α · max p · l', where l' is the earlier layer that is surest of a candidate (Wang et al. 2024, DeCo).

    Candidates are the likeliest tokens of the last layer; nothing else is written.

    Attributes:
        layers: among which it is sought; by default 20 to 28 of 32, as shares of the depth.
        alpha: α.
        top_k, top_p: how many candidates at most, and how much probability they need to have together.
        then: how a token is taken of what comes out.
    """

    layers: tuple[int, ...] | tuple[float, float] = (0.625, 0.9)
    alpha: float = 0.6
    top_k: int = 20
    top_p: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        need_probabilities(top_p=self.top_p)
        if self.top_k < 1:
            raise InputError(f"there is at least one candidate; got top_k={self.top_k}")

    def changed(self, step: Step) -> Float[Tensor, " vocabulary"]:
        last = step.logits[0]
        kept = self.candidates(last)
        chances = {n: logits.to(last).softmax(-1)[kept].max() for n, logits in step.layers.items()}
        chosen = max(chances, key=lambda n: float(chances[n]))
        added = self.alpha * chances[chosen] * step.layers[chosen].to(last)
        return (last + added).masked_fill(~kept, -math.inf)

    def candidates(self, logits: Float[Tensor, " vocabulary"]) -> Bool[Tensor, " vocabulary"]:
        """The `top_k` likeliest tokens, and of them those before which less than `top_p` is reached."""
        chances, order = logits.softmax(-1).topk(min(self.top_k, len(logits)))
        within = chances.cumsum(0) - chances < self.top_p
        return torch.zeros_like(logits, dtype=torch.bool).index_fill(0, order[within], True)
