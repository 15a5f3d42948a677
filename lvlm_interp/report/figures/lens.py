"""What each layer would say: a grid of layers and positions."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from lvlm_interp.inside.lens import Lens
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import DARK, INK, SEQUENTIAL, figure

FEW_CELLS = 600  # with more, words in cells would not be read
LONGEST = 9  # letters in a cell


@figure
def lens_grid(found: Lens, ax: Axes | None = None, *, words: bool | None = None, title: str | None = None) -> Axes:
    """Layers × positions: the likeliest word in each cell, coloured by its probability; the last layer on top.

    Args:
        found: from `lens`.
        ax: where to draw.
        words: write the words; by default where there are at most 600 cells.
        title: by default what is shown.
    """
    layers, positions = found.entropy.shape
    ax = drawing.axes(ax, 1.2 + 0.55 * positions, 0.9 + 0.24 * layers)
    chance = found.top_logprobs[..., 0].exp().numpy()
    image = ax.imshow(chance, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto", origin="lower")
    if words if words is not None else layers * positions <= FEW_CELLS:
        _write(ax, found, chance)
    ax.set_xticks(range(positions), [drawing.token_text(token) for token in found.tokens], rotation=60, ha="right")
    every = max(1, layers // 16)
    ax.set_yticks(range(0, layers, every), [str(n) for n in found.layers[::every]])
    ax.set(xlabel="token at the position", ylabel="after n blocks")
    drawing.title(ax, title or "Likeliest next word after each layer")
    drawing.quiet(ax)
    drawing.color_bar(ax, image, "probability")
    return ax


def _write(ax: Axes, found: Lens, chance: np.ndarray) -> None:
    for (row, column), p in np.ndenumerate(chance):
        word = drawing.token_text(found.top_words[row][column][0], LONGEST)
        ax.text(column, row, word, ha="center", va="center", fontsize=6.5, color="white" if p > DARK else INK)
