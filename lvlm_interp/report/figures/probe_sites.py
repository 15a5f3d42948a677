"""What can be decoded where: layers down, heads across."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize

from lvlm_interp.probes.result import ProbeResult
from lvlm_interp.report.figures import coloring, drawing, lettering
from lvlm_interp.report.figures.drawing import figure
from lvlm_interp.report.figures.labels import need_types, plain, row_numbers, with_unit


@figure
def probe_map(
    found: ProbeResult,
    metric: str | None = None,
    ax: Axes | None = None,
    *,
    cmap: str | Colormap | None = None,
    title: str | None = None,
) -> Axes:
    """Layers × heads: what can be decoded at each, with a dot where it is more than chance: see `ProbeResult.better`.

    Args:
        found: from `fit_probes`, its sites given as `[layer, head]`; one row of sites is drawn as one column.
        metric: one of `found.metrics`, the first by default; or `selectivity`.
        ax: where to draw.
        cmap: another colour map, a sequential one.
        title: names the metric by default.

    Raises:
        InputError: no such metric or colour map.
    """
    name = metric or found.metrics[0]
    values, floor = _scores(found, name)
    ax = drawing.axes(ax, 2.2 + 0.36 * values.shape[1], 1.4 + drawing.high(len(values), 0.16))
    scale = Normalize(min(floor, float(np.nanmin(values))), max(floor + 1e-6, float(np.nanmax(values))))
    image = ax.imshow(values, cmap=coloring.colors(cmap), norm=scale, aspect="auto", origin="lower")
    _mark(ax, found, name, image, values)
    ax.set_xticks(range(0, values.shape[1], lettering.step(values.shape[1], ax, "width", ems=2.0)))
    drawing.layer_ticks(ax, *row_numbers(found, len(values)))
    ax.set_xlabel("head" if values.shape[1] > 1 else "")
    drawing.title(ax, title or f"{plain(name)} of held-out probes (• above chance, q ≤ {found.alpha:g})", "center")
    drawing.quiet(ax)
    coloring.color_bar(ax, image, with_unit(name))
    return ax


def _scores(found: ProbeResult, name: str) -> tuple[np.ndarray, float]:
    """The scores `[layer, head]`, and what guessing gets."""
    if name == "selectivity":
        need_types(found)
        scores, floor = found.selectivity.view(found.site_shape), 0.0
    else:
        scores, floor = found.of(name), float(found.baseline[found.metrics.index(name)])
    return scores.reshape(len(scores), -1).numpy(), floor


def _mark(ax: Axes, found: ProbeResult, name: str, scale: ScalarMappable, values: np.ndarray) -> None:
    """A dot where a score is more than chance, to be seen on any cell."""
    rows, columns = found.better(name).view(values.shape).numpy().nonzero()
    colors = [drawing.ink_on(color) for color in scale.to_rgba(values[rows, columns])]
    ax.scatter(columns, rows, s=5, color=colors, linewidths=0, label=f"q ≤ {found.alpha:g}")
