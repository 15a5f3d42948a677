"""Where in the image: one token's map over the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from PIL import Image

from lvlm_interp.attribution.occlusion import PatchMap
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import INK, figure
from lvlm_interp.report.palette import FAINT


@figure
def heatmap(
    patch_map: PatchMap,
    token: int = 0,
    picture: Image.Image | None = None,
    ax: Axes | None = None,
    *,
    limit: float | None = None,
    fade: float = 0.55,
    mark_peak: bool = True,
    colorbar: bool = True,
    title: str | None = None,
) -> Axes:
    """One token's map over the original picture, every patch drawn at its own pixel box.

    Args:
        patch_map: from `attribute`; by token or by word.
        token: which token or word, from 0.
        picture: the original image; without it the map stands alone.
        ax: where to draw.
        limit: nats at the ends of the colour scale, which is symmetric about 0; the largest absolute value by default,
            at least 0.01.
        fade: how far the picture is bleached under the map, 0 (as it is) … 1 (white), so that the map's colours are the
            only ones.
        mark_peak: outline the patch that supports the token most.
        colorbar: draw the scale.
        title: by default the token, and what it is held against.

    Raises:
        InputError: no such token, or a picture of another size than the map was made for.
    """
    drawing.need_token(patch_map.tokens, token, "the map")
    drawing.need_size(picture, patch_map.size, "the map is of")
    values, boxes = patch_map.values[token].double().numpy().ravel(), patch_map.boxes.numpy().reshape(-1, 4)
    ax = drawing.axes(ax, 4.6, 4.0)
    drawing.picture_axis(ax, patch_map.size, picture, fade)
    largest = limit or max(FAINT, float(np.abs(values).max()))
    scale = ScalarMappable(Normalize(-largest, largest), drawing.diverging())
    ax.add_collection(_tiles(boxes, values, scale))
    if mark_peak and values.max() > 0:
        ax.add_patch(_rectangle(boxes[int(values.argmax())], fill=False, edgecolor=INK, linewidth=1.4))
    if patch_map.size[::-1] == patch_map.values.shape[1:]:  # the original picture is not known
        ax.set_xlabel("patches")
    drawing.title(ax, title or _asked(patch_map, token), "center")
    if colorbar:
        lost = {"logodds": "log-odds"}.get(patch_map.value, patch_map.value)
        drawing.color_bar(ax, scale, f"{lost} lost when the patch is hidden, {patch_map.unit}", pad=0.03)
    return ax


def _asked(patch_map: PatchMap, token: int) -> str:
    """The token, and the one foil that it is held against: two maps of one word must not look the same."""
    foils = [foil.strip() for foil in patch_map.alternatives[token]] if patch_map.alternatives else []
    against = f" rather than “{foils[0]}”" if len(foils) == 1 else f" rather than {len(foils)} others" if foils else ""
    return f"“{patch_map.tokens[token]}”{against}"


def _tiles(boxes: np.ndarray, values: np.ndarray, scale: ScalarMappable) -> PatchCollection:
    # Smoothed edges of neighbours would let the picture shine through as a grid.
    drawn = PatchCollection(
        [_rectangle(box) for box in boxes], cmap=scale.cmap, norm=scale.norm, linewidth=0, antialiased=False
    )
    drawn.set_array(values)
    return drawn


def _rectangle(box: np.ndarray, **style: Any) -> Rectangle:
    left, top, right, bottom = box
    return Rectangle((left, top), right - left, bottom - top, **style)
