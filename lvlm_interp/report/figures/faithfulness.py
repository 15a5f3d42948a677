"""How a value follows as patches come, or go, in the order of several maps."""

from __future__ import annotations

from typing import Any, Literal

from matplotlib.axes import Axes

from lvlm_interp.errors import InputError
from lvlm_interp.heatmaps.faithfulness import Faithfulness
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import figure
from lvlm_interp.report.figures.lettering import quoted

STANDS = {  # what is in the place of what is not seen
    "tokens": "tokens hidden",
    "mean": "mean colour",
    "blur": "blurred",
    "black": "black",
    "road": "what is around it, noisy",
    "picture": "another picture",
}


@figure
def faithfulness_curves(
    found: Faithfulness,
    kind: Literal["insertion", "deletion"] = "insertion",
    substrate: str | None = None,
    ax: Axes | None = None,
    *,
    title: str | None = None,
) -> Axes:
    """One line for each map: the value over the share of the patches that are seen, or gone.

    The dotted line is the mean of the areas under random orders: what a map's line must be above on average (insertion)
    or below (deletion). The legend has the area under each line.

    Args:
        found: from `faithfulness`.
        kind: patches come (`insertion`) or go (`deletion`), the most relevant first.
        substrate: what stands in the place of what is not seen; the first that was measured by default.
        ax: where to draw.
        title: names the part by default.

    Raises:
        InputError: another kind, or a substrate that was not measured.
    """
    name = found.substrates[0] if substrate is None else substrate
    if name not in found.substrates or kind not in ("insertion", "deletion"):
        raise InputError(
            f"kind is 'insertion' or 'deletion', substrate one of {list(found.substrates)}; got {kind!r}, {name!r}"
        )
    ax, number = drawing.axes(ax, 4.6, 3.4), found.substrates.index(name)
    curves, areas = getattr(found, kind)[:, number], getattr(found, f"{kind}_area")[:, number]
    for map_, revealed, values, area in zip(found.maps, found.revealed, curves, areas, strict=True):
        style: dict[str, Any] = {"color": "0.6", "linewidth": 1.0} if map_ == found.maps[-1] else {}
        ax.plot(revealed, values, label=f"{map_} ({float(area):.2f})", **style)
    null = float(getattr(found, f"random_{kind}")[:, number].mean())
    ax.axhline(null, color="0.4", linestyle=":", linewidth=0.9, label=f"random ({null:.2f})")
    verb = "seen" if kind == "insertion" else "gone"
    ax.set(
        xlabel=f"share of the patches {verb} (not seen: {STANDS.get(name, name)})",
        ylabel=f"{found.value}, {found.unit}",
    )
    drawing.title(ax, title or f"{kind.capitalize()}, {quoted(found.token)}")
    ax.legend(frameon=False)
    drawing.quiet(ax)
    return ax
