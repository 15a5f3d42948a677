"""What wrote one token's logit: its largest parts."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from lvlm_interp.errors import InputError
from lvlm_interp.inside.direct import DirectAttribution
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import figure
from lvlm_interp.report.figures.labels import token_title
from lvlm_interp.report.palette import OPPOSES, SUPPORTS


@figure
def component_bars(
    found: DirectAttribution, token: int | str = 0, most: int = 15, ax: Axes | None = None, *, title: str | None = None
) -> Axes:
    """The largest parts of one answer token's logit, and the sum of the rest; together they are the logit.

    Args:
        found: from `direct`.
        token: which answer token: its number, from 0, or its text.
        most: how many components are shown one by one.
        ax: where to draw.
        title: names the token by default.

    Raises:
        InputError: no such token, or fewer than one component.
    """
    if most < 1:
        raise InputError(f"most={most}: one component or more is shown by itself")
    token = drawing.number_of(found.tokens, token, "the answer")
    frame = found.components(token)
    names = [*frame["component"][:most], f"the other {max(0, len(frame) - most)}"]
    values = np.array([*frame["logit"][:most], frame["logit"][most:].sum()])
    ax = drawing.axes(ax, 6.4, 1.2 + 0.26 * len(names))
    support, oppose = drawing.shade(ax, SUPPORTS), drawing.shade(ax, OPPOSES)
    ax.barh(np.arange(len(names)), values, height=0.65, color=[support if v >= 0 else oppose for v in values])
    drawing.bar_axis(ax, names)
    ax.set_xlabel("raw logits; all add up to the logit")
    drawing.title(ax, title or token_title(found, token, "what wrote"))
    return ax
