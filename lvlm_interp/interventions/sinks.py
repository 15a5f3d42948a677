"""Attention that a few tokens get whatever is asked (sinks) is given to the rest of the image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.interventions.attention import OfEdges
from lvlm_interp.interventions.intervention import Act, Measured
from lvlm_interp.interventions.places import Places, first_of, placed
from lvlm_interp.model.vlm import HookedVLM

ON_SINKS, ON_REST, SUMS = "attention on sinks", "attention on the rest", "largest change of a row's sum"
STREAM = "blocks.{}.hook_resid_pre"
FEW = 2  # dimensions in which sinks stand out, as in Llama


@dataclass(frozen=True, eq=False, repr=False)
class Redistribute(OfEdges):
    """A share of what sinks get goes to the other keys, in proportion to what these get (VAR: Kang et al. 2025).

    Only rows of heads that look at the keys at all, and not at sinks among them most, are changed; what a row looks at
    altogether stays. A sink is a position whose state before the block, divided by its root mean square, is large in
    one of a few dimensions. The paper leaves out the first two layers and the last: `layers=range(2, vlm.depth - 1)`.

    Attributes:
        rows: by default all that predict a token of the answer.
        keys: what gets it; sinks elsewhere, such as the first position, give as well.
        share: how much of it is moved: p of the paper. Its published code leaves p there, and so moves .4.
        least: how much a row of a head looks at the keys at least, sinks included.
        sunk: how much of that sinks have at most.
        dimensions: in which they stand out (`(1415, 2533)` in Llama 2 7B); None means the two in which the state of
            this prompt's first position is largest, over all blocks.
        threshold: how large, in root mean squares.
    """

    rows: Places = "predicting"
    share: float = 0.6
    least: float = 0.2
    sunk: float = 0.5
    dimensions: tuple[int, ...] | None = None
    threshold: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.share <= 1 and 0 <= self.least <= 1 and 0 <= self.sunk <= 1 and self.threshold > 0):
            raise InputError(
                "share, least and sunk are shares, from 0 to 1, share above 0, and threshold is above 0; got "
                f"{self.share}, {self.least}, {self.sunk}, {self.threshold}"
            )

    def acts(self, vlm: HookedVLM, x: Inputs) -> Sequence[Act]:
        places = self.places(vlm, x)
        sinks = self.sinks(vlm, x, [layer for layer, _, _ in places])
        return [
            Act(
                pattern,
                functools.partial(self._moved, x, layer, sinks[layer]),
                pattern,
                functools.partial(self._measured, x, layer, sinks[layer]),
                _as_much,
                first=first_of(x, self.rows),
            )
            for layer, _, pattern in places
            if bool(sinks[layer].any())
        ]

    def sinks(self, vlm: HookedVLM, x: Inputs, layers: Sequence[int]) -> dict[int, Bool[Tensor, " position"]]:
        """Which positions of the prompt are sinks, by layer.

        Raises:
            InputError: no position is one in any of these layers, or dimensions that the model does not have.
        """
        found = vlm.capture(x, [STREAM.format(n) for n in range(vlm.depth)], positions=range(x.answer_start))
        states = torch.stack([found[STREAM.format(n)][0].float().cpu() for n in range(vlm.depth)])
        large = (states / states.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-9)).abs()
        width = large.shape[-1]
        if self.dimensions and (wrong := [n for n in self.dimensions if not 0 <= n < width]):
            raise InputError(f"there is no dimension {wrong[0]} in states of {width}, counted from 0")
        chosen = self.dimensions or tuple(large[:, 0].mean(0).topk(min(FEW, width)).indices.tolist())
        sinks = large[:, :, list(chosen)].amax(-1) > self.threshold
        if not bool(sinks[list(layers)].any()):
            most = float(large[list(layers)][:, :, list(chosen)].max())
            raise InputError(
                f"no position is a sink in layers {[*layers]}: the largest is {most:.1f} root mean squares in the "
                f"dimensions {chosen}, and threshold= is {self.threshold:g}"
            )
        return {n: sinks[n] for n in layers}

    def _moved(self, x: Inputs, layer: int, sinks: Bool[Tensor, " position"], pattern: Tensor) -> Tensor:
        keys, sunk = self._parts(x, sinks, pattern)
        on_keys, on_sinks = (pattern * keys).sum(-1, keepdim=True), (pattern * (keys & sunk)).sum(-1, keepdim=True)
        rest = pattern * (keys & ~sunk)
        total = rest.sum(-1, keepdim=True)
        gives = (on_keys >= self.least) & (on_sinks <= self.sunk * on_keys) & (total > 0)
        gives = gives & self.edges(x, layer, pattern).any(-1, keepdim=True)
        moved = self.share * (pattern * sunk).sum(-1, keepdim=True)
        changed = torch.where(sunk, pattern * (1 - self.share), pattern) + moved * rest / total.clamp(min=1e-12)
        return torch.where(gives, changed, pattern)

    def _parts(
        self, x: Inputs, sinks: Bool[Tensor, " position"], pattern: Float[Tensor, "batch head row key"]
    ) -> tuple[Bool[Tensor, " key"], Bool[Tensor, " key"]]:
        """The keys, and the sinks anywhere."""
        count = pattern.shape[-1]
        sunk = torch.zeros(count, dtype=torch.bool)
        sunk[: len(sinks)] = sinks
        return placed(x, self.keys, count).to(pattern.device), sunk.to(pattern.device)

    def _measured(
        self, x: Inputs, layer: int, sinks: Bool[Tensor, " position"], before: Tensor, after: Tensor
    ) -> Measured:
        keys, sunk = self._parts(x, sinks, after)
        rows = self.edges(x, layer, after).any(-1)
        looked = {ON_SINKS: (after * sunk).sum(-1), ON_REST: (after * (keys & ~sunk)).sum(-1)}
        means = {name: float(numbers[0][rows].mean()) for name, numbers in looked.items()}
        return {**means, SUMS: float((after.sum(-1) - before.sum(-1)).abs().max())}


def _as_much(found: Measured) -> bool:
    return found.get(SUMS, 1.0) < 1e-3
