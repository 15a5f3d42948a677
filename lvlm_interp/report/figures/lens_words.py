"""What one layer would say of each patch: words, or the probability of one, over the picture."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.inputs.view import Box, ImageView
from lvlm_interp.inside.lens import Lens
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import INK, SEQUENTIAL, figure

LEAST = 0.05  # probability at the end of the scale; less would blow up noise
LONGEST = 9  # letters in a patch


@figure
def word_map(
    found: Lens,
    view: ImageView,
    layer: int = -1,
    target: str | None = None,
    picture: Image.Image | None = None,
    ax: Axes | None = None,
    *,
    title: str | None = None,
) -> Axes:
    """One layer of a lens over the picture: each patch its likeliest word, or the probability of a target.

    Args:
        found: from `lens`, with the positions of this image.
        view: the image, `x.images[k]`.
        layer: which of `found.layers`, counted from their end if negative.
        target: a target of the lens: a heatmap of its probability in the place of words.
        picture: the original image; the view's own by default.
        ax: where to draw.
        title: by default what is shown.

    Raises:
        InputError: the image's tokens have no place that is known, or were not read by this lens; no such layer; a
            picture of another size.
    """
    cells, boxes, background = _known(view, picture)
    if not -len(found.layers) <= layer < len(found.layers):
        raise InputError(f"no layer number {layer} of the {len(found.layers)} that this lens read, {found.layers}")
    rows = _rows(found, view.positions[cells.flatten()].tolist())
    scores = found.of(target)[layer] if target else found.top_logprobs[layer, :, 0]
    chance = scores[rows].exp().tolist()
    ax = drawing.axes(ax, 4.8, 4.6)
    drawing.picture_axis(ax, background.size, background)
    scale = ScalarMappable(Normalize(0, max(LEAST, *chance)), SEQUENTIAL)
    for box, color in zip(boxes, scale.to_rgba(np.array(chance), alpha=0.75), strict=True):
        _fill(ax, box, color)
    if target is None:
        _write(ax, [found.top_words[layer][row][0] for row in rows], boxes, min(7.0, 64 / cells.shape[1]))
    what = f"probability of “{target}”" if target else "likeliest word of each patch"
    drawing.title(ax, title or f"{what}, after {found.layers[layer]} blocks")
    drawing.color_bar(ax, scale, "probability")
    return ax


def _known(view: ImageView, picture: Image.Image | None) -> tuple[Tensor, list[Box], Image.Image]:
    """Which tokens stand where, their boxes in the same order, and the picture to draw on."""
    if view.cells is None:
        raise InputError(view.no_grid)
    if view.patches is None or view.picture is None:
        raise InputError("the original picture is not known; prepare the example with it")
    drawing.need_size(picture, view.picture.size, "the lens read")
    boxes = [view.patches[cell] for cell in view.cells.flatten().tolist()]
    return view.cells, [box for box in boxes if box is not None], picture or view.picture


def _rows(found: Lens, wanted: list[int]) -> list[int]:
    """Where positions of the prompt stand among those of the lens."""
    at = {position: row for row, position in enumerate(found.positions.tolist())}
    if missing := [position for position in wanted if position not in at]:
        raise InputError(f"this lens did not read position {missing[0]} of the image; use positions='image'")
    return [at[position] for position in wanted]


def _fill(ax: Axes, box: Box, color: np.ndarray) -> None:
    left, top, right, bottom = box
    ax.add_patch(Rectangle((left, top), right - left, bottom - top, color=tuple(color), lw=0))


def _write(ax: Axes, words: list[str], boxes: list[Box], size: float) -> None:
    for word, (left, top, right, bottom) in zip(words, boxes, strict=True):
        text = drawing.token_text(word, LONGEST)
        ax.text((left + right) / 2, (top + bottom) / 2, text, ha="center", va="center", fontsize=size, color=INK)
