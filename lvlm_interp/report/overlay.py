"""The original picture with a map on it, pixel for pixel, and a map as arrays."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from PIL import Image

from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import InputError
from lvlm_interp.given import checked
from lvlm_interp.heatmaps.pixels import at_pixels
from lvlm_interp.inputs.sources import ImageLike
from lvlm_interp.report.figures import coloring, drawing
from lvlm_interp.report.pictures import faded
from lvlm_interp.report.scales import shared_limit
from lvlm_interp.results import number_of


@checked
def overlaid(
    patches: PatchMap,
    picture: ImageLike,
    token: int | str = 0,
    *,
    smooth: bool = False,
    limit: float | None = None,
    cmap: str | Colormap | None = None,
    fade: float = 0.55,
) -> Image.Image:
    """The picture with one part's map on it, pixel for pixel of the picture's own size.

    Args:
        patches: the map.
        picture: the original image.
        token: which of its parts.
        smooth: as in `at_pixels`.
        limit: the number at the ends of the colours, which are symmetric about 0; that of `figures.heatmap` by default.
        cmap: another colour map, a diverging one.
        fade: how far the picture is bleached, 0 … 1.

    Raises:
        InputError: no such part, a picture of another size, a limit or fade out of range.
    """
    number = number_of(patches.tokens, token, "the map")
    if not 0 <= fade <= 1 or (limit is not None and not 0 < limit < np.inf):
        raise InputError(f"fade is from 0 to 1, and a limit is above 0; got {fade}, {limit}")
    under: Any = drawing.picture_of(picture, patches.size, "the map is of")
    largest = limit or shared_limit(patches, number)
    scale = ScalarMappable(Normalize(-largest, largest), coloring.diverging(cmap))
    values = at_pixels(patches, number, smooth)
    colors = scale.to_rgba(np.nan_to_num(values))
    opaque = np.where(np.isnan(values), 0.0, colors[..., 3])[..., None]
    below = np.asarray(faded(under, fade).convert("RGB"), np.float64) / 255
    mixed = opaque * colors[..., :3] + (1 - opaque) * below
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def arrays_of(patches: PatchMap) -> dict[str, np.ndarray]:
    """A map as arrays by name: all of its numbers, and what they are as text; its provenance as JSON."""
    told = patches.to_dict()
    numbers = {name: value for name, value in vars(patches).items() if isinstance(value, torch.Tensor)}
    words = {name: np.array(getattr(patches, name), str) for name in ("tokens", "value", "unit", "says")}
    about = np.array(json.dumps(told["provenance"]))
    return {**{n: v.numpy() for n, v in numbers.items()}, **words, "size": np.array(patches.size), "provenance": about}
