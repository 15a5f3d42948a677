"""What each layer would say: a grid of layers and positions."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap

from lvlm_interp.inside.lens import Lens
from lvlm_interp.report.figures import coloring, drawing, lettering
from lvlm_interp.report.figures.drawing import figure
from lvlm_interp.report.figures.lettering import token_text

FEW_CELLS, FEW_POSITIONS = 600, 40  # with more, words in cells would not be read
LETTERS = 9  # in a cell
NARROWEST, WIDEST = 3.0, 12.0  # of cells, as sizes of figures are


@figure
def lens_grid(
    found: Lens,
    ax: Axes | None = None,
    *,
    words: bool | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
) -> Axes:
    """Layers × positions: the likeliest word in each cell, coloured by its probability; the last layer on top.

    Args:
        found: from `lens`.
        ax: where to draw.
        words: write the words; by default where there are at most 600 cells and 40 positions, in a figure of its own or
            in Axes with room for them.
        cmap: another colour map, a sequential one.
        title: by default what is shown.

    Raises:
        InputError: no such colour map.
    """
    layers, positions = found.entropy.shape
    written = layers * positions <= FEW_CELLS and positions <= FEW_POSITIONS if words is None else words
    width = max(NARROWEST, 0.55 * positions if written else min(WIDEST, 0.08 * positions))
    given, ax = ax is not None, drawing.axes(ax, 1.6 + width, 1.2 + drawing.high(layers, 0.24))
    chance = found.top_logprobs[..., 0].exp().numpy()
    image = ax.imshow(chance, cmap=coloring.colors(cmap), vmin=0, vmax=1, aspect="auto", origin="lower")
    if words or (written and (not given or _fits(ax, layers, positions))):
        _write(ax, found, image, chance)
    drawing.position_ticks(ax, found.tokens)
    drawing.layer_ticks(ax, found.layers)
    drawing.title(ax, title or "Likeliest next word after each layer")
    drawing.quiet(ax)
    coloring.color_bar(ax, image, "probability")
    return ax


def _fits(ax: Axes, layers: int, positions: int) -> bool:
    em = lettering.em()
    return lettering.points(ax, "width") > 2.4 * em * positions and lettering.points(ax, "height") > 0.9 * em * layers


def _write(ax: Axes, found: Lens, scale: ScalarMappable, chance: np.ndarray) -> None:
    size = 0.65 * lettering.em()
    for (row, column), p in np.ndenumerate(chance):
        word, ink = token_text(found.top_words[row][column][0], LETTERS), drawing.ink_on(scale.to_rgba(p))
        ax.text(column, row, word, ha="center", va="center", fontsize=size, color=ink, clip_on=True)
