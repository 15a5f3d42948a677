"""What heads wrote for one token: layers down, roles or heads across."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from lvlm_interp.errors import InputError
from lvlm_interp.inside.direct import DirectAttribution
from lvlm_interp.report.figures import coloring, drawing, lettering
from lvlm_interp.report.figures.drawing import figure
from lvlm_interp.report.figures.labels import token_title


@figure
def head_sources(
    found: DirectAttribution,
    token: int | str = 0,
    ax: Axes | None = None,
    *,
    limit: float | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
) -> Axes:
    """Layers × roles: what all heads of a layer read from each role, in raw logits.

    Args:
        found: from `direct`.
        token: which answer token: its number, from 0, or its text.
        ax: where to draw.
        limit: logits at the ends of the colour scale; the largest by default.
        cmap: another colour map, a diverging one.
        title: names the token by default.

    Raises:
        InputError: no such token or colour map.
    """
    token = drawing.number_of(found.tokens, token, "the answer")
    ax = _by_layer(ax, found.by_role()[token].sum(1).numpy(), found.role_names, limit, cmap)
    ax.set_xticks(range(len(found.role_names)), found.role_names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlabel("read from")
    drawing.title(ax, title or token_title(found, token, "read from"))
    return ax


@figure
def head_map(
    found: DirectAttribution,
    token: int | str = 0,
    role: str | None = None,
    ax: Axes | None = None,
    *,
    limit: float | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
) -> Axes:
    """Layers × heads: what each head wrote for one answer token, or what of it was read from one role.

    Args:
        found: from `direct`.
        token: which answer token: its number, from 0, or its text.
        role: only what was read from this role.
        ax: where to draw.
        limit: logits at the ends of the colour scale; the largest by default.
        cmap: another colour map, a diverging one.
        title: names the token by default.

    Raises:
        InputError: no such token, role or colour map.
    """
    token = drawing.number_of(found.tokens, token, "the answer")
    if role is not None and role not in found.role_names:
        raise InputError(f"no role {role!r} in this prompt; it has {list(found.role_names)}")
    values = found.heads[token] if role is None else found.by_role()[token, ..., found.role_names.index(role)]
    heads = [str(head) for head in range(values.shape[1])]
    ax = _by_layer(ax, values.numpy(), heads, limit, cmap)
    shown = range(0, len(heads), lettering.step(len(heads), ax, "width", ems=2.0))
    ax.set_xticks(shown, [heads[i] for i in shown])
    ax.set_xlabel("head")
    drawing.title(ax, title or token_title(found, token, "head by head" if role is None else f"read from {role}"))
    return ax


def _by_layer(
    ax: Axes | None, values: np.ndarray, names: Sequence[str], limit: float | None, cmap: str | Colormap | None
) -> Axes:
    ax = drawing.axes(ax, 2.2 + 0.42 * len(names), 1.4 + drawing.high(len(values), 0.16))
    coloring.signed_square(ax, values, "raw logits", limit, cmap, origin="lower")
    drawing.layer_ticks(ax, range(len(values)), "block")
    drawing.quiet(ax)
    return ax
