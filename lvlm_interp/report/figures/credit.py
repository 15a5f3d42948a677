"""Where each word came from: stacked bars."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from lvlm_interp.attribution.credit import CreditSplit
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import INK, figure
from lvlm_interp.report.palette import SOURCES


@figure
def credit_bars(split: CreditSplit, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Stacked bars: for each word what speaks for it right of zero, what speaks against it left, the total marked.

    Args:
        split: from `credit`; the value that it shows first is drawn.
        ax: where to draw.
        title: names the value by default.
    """
    ax = drawing.axes(ax, 7.0, 1.4 + 0.42 * len(split.tokens))
    rows, sources = np.arange(len(split.tokens)), [SOURCES[name] for name in ("prior", *split.roles)]
    right, left = np.zeros(len(rows)), np.zeros(len(rows))
    for source in sources:
        values = split.of(source.name).numpy()
        start = np.where(values >= 0, right, left)
        ax.barh(rows, values, left=start, height=0.62, color=source.color())
        right, left = right + values.clip(min=0), left + values.clip(max=0)
    ax.plot(split.total.numpy(), rows, "D", color="white", markeredgecolor=INK, markersize=6)
    drawing.word_axis(ax, split.tokens)
    ax.set_xlabel(f"nats ({split.value}); the parts add up to the total")
    drawing.title(ax, title or f"Where each word came from, by {split.value}")
    drawing.legend_below(ax, {source.label: source.color() for source in sources}, "Total")
    return ax
