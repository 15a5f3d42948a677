"""How much of a behaviour the first components of several orders make."""

from __future__ import annotations

from typing import Any, Literal

from matplotlib.axes import Axes

from lvlm_interp.errors import InputError
from lvlm_interp.interventions.circuits import RANDOM, Circuits
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import figure


@figure
def circuit_curves(
    found: Circuits,
    kind: Literal["faithfulness", "completeness"] = "faithfulness",
    ax: Axes | None = None,
    *,
    title: str | None = None,
) -> Axes:
    """A line for each order over the share of components that is kept, on a logarithmic axis.

    Args:
        found: from `circuits`.
        kind: of these components alone, with its interval; or of all others without them (`completeness`).
        ax: where to draw.
        title: another title.

    Raises:
        InputError: another kind.
    """
    if kind not in ("faithfulness", "completeness"):
        raise InputError(f"kind is 'faithfulness' or 'completeness', got {kind!r}")
    ax = drawing.axes(ax, 4.6, 3.2)
    for level in (0, 1):
        ax.axhline(level, linewidth=0.8, color=drawing.ink(ax), alpha=0.4)
    for n, (name, values) in enumerate(zip(found.orders, getattr(found, kind), strict=True)):
        style: dict[str, Any] = {"color": "0.6", "linestyle": ":"} if name == RANDOM else {}
        (line,) = ax.plot(found.sizes, values, marker="o", markersize=3, label=name, **style)
        if kind == "faithfulness":
            ax.fill_between(found.sizes, found.low[n], found.high[n], color=line.get_color(), alpha=0.15, linewidth=0)
    ax.set_xscale("log")
    ax.set_xticks(found.sizes, [f"{size:g}" for size in found.sizes])
    ax.minorticks_off()
    ax.set(xlabel="share of heads and MLPs kept", ylabel=kind)
    drawing.title(ax, title or f"{kind}, pairs: {found.pairs}")
    ax.legend(frameon=False)
    drawing.quiet(ax)
    return ax
