"""Where each word came from: stacked bars."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb

from lvlm_interp.attribution.credit import CreditSplit
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import MARK, figure
from lvlm_interp.report.palette import SOURCES, Mode

NO_ROLE, PALEST = {"light": "#303030", "dark": "#d0d0d0"}, 0.75


@figure
def credit_bars(split: CreditSplit, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Stacked bars: for each word what speaks for it right of zero, what speaks against it left, the total marked.

    Args:
        split: from `credit`; the value that it shows first is drawn.
        ax: where to draw.
        title: names the value by default.
    """
    ax = drawing.axes(ax, 7.0, 1.4 + 0.42 * len(split.tokens))
    rows, parts = (
        np.arange(len(split.tokens)),
        {"prior": split.prior, **dict(zip(split.players, split.credits.T, strict=True))},
    )
    mode = drawing.ground(ax)
    colors = {"prior": SOURCES["prior"].color(mode), **player_colors(split, mode)}
    right, left = np.zeros(len(rows)), np.zeros(len(rows))
    for name, credits in parts.items():
        values = credits.numpy()
        start = np.where(values >= 0, right, left)
        ax.barh(rows, values, left=start, height=0.62, color=colors[name])
        right, left = right + values.clip(min=0), left + values.clip(max=0)
    ax.plot(split.total.numpy(), rows, "D", color="white", markeredgecolor=MARK, markersize=6)
    drawing.word_axis(ax, split.tokens)
    ax.set_xlabel(f"{split.unit} ({split.value}); the parts add up to the total")
    labels = {SOURCES[name].label if name in SOURCES else name: color for name, color in colors.items()}
    above = drawing.legend_above(ax, labels, "Total")
    drawing.title(ax, title or f"Where each word came from, by {split.value}", above=above)
    return ax


def player_colors(split: CreditSplit, mode: Mode = "light") -> dict[str, str]:
    """Each player in the colour of its role, the parts of one role ever paler; players of no role in grey."""
    found: dict[str, str] = {}
    parts = dict(zip(split.players, split.player_roles, strict=True))
    for name, role in parts.items():
        alike = [other for other, its in parts.items() if its == role]
        color = SOURCES[role].color(mode) if role in SOURCES else NO_ROLE[mode]
        found[name] = _paler(color, alike.index(name) / len(alike))
    return found


def _paler(color: str, share: float) -> str:
    red, green, blue = to_rgb(color)
    lift = PALEST * share
    return to_hex((red + (1 - red) * lift, green + (1 - green) * lift, blue + (1 - blue) * lift))
