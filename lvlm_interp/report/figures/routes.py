"""Where routes of attention are needed: what answers lose where they are cut."""

from __future__ import annotations

from matplotlib.axes import Axes

from lvlm_interp.errors import InputError
from lvlm_interp.interventions.routes import Routes
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import figure

STYLES = {"route": "-", "equal size": ":", "equal mass": "--"}


@figure
def route_lines(
    found: Routes,
    width: int | None = None,
    ax: Axes | None = None,
    *,
    controls: bool = True,
    title: str | None = None,
) -> Axes:
    """A line for each route over the layers in whose middle it is cut, with its interval; its controls are thin lines.

    Args:
        found: from `attention_routes`.
        width: of the windows; the widest that was measured by default.
        ax: where to draw.
        controls: draw what cuts of as many other keys (dotted), and of as much attention to others (dashed) do.
        title: another title.

    Raises:
        InputError: windows of this width were not measured.
    """
    width = max(found.widths) if width is None else width
    if width not in found.widths:
        raise InputError(f"windows of {list(found.widths)} layers were measured, not of {width}")
    ax, w = drawing.axes(ax, 5.6, 3.2), found.widths.index(width)
    ax.axhline(0, linewidth=0.8, color=drawing.ink(ax), alpha=0.4)
    for n, name in enumerate(found.routes):
        (line,) = ax.plot(found.layers, found.change[n, 0, w], marker="o", markersize=2.5, label=name)
        ax.fill_between(found.layers, found.low[n, 0, w], found.high[n, 0, w], color=line.get_color(), alpha=0.2, lw=0)
        for k, kind in enumerate(found.kinds[1:] if controls else (), 1):
            ax.plot(found.layers, found.change[n, k, w], STYLES[kind], color=line.get_color(), linewidth=0.8)
    ax.set(xlabel="layer", ylabel=f"change of {found.value}, {found.unit}")
    layers = "1 layer" if width == 1 else f"{width} layers"
    drawing.title(ax, title or f"routes cut in {layers}, {found.examples} examples")
    ax.legend(frameon=False)
    drawing.quiet(ax)
    return ax
