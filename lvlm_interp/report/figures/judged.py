"""How often each definition of credit is right: points with intervals, guesses in grey."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from lvlm_interp.attribution.judging import ALL, BY_KIND, CONSTANT, Judgement
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import figure

OURS, GUESSED = "#0072b2", "#7a7a7a"


@figure
def judged_definitions(found: Judgement, kind: str = ALL, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """For each definition the share of examples whose deciding source it names, with its interval.

    Args:
        found: from `judged`.
        kind: of question.
        ax: where to draw.
        title: says the kind and the number of examples by default.

    Raises:
        InputError: the kind was not judged.
    """
    shares = np.array([found.of(name, kind) for name in found.definitions])
    column = found.kinds.index(kind)
    low, high = found.low[:, column].numpy(), found.high[:, column].numpy()
    ax = drawing.axes(ax, 7.0, 1.4 + 0.36 * len(shares))
    rows = np.arange(len(shares))
    colors = [drawing.shade(ax, GUESSED if name in (CONSTANT, BY_KIND) else OURS) for name in found.definitions]
    ax.grid(axis="x", color=drawing.ink(ax), alpha=0.15, linewidth=0.6)
    ax.hlines(rows, low, high, colors=colors, linewidth=2.0)
    ax.plot(shares, rows, "o", color=drawing.ink(ax), markersize=5, label="right")
    drawing.bar_axis(ax, found.definitions)
    ax.set_xlim(0, 1.02)
    ax.set_xlabel(f"share of examples whose deciding source is named; lines: {found.confidence:.0%} interval")
    drawing.title(ax, title or f"Definitions of credit, {kind} ({int(found.counts[column])} examples)")
    return ax
