"""What goes from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from lvlm_interp.interventions.edges import Edges
from lvlm_interp.report.figures import coloring, drawing, lettering
from lvlm_interp.report.figures.drawing import figure


@figure
def edge_map(
    found: Edges,
    ax: Axes | None = None,
    *,
    limit: float | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
) -> Axes:
    """Layers that read × layers that write: the sums of all scores of the edges between them, in logits.

    The embedding stands before the first layer, the logits behind the last. A row adds up to what exchanging all that
    its layer reads does.

    Args:
        found: from `edge_attribution`.
        ax: where to draw.
        limit: logits at the ends of the colour scale; the largest by default.
        cmap: another colour map, a diverging one.
        title: another title.

    Raises:
        InputError: no such colour map.
    """
    senders, receivers = (list(dict.fromkeys(map(_layer, names))) for names in (found.senders, found.receivers))
    sums = np.zeros((len(receivers), len(senders)))
    places = (
        [receivers.index(_layer(name)) for name in found.receivers],
        [senders.index(_layer(n)) for n in found.senders],
    )
    np.add.at(sums, np.ix_(*places), found.score.nan_to_num(0.0).numpy())
    ax = drawing.axes(ax, 2.4 + drawing.high(len(senders), 0.16), 1.4 + drawing.high(len(receivers), 0.16))
    coloring.signed_square(ax, sums, "change of the lead, logits", limit, cmap, origin="lower")
    _ticks(ax, senders, receivers)
    drawing.title(ax, title or f"from layer to layer, pairs: {found.pairs}")
    drawing.quiet(ax)
    return ax


def _layer(name: str) -> str:
    """`L12` of `L12H3 q`; the embedding and the logits are their own."""
    return name.split()[0].partition("H")[0].partition("KV")[0]


def _ticks(ax: Axes, senders: Sequence[str], receivers: Sequence[str]) -> None:
    across = range(0, len(senders), lettering.step(len(senders), ax, "width", ems=3.0))
    ax.set_xticks(across, [senders[n] for n in across], rotation=45, ha="right", rotation_mode="anchor")
    up = range(0, len(receivers), max(len(receivers) // 16, lettering.step(len(receivers), ax, "height"), 1))
    ax.set_yticks(up, [receivers[n] for n in up])
    ax.set(xlabel="writes", ylabel="reads")
