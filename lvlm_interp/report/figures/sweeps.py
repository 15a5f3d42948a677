"""What an answer gains by an intervention at one place after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from lvlm_interp.errors import InputError
from lvlm_interp.interventions.sweep import Sweep
from lvlm_interp.interventions.tracing import Tracing
from lvlm_interp.report.figures import coloring, drawing, lettering
from lvlm_interp.report.figures.drawing import figure

Labels = Sequence[tuple[str | int, ...]]


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
    part = drawing.number_of(found.parts, part, "the answer")
    changes, unit = found.change[:, part].numpy(), f"change, {found.unit}"
    ax = _drawn(found.axes, found.labels, changes, unit, ax, limit, cmap)
    drawing.title(ax, title or f"{lettering.quoted(found.parts[part])}: change of {found.value}")
    return ax


@figure
def trace_map(
    found: Tracing,
    value: str | None = None,
    direction: Literal["denoising", "noising"] = "denoising",
    ax: Axes | None = None,
    *,
    limit: float | None = 1.0,
    cmap: str | Colormap | None = None,
    title: str | None = None,
) -> Axes:
    """The share of the difference between two runs that each place carries: a line over one axis, a map over two.

    Args:
        found: from `causal_trace`, over one axis or two.
        value: which value; the first by default.
        direction: what clean states bring back (`denoising`), or corrupt ones take (`noising`).
        ax: where to draw.
        limit: shares at the ends of the colour scale of a map; None means the largest.
        cmap: another colour map of a map, a diverging one.
        title: another title.

    Raises:
        InputError: no such value, direction or colour map, or more than two axes.
    """
    value = found.values[0] if value is None else value
    if value not in found.values or direction not in found.directions:
        raise InputError(f"values are {found.values}, directions {found.directions}; got {value!r}, {direction!r}")
    shares = found.share[found.values.index(value), found.directions.index(direction)].numpy()
    ax = _drawn(found.axes, found.labels, shares, "share of the difference", ax, limit, cmap)
    drawing.title(ax, title or f"{direction}, {value}, pairs: {found.pairs}")
    return ax


def _drawn(
    axes: Sequence[str],
    labels: Labels,
    numbers: np.ndarray,
    unit: str,
    ax: Axes | None,
    limit: float | None,
    cmap: str | Colormap | None,
) -> Axes:
    """A line over one axis, a map over two."""
    if len(axes) == 1:
        return _line(axes[0], [str(label) for (label,) in labels], numbers, unit, ax)
    if len(axes) > 2:
        raise InputError(f"a figure shows one axis or two; here are {list(axes)}: draw its frame")
    down, across = (list(dict.fromkeys(label[n] for label in labels)) for n in (0, 1))
    values = np.full((len(down), len(across)), np.nan)
    for (row, column), number in zip(labels, numbers, strict=True):  # layers may have other numbers of heads
        values[down.index(row), across.index(column)] = number
    ax = drawing.axes(ax, 2.2 + 0.3 * len(across), 1.4 + drawing.high(len(down), 0.16))
    largest = float(np.nanmax(np.abs(values))) or None
    coloring.signed_square(ax, values, unit, largest if limit is None else limit, cmap, origin="lower")
    _ticks(ax, list(map(str, across)), "x")
    _ticks(ax, list(map(str, down)), "y")
    ax.set(xlabel=axes[1], ylabel=axes[0])
    drawing.quiet(ax)
    return ax


def _line(axis: str, names: Sequence[str], numbers: np.ndarray, unit: str, ax: Axes | None) -> Axes:
    ax = drawing.axes(ax, float(np.clip(2.4 + 0.2 * len(names), 4.0, 8.0)), 2.6)
    ax.axhline(0, linewidth=0.8, color=drawing.ink(ax), alpha=0.4)
    ax.plot(range(len(names)), numbers, marker="o", markersize=3)
    _ticks(ax, names, "x")
    ax.set(xlabel=axis, ylabel=unit)
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
    slanted: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if longest > 4 else {}
    ax.set_xticks(range(0, len(names), every), names[::every], **slanted)
