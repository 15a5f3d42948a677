"""What the image adds: one bar for each token."""

from __future__ import annotations

from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from lvlm_interp.counterfactuals.contrast import Contrast
from lvlm_interp.errors import InputError
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import figure
from lvlm_interp.report.palette import OPPOSES, SUPPORTS

CLASS_COLORS = {"correlated": SUPPORTS, "irrelevant": "#9a9a9a", "contradictory": OPPOSES}
UNITS = {"delta_nats": "nats", "delta": "raw logits"}


@figure
def contrast_bars(
    contrast: Contrast,
    ax: Axes | None = None,
    *,
    quantity: Literal["delta_nats", "delta"] = "delta_nats",
    title: str | None = None,
) -> Axes:
    """One bar for each token: what the image adds, coloured by the token's class.

    Args:
        contrast: from `contrast`.
        ax: where to draw.
        quantity: `delta_nats`, or CAL's `delta` in raw logits.
        title: names the counterfactual by default.

    Raises:
        InputError: another quantity.
    """
    if quantity not in UNITS:
        raise InputError(f"quantity is {' or '.join(map(repr, UNITS))}, got {quantity!r}")
    ax = drawing.axes(ax, 7.0, 1.4 + 0.36 * len(contrast.tokens))
    values = getattr(contrast, quantity).numpy()
    colors = {kind: drawing.shade(ax, color) for kind, color in CLASS_COLORS.items()}
    ax.barh(np.arange(len(values)), values, height=0.62, color=[colors[kind] for kind in contrast.classes])
    if quantity == "delta_nats":  # the classes are drawn where they are decided
        threshold = contrast.provenance.parameters.get("threshold")
        for side in () if threshold is None else (threshold, -threshold):
            ax.axvline(side, color=drawing.ink(ax), linewidth=0.7, linestyle=":")
    drawing.word_axis(ax, contrast.tokens)
    ax.set_xlabel(f"with − without the image, {UNITS[quantity]}")
    above = drawing.legend_above(ax, colors)
    drawing.title(ax, title or f"What the image adds (without: {contrast.without})", above=above)
    return ax
