"""The value as a function of the numbers that a processor makes of a picture's pixels, and which patch each is of.

Processors differ in how they lay these numbers out: whole pictures, tiles, windows, rows of patches. So where a number
comes from is asked of the processor itself: pictures go through it in which each pixel says which row of patches it is
in, and which column, from black to white. What a resize blends at an edge goes to the nearer patch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.value import Valued
from lvlm_interp.errors import ImageError
from lvlm_interp.heatmaps.differentiable import Differentiable
from lvlm_interp.heatmaps.filling import Substrate
from lvlm_interp.heatmaps.hiding import OfPixels
from lvlm_interp.inputs.example import Inputs

INSTEAD = "by='tokens', the default, differentiates by what the language model is given for the image"


class ByPixels(Differentiable):
    """v of every part of the answer, as a function of the pixels as the model is given them.

    Attributes:
        features: these numbers, behind an axis of one example: `[1, …]`, as the processor lays them out.

    Raises:
        ImageError: the original picture is not known, or no one input of the model is made of it.
    """

    def __init__(self, asked: Asked, valued: Valued | None = None) -> None:
        super().__init__(asked, valued)
        self._hiding = OfPixels(asked, "black")
        patches = asked.cells.numel()
        black, white = (self._hiding.in_shades(self._hiding.drawn([s] * patches, s)).pixels for s in (0.0, 1.0))
        changed = [name for name in black if not torch.equal(black[name], white[name])]
        if len(changed) != 1:
            raise ImageError(f"{changed or 'none'} of the model's inputs are made of the picture's pixels; {INSTEAD}")
        self._name = changed[0]
        self._black, self._white = black[self._name], white[self._name]

    @functools.cached_property
    def features(self) -> Tensor:
        with torch.inference_mode(False):
            return self.asked.x.model_inputs[self._name].clone()[None]

    def start(self, baseline: Substrate) -> tuple[Tensor, dict[str, Any]]:
        """The same of the picture with something else (`heatmaps.filling`) in the place of every patch."""
        hiding, every = OfPixels(self.asked, baseline), torch.ones(self.asked.cells.numel(), dtype=torch.bool)
        with torch.inference_mode(False):
            start = hiding.changed(every).model_inputs[self._name].clone()[None]
        return start, {"baseline": hiding.substrate, "picture": hiding.picture}

    def _rows(self, x: Inputs, features: Tensor | None) -> Float[Tensor, "answer vocabulary"]:
        assert features is not None
        own = x.model_inputs[self._name]
        pixels = torch.where(self._white != self._black, features[0], own)  # others say where a patch stands
        return super()._rows(x.with_model_inputs(**{self._name: pixels}), None)

    def by_patch(self, values: Float[Tensor, "part ..."]) -> Float[Tensor, "part patch"]:
        """Numbers like the features, added up over those that each patch's pixels become."""
        own, flat = self._patches >= 0, values.flatten(1).cpu().double()
        found = flat.new_zeros(len(flat), self.asked.cells.numel())
        return found.index_add(1, self._patches[own], flat[:, own])

    @functools.cached_property
    def _patches(self) -> Int[Tensor, " feature"]:
        """The patch that each feature is made of; -1 of padding, of other pictures, and of pixels in no patch."""
        rows, columns = self.asked.cells.shape
        inside = self._share(torch.ones(rows, columns), elsewhere=0.0)
        row = self._share(torch.linspace(0, 1, rows)[:, None].expand(rows, columns))
        column = self._share(torch.linspace(0, 1, columns).expand(rows, columns))
        down, across = ((one.nan_to_num() * (n - 1)).round().long() for one, n in ((row, rows), (column, columns)))
        number = down.clamp(0, rows - 1) * columns + across.clamp(0, columns - 1)
        return torch.where(inside > 0.5, number, -1).flatten().cpu()  # of padding the share is NaN, which is not more

    def _share(self, of_patches: Float[Tensor, "row column"], elsewhere: float = 1.0) -> Tensor:
        """How white each feature becomes where patches are so, from 0 to 1; NaN where it is of no pixel."""
        shades = self._hiding.drawn(of_patches.flatten().tolist(), elsewhere)
        found = self._hiding.in_shades(shades).pixels[self._name]
        return (found - self._black).double() / (self._white - self._black).double()
