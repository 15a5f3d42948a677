"""A map's numbers at the pixels of the original picture."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import InputError
from lvlm_interp.given import checked
from lvlm_interp.heatmaps.regions import pixels_in
from lvlm_interp.results import number_of


@checked
def at_pixels(patches: PatchMap, token: int | str = 0, smooth: bool = False) -> Float[np.ndarray, "height width"]:
    """The map's number at each pixel of the original picture, in the map's unit; NaN where no patch is.

    Args:
        patches: the map.
        token: which of its parts, a number or the text.
        smooth: straight between the middles of patches (bilinear), rather than a patch's number at all of its pixels.

    Raises:
        InputError: no such part; or patches that are no lattice, between which nothing is straight.
    """
    values = patches.values[number_of(patches.tokens, token, "the map")].double().numpy()
    boxes = patches.boxes.double().numpy()
    found = np.full((patches.size[1], patches.size[0]), np.nan)
    if smooth:
        _need_lattice(boxes)
        where = pixels_in([*boxes[0, 0, :2], *boxes[-1, -1, 2:]], found.shape)
        middles = (boxes[..., :2] + boxes[..., 2:]) / 2
        rows, columns = (np.arange(side.start, side.stop) + 0.5 for side in where)
        along = np.stack([np.interp(columns, middles[0, :, 0], row) for row in values])
        found[where] = np.stack([np.interp(rows, middles[:, 0, 1], column) for column in along.T], 1)
        return found
    for box, value in zip(boxes.reshape(-1, 4).tolist(), values.ravel(), strict=True):
        found[pixels_in(box, found.shape)] = value
    return found


def _need_lattice(boxes: Float[np.ndarray, "row column 4"]) -> None:
    """Raise unless rows have their tops and bottoms in common, and columns their sides."""
    level = np.ptp(boxes[..., 1::2], axis=1).max() + np.ptp(boxes[..., ::2], axis=0).max()
    if level > 1e-3:
        raise InputError("these patches are no lattice of rows and columns: smooth=True has nothing to go between")
