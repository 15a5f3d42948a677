"""Where in the image: one token's map over the picture."""

from __future__ import annotations

import math
import numbers
from typing import Any, Literal, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import InputError
from lvlm_interp.heatmaps.pixels import at_pixels
from lvlm_interp.inputs.sources import ImageLike
from lvlm_interp.report.figures import coloring, drawing
from lvlm_interp.report.figures.drawing import MARK, figure
from lvlm_interp.report.figures.lettering import quoted
from lvlm_interp.report.scales import own_limit, shared_limit


@figure
def heatmap(
    patch_map: PatchMap,
    token: int | str = 0,
    picture: ImageLike | None = None,
    ax: Axes | None = None,
    *,
    limit: float | Literal["shared", "own"] | None = None,
    cmap: str | Colormap | None = None,
    fade: float = 0.55,
    mark_peak: bool = True,
    smooth: bool = False,
    colorbar: bool = True,
    title: str | None = None,
) -> Axes:
    """One token's map over the original picture, every patch drawn at its own pixel box.

    Args:
        patch_map: from `attribute`; by token or by word.
        token: which token or word: its number, from 0, or its text.
        picture: the original image; without it the map stands alone.
        ax: where to draw.
        limit: nats at the ends of the colour scale, which is symmetric about 0. `shared`, the default, is the largest
            absolute value of any word of this map, so that words can be compared: what does little looks faint.
            `own` is that of this token; a number puts several maps on one scale. At least 0.01, if it is not given.
        cmap: another colour map, a diverging one, by matplotlib's name; purple over nothing to orange by default.
        fade: how far the picture is bleached under the map, 0 (as it is) … 1 (white), so that the map's colours are the
            only ones.
        mark_peak: outline the patch that supports the token most.
        smooth: straight between the middles of patches; what is drawn in between, nothing has measured.
        colorbar: draw the scale.
        title: by default the token, and what it is held against.

    Raises:
        InputError: no such token or colour map, a picture of another size than the map was made for, or a limit or
            fade that is out of its range.
        ImageError: the picture cannot be read.
    """
    token = drawing.number_of(patch_map.tokens, token, "the map")
    if not 0 <= fade <= 1:
        raise InputError(f"fade is from 0, the picture as it is, to 1, white; got {fade}")
    under = drawing.picture_of(picture, patch_map.size, "the map is of")
    ax = drawing.axes(ax, *drawing.fitting(patch_map.size))
    drawing.picture_axis(ax, patch_map.size, under, fade)
    values, boxes = patch_map.values[token].double().numpy().ravel(), patch_map.boxes.numpy().reshape(-1, 4)
    largest = _largest(patch_map, token, limit)
    scale = ScalarMappable(Normalize(-largest, largest), coloring.diverging(cmap))
    if smooth:
        _smoothed(ax, patch_map, token, scale)
    else:
        ax.add_collection(_tiles(boxes, values, scale))
    if mark_peak and values.max() > 0:
        ax.add_patch(_outline(boxes[int(values.argmax())]))
    if ax.get_xlabel() and patch_map.size[::-1] == patch_map.values.shape[1:]:  # the original picture is not known
        ax.set_xlabel("patches")
    drawing.title(ax, title or _asked(patch_map, token), "center")
    if colorbar:
        lost = {"logodds": "log-odds"}.get(patch_map.value, patch_map.value)
        what = lost if drawing.is_small(ax) else f"{lost} {patch_map.says}"
        coloring.color_bar(ax, scale, f"{what}, {patch_map.unit}")
    return ax


def _largest(patch_map: PatchMap, token: int, limit: float | str | None) -> float:
    if limit not in ("shared", "own", None) and not (isinstance(limit, numbers.Real) and 0 < limit < math.inf):
        raise InputError(f"limit is 'shared', 'own', or a number of nats above 0; got {limit!r}")
    if isinstance(limit, numbers.Real):
        return float(limit)
    return own_limit(patch_map, token) if limit == "own" else shared_limit(patch_map, token)


def _asked(patch_map: PatchMap, token: int) -> str:
    """The token, and the one foil that it is held against: two maps of one word must not look the same."""
    foils = patch_map.alternatives[token] if patch_map.alternatives else ()
    against = f" rather than {quoted(foils[0])}" if len(foils) == 1 else f" rather than {len(foils)} others"
    return quoted(patch_map.tokens[token]) + (against if foils else "")


def _smoothed(ax: Axes, patch_map: PatchMap, token: int, scale: ScalarMappable) -> None:
    width, height = patch_map.size
    values = np.ma.masked_invalid(at_pixels(patch_map, token, smooth=True))
    shown = ax.imshow(
        values, cmap=scale.cmap, norm=cast(Normalize, scale.norm), extent=(0, width, height, 0), interpolation="nearest"
    )
    shown.set_zorder(1)  # as the patches would be, above the picture


def _tiles(boxes: np.ndarray, values: np.ndarray, scale: ScalarMappable) -> PatchCollection:
    # Smoothed edges of neighbours would let the picture shine through as a grid.
    drawn = PatchCollection(
        [_rectangle(box) for box in boxes], cmap=scale.cmap, norm=scale.norm, linewidth=0, antialiased=False
    )
    drawn.set_array(values)
    return drawn


def _outline(box: np.ndarray) -> Rectangle:
    """Dark, and light around it: to be seen on a picture that is not bleached."""
    light = [Stroke(linewidth=3.0, foreground="white", alpha=0.7), Normal()]
    return _rectangle(box, fill=False, edgecolor=MARK, linewidth=1.4, path_effects=light)


def _rectangle(box: np.ndarray, **style: Any) -> Rectangle:
    left, top, right, bottom = box
    return Rectangle((left, top), right - left, bottom - top, **style)
