"""What one layer would say of each patch: words, or the probability of one, over the picture."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.inputs.sources import ImageLike
from lvlm_interp.inputs.view import Box, ImageView
from lvlm_interp.inside.lens import Lens
from lvlm_interp.report.figures import coloring, drawing, lettering
from lvlm_interp.report.figures.drawing import figure
from lvlm_interp.report.figures.lettering import quoted, token_text

LEAST = 0.05  # probability up to which the scale is logarithmic: a linear one would leave such maps blank
DECADES = 4  # that it then spans at most
OPAQUE = 0.75
CELL, WIDEST = 0.5, 12.0  # of a patch with a word in a figure of its own, and of the figure, as sizes of figures are
LARGEST, LEAST_LETTERS = 0.7, 0.3  # ems of a word


@figure
def word_map(
    found: Lens,
    view: ImageView,
    layer: int = -1,
    target: str | None = None,
    picture: ImageLike | None = None,
    ax: Axes | None = None,
    *,
    cmap: str | Colormap | None = None,
    title: str | None = None,
) -> Axes:
    """One layer of a lens over the picture: each patch its likeliest word, or the probability of a target.

    Args:
        found: from `lens`, with the positions of this image.
        view: the image, `x.images[k]`.
        layer: which of `found.layers`, counted from their end if negative.
        target: a target of the lens: a heatmap of its probability in the place of words. Where it stays below 5%
            everywhere, the scale is logarithmic.
        picture: the original image; the view's own by default.
        ax: where to draw.
        cmap: another colour map, a sequential one.
        title: by default what is shown.

    Raises:
        InputError: the image's tokens have no place that is known, or were not read by this lens; no such layer or
            colour map; a picture of another size.
    """
    cells, boxes, background = _known(view, picture)
    if not -len(found.layers) <= layer < len(found.layers):
        raise InputError(f"no layer number {layer} of the {len(found.layers)} that this lens read, {found.layers}")
    rows = _rows(found, view.positions[cells.flatten()].tolist())
    scores = found.of(target)[layer] if target else found.top_logprobs[layer, :, 0]
    chance = np.array(scores[rows].exp().tolist())
    ax = drawing.axes(ax, *_inches(background.size, None if target else cells.shape[1]))
    drawing.picture_axis(ax, background.size, background)
    scale, label = _scale(chance, cmap)
    colors = scale.to_rgba(chance.clip(*scale.get_clim()), alpha=OPAQUE)
    for box, color in zip(boxes, colors, strict=True):
        _fill(ax, box, color)
    if target is None:
        _write(ax, [found.top_words[layer][row][0] for row in rows], boxes, colors)
    what = f"probability of {quoted(target)}" if target else "likeliest word of each patch"
    drawing.title(ax, title or f"{what}, after {found.layers[layer]} blocks", "center")
    coloring.color_bar(ax, scale, label)
    return ax


def _inches(size: tuple[int, int], columns: int | None) -> tuple[float, float]:
    """A figure of its own: wide enough for words, where there are any."""
    width, height = drawing.fitting(size)
    wide = 1.0 if columns is None else max(1.0, min(WIDEST, CELL * columns) / (width - 1.3))
    return (width - 1.3) * wide + 1.3, (height - 0.9) * wide + 0.9


def _scale(chance: np.ndarray, cmap: str | Colormap | None) -> tuple[ScalarMappable, str]:
    top = float(chance.max())
    if top >= LEAST or top <= 0:
        return ScalarMappable(Normalize(0, max(LEAST, top)), coloring.colors(cmap)), "probability"
    low = min(max(float(chance.min()), top / 10**DECADES), top / 2)
    return ScalarMappable(LogNorm(low, top), coloring.colors(cmap)), "probability, log scale"


def _known(view: ImageView, picture: ImageLike | None) -> tuple[Tensor, list[Box], Image.Image]:
    """Which tokens stand where, their boxes in the same order, and the picture to draw on."""
    if view.cells is None:
        raise InputError(view.no_grid)
    if view.patches is None or view.picture is None:
        raise InputError("the original picture is not known; prepare the example with it")
    given = drawing.picture_of(picture, view.picture.size, "the lens read")
    boxes = [view.patches[cell] for cell in view.cells.flatten().tolist()]
    return view.cells, [box for box in boxes if box is not None], given or view.picture


def _rows(found: Lens, wanted: list[int]) -> list[int]:
    """Where positions of the prompt stand among those of the lens."""
    at = {position: row for row, position in enumerate(found.positions.tolist())}
    if missing := [position for position in wanted if position not in at]:
        raise InputError(f"this lens did not read position {missing[0]} of the image; use positions='image'")
    return [at[position] for position in wanted]


def _fill(ax: Axes, box: Box, color: np.ndarray) -> None:
    left, top, right, bottom = box
    ax.add_patch(Rectangle((left, top), right - left, bottom - top, color=tuple(color), lw=0))


def _write(ax: Axes, words: list[str], boxes: list[Box], colors: np.ndarray) -> None:
    """Each word in its patch, as large as it may be there, and cut where it would reach into the next."""
    a_pixel = min(lettering.points(ax, "width") / (ax.get_xlim()[1]), lettering.points(ax, "height") / ax.get_ylim()[0])
    em = lettering.em()
    for word, (left, top, right, bottom), color in zip(words, boxes, colors, strict=True):
        room = a_pixel * (right - left)
        size = min(LARGEST * em, 0.7 * a_pixel * (bottom - top), max(LEAST_LETTERS * em, 0.3 * room))
        text = token_text(word, max(2, int(room / (0.62 * size))))
        ink = drawing.ink_on(color)
        ax.text((left + right) / 2, (top + bottom) / 2, text, ha="center", va="center", fontsize=size, color=ink)
