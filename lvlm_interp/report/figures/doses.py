"""What pushes along a direction do, beside random ones."""

from __future__ import annotations

from matplotlib.axes import Axes

from lvlm_interp.interventions.dose import DoseResponse
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import figure


@figure
def dose_curve(found: DoseResponse, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """The mean over lengths with its interval; random directions of the same length are thin lines.

    Args:
        found: from `dose_response`.
        ax: where to draw.
        title: another title.
    """
    ax = drawing.axes(ax, 4.8, 3.2)
    order = sorted(range(len(found.alphas)), key=found.alphas.__getitem__)
    alphas = [found.alphas[n] for n in order]
    for n, row in enumerate(found.random):
        label = "random directions" if n == 0 else None
        ax.plot(alphas, row[order], ":", linewidth=0.9, color=drawing.ink(ax), alpha=0.5, label=label)
    (line,) = ax.plot(alphas, found.mean[order], marker="o", markersize=3, label="the direction")
    ax.fill_between(alphas, found.low[order], found.high[order], color=line.get_color(), alpha=0.2, lw=0)
    ax.axvline(0, linewidth=0.8, color=drawing.ink(ax), alpha=0.4)
    ax.set(xlabel="α, lengths of the direction", ylabel=f"{found.value}, {found.unit}")
    drawing.title(ax, title or f"pushes, examples: {found.examples}")
    ax.legend(frameon=False)
    drawing.quiet(ax)
    return ax
