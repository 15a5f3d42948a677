"""The value as a function of the numbers that a processor makes of a picture's pixels, and which patch each is of.

Processors differ in how they lay these numbers out: whole pictures, tiles, windows, rows of patches. So where a number
comes from is asked of the processor itself: pictures go through it that get lighter from side to side, so that a number
says by its shade where in the picture it was.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.attribution.asked import Asked, boxes_of
from lvlm_interp.attribution.value import Valued
from lvlm_interp.errors import ImageError
from lvlm_interp.heatmaps.differentiable import Differentiable
from lvlm_interp.heatmaps.filling import Substrate
from lvlm_interp.heatmaps.hiding import OfPixels
from lvlm_interp.inputs.example import Inputs

DARK, LIGHT = 25 / 255, 230 / 255  # whole numbers, with room for what a resize overshoots
LEAST = 2  # pixels of a patch's side: at the picture's own edges a resize reaches about as far, and tells less
WINDOWS = 16  # of a side, each told by shades of its own
INSTEAD = "by='tokens', the default, differentiates by what the language model is given for the image"


class ByPixels(Differentiable):
    """v of every part of the answer, as a function of the pixels as the model is given them.

    Attributes:
        features: these numbers, behind an axis of one example: `[1, …]`, as the processor lays them out.

    Raises:
        ImageError: the original picture is not known or has too few pixels, or no one input of the model is made of it.
    """

    def __init__(self, asked: Asked, valued: Valued | None = None) -> None:
        super().__init__(asked, valued)
        self._hiding = OfPixels(asked, "black")
        (width, height), (rows, columns) = asked.view.picture.size, asked.cells.shape  # type: ignore[union-attr]
        if width < LEAST * columns or height < LEAST * rows:
            raise ImageError(
                f"this picture of {width} × {height} pixels has too few for {columns} × {rows} patches, whose edges "
                f"its processor blends: enlarge it to {LEAST} a side for each or more, or leave it; {INSTEAD}"
            )
        black, white = (self._hiding.in_shades(np.full((height, width), shade)).pixels for shade in (0.0, 1.0))
        changed = [name for name in black if not torch.equal(black[name], white[name])]
        if len(changed) != 1:
            raise ImageError(f"{changed or 'none'} of the model's inputs are made of the picture's pixels; {INSTEAD}")
        self._name = changed[0]
        self._black, self._white = black[self._name], white[self._name]

    @functools.cached_property
    def features(self) -> Tensor:
        with torch.inference_mode(False):
            return self.asked.x.model_inputs[self._name].clone()[None]

    @property
    def spread(self) -> float:
        own = self.features[0][self._white != self._black]
        return float(own.max() - own.min())

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
        boxes, (width, height) = boxes_of(self.asked.view, self.asked.cells)
        left, top, right, bottom = boxes.double().unbind(-1)
        across, column = _within(self._along(1) * width, left[0], right[0])
        down, row = _within(self._along(0) * height, top[:, 0], bottom[:, 0])
        inside = across & down & (self._white != self._black)
        return torch.where(inside, row * len(left[0]) + column, -1).flatten().cpu()

    def _along(self, axis: int) -> Float[Tensor, "*feature"]:
        """Where along a side of the picture each feature is, from 0 to 1.

        Shades are whole numbers, too few for a long side: it is told window by window, by ramps that are level outside.
        """
        size = self.asked.view.picture.size[::-1]  # type: ignore[union-attr]
        middles = (np.arange(size[axis]) + 0.5) / size[axis]
        found = torch.zeros(self._white.shape, dtype=torch.float64)
        for window in range(WINDOWS):
            ramp = DARK + (LIGHT - DARK) * np.clip(middles * WINDOWS - window, 0, 1)
            shades = np.broadcast_to(ramp if axis else ramp[:, None], size)
            found += (self._share(shades) - DARK) / (LIGHT - DARK)
        return found / WINDOWS

    def _share(self, shades: Float[np.ndarray, "height width"]) -> Float[Tensor, "*feature"]:
        """How white each feature becomes of these shades, from 0 to 1; 0 where it is of no pixel."""
        found = self._hiding.in_shades(shades).pixels[self._name]
        return ((found - self._black).double() / (self._white - self._black).double()).nan_to_num(0.0, 0.0, 0.0).cpu()


def _within(
    places: Float[Tensor, "*feature"], starts: Float[Tensor, " part"], ends: Float[Tensor, " part"]
) -> tuple[Bool[Tensor, "*feature"], Int[Tensor, "*feature"]]:
    """Whether each place, in pixels, is in one of the parts of a side, and in which."""
    number = (torch.searchsorted(starts.contiguous(), places, right=True) - 1).clamp(0, len(starts) - 1)
    return (places > starts[0] - 0.5) & (places < ends[-1] + 0.5), number
