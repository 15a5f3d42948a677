"""What an answer gains by an intervention at one place after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from lvlm_interp.errors import InputError
from lvlm_interp.interventions.sweep import Sweep
from lvlm_interp.report.figures import coloring, drawing, lettering
from lvlm_interp.report.figures.drawing import figure


@figure
def sweep_map(
    found: Sweep,
    part: int | str = 0,
    ax: Axes | None = None,
    *,
    limit: float | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
) -> Axes:
    """The change of one part under each intervention: a line over one axis, a map over two.

    Args:
        found: from `sweep`, over one axis or two, such as layers and heads.
        part: which part of the answer: its number, from 0, or its text.
        ax: where to draw.
        limit: values at the ends of the colour scale of a map; the largest by default.
        cmap: another colour map of a map, a diverging one.
        title: names the part by default.

    Raises:
        InputError: no such part or colour map, or more than two axes.
    """
    if len(found.axes) > 2:
        raise InputError(f"a figure shows one axis or two; this sweep has {list(found.axes)}: draw its frame")
    part = drawing.number_of(found.parts, part, "the answer")
    changes = pd.Series(found.change[:, part].numpy(), pd.MultiIndex.from_tuples(found.labels, names=found.axes))
    ax = _line(found, changes, ax) if len(found.axes) == 1 else _map(found, changes, ax, limit, cmap)
    drawing.title(ax, title or f"{found.parts[part].strip()!r}: change of {found.value}")
    return ax


def _line(found: Sweep, changes: pd.Series, ax: Axes | None) -> Axes:
    names = [str(label) for (label,) in found.labels]
    ax = drawing.axes(ax, min(8.0, 2.4 + 0.2 * len(names)), 2.6)
    ax.axhline(0, linewidth=0.8, color=drawing.ink(ax), alpha=0.4)
    ax.plot(range(len(names)), changes.to_numpy(), marker="o", markersize=3)
    _ticks(ax, names, "x")
    ax.set_xlabel(found.axes[0])
    ax.set_ylabel(f"change, {found.unit}")
    drawing.quiet(ax)
    return ax


def _map(found: Sweep, changes: pd.Series, ax: Axes | None, limit: float | None, cmap: str | Colormap | None) -> Axes:
    down, across = (list(dict.fromkeys(label[n] for label in found.labels)) for n in (0, 1))
    values = np.full((len(down), len(across)), np.nan)
    for (row, column), change in changes.items():  # layers may have other numbers of heads
        values[down.index(row), across.index(column)] = change
    ax = drawing.axes(ax, 2.2 + 0.3 * len(across), 1.4 + drawing.high(len(down), 0.16))
    largest = float(np.nanmax(np.abs(values))) or None
    coloring.signed_square(ax, values, found.unit, largest if limit is None else limit, cmap, origin="lower")
    _ticks(ax, list(map(str, across)), "x")
    _ticks(ax, list(map(str, down)), "y")
    ax.set_xlabel(found.axes[1])
    ax.set_ylabel(found.axes[0])
    drawing.quiet(ax)
    return ax


def _ticks(ax: Axes, names: Sequence[str], along: str) -> None:
    """As many names as there is room for; long ones stand slanted."""
    longest = max(map(len, names))
    if along == "y":
        every = lettering.step(len(names), ax, "height", ems=1.2)
        ax.set_yticks(range(0, len(names), every), names[::every])
        return
    every = lettering.step(len(names), ax, "width", ems=min(2.0, 0.8 * longest))
    slanted = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if longest > 4 else {}
    ax.set_xticks(range(0, len(names), every), names[::every], **slanted)
