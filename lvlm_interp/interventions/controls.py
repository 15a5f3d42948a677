"""Cuts that a cut is to be compared with: of as many other keys, or of as much attention to other keys."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.inputs.example import Inputs
from lvlm_interp.interventions.attention import Knockout
from lvlm_interp.interventions.places import Places, first_of, layer_of, placed
from lvlm_interp.model.vlm import HookedVLM

Kind = Literal["route", "equal size", "equal mass"]
KINDS: tuple[Kind, ...] = ("route", "equal size", "equal mass")
MISSED = 0.25  # of a route's attention, which a control of equal mass may be off by


class Route:
    """A route of one example, and the keys that its controls cut.

    Keys of controls are those that all its rows see, so positions before the first of them, and that are not its own.

    Attributes:
        rows, keys: which edges it has.
    """

    def __init__(self, vlm: HookedVLM, x: Inputs, rows: Places, keys: Places, seed: int) -> None:
        self.vlm, self.x, self.rows, self.keys = vlm, x, rows, keys
        self._own = placed(x, keys, x.length)
        self._generator = torch.Generator().manual_seed(seed)

    def cut(self, kind: Kind, layers: Sequence[int]) -> Knockout | None:
        """The route's own cut in these layers, or a control's; None where there are no such other keys."""
        if kind == "route":
            return Knockout(self.rows, self.keys, layers=layers)
        chosen = self._as_many() if kind == "equal size" else self._as_much(layers)
        return None if chosen is None else Knockout(self.rows, chosen, layers=layers)

    @functools.cached_property
    def _others(self) -> Int[Tensor, " key"]:
        before = torch.arange(self.x.length) < first_of(self.x, self.rows)
        return (before & ~self._own).nonzero()[:, 0]

    def _in_any_order(self) -> Int[Tensor, " key"]:
        return self._others[torch.randperm(len(self._others), generator=self._generator)]

    def _as_many(self) -> Bool[Tensor, " position"] | None:
        """As many as the route's rows see of its own keys."""
        count = int(self._own[: first_of(self.x, self.rows) + 1].sum())
        return self._mask(self._in_any_order()[:count]) if 0 < count <= len(self._others) else None

    def _as_much(self, layers: Sequence[int]) -> Bool[Tensor, " position"] | None:
        """Keys taken in a random order, where each brings what is read of them nearer to what is read of the route's.

        None where no such set comes near enough.
        """
        mass = self._mass[list(layers)].sum(0)
        wanted, chosen, found = float(mass[self._own].sum()), [], 0.0
        for key in self._in_any_order().tolist():
            if abs(found + float(mass[key]) - wanted) < abs(found - wanted):
                chosen.append(key)
                found += float(mass[key])
        near = wanted > 0 and abs(found - wanted) <= MISSED * wanted
        return self._mask(torch.tensor(chosen)) if chosen and near else None

    @functools.cached_property
    def _mass(self) -> Float[Tensor, "layer key"]:
        """How much the rows read of each key, over all heads of a layer."""
        rows = placed(self.x, self.rows, self.x.length)
        found = self.vlm.capture(self.x, "blocks.*.attn.hook_pattern", positions=rows)
        read = torch.zeros(self.vlm.depth, self.x.length, dtype=torch.float64)
        for name, pattern in found.items():
            if (layer := layer_of(name)) is not None:
                read[layer] = pattern[0].double().sum((0, 1)).cpu()
        return read

    def _mask(self, keys: Int[Tensor, " key"]) -> Bool[Tensor, " position"]:
        found = torch.zeros(self.x.length, dtype=torch.bool)
        found[keys] = True
        return found
