"""What heads wrote for one token: layers down, roles or heads across."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from lvlm_interp.errors import InputError
from lvlm_interp.inside.direct import DirectAttribution
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import INK, figure
from lvlm_interp.report.figures.labels import token_title


@figure
def head_sources(found: DirectAttribution, token: int = 0, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Layers × roles: what all heads of a layer read from each role, in raw logits.

    Args:
        found: from `direct`.
        token: which answer token, from 0.
        ax: where to draw.
        title: names the token by default.

    Raises:
        InputError: no such token.
    """
    drawing.need_token(found.tokens, token, "the answer")
    ax = _by_layer(ax, found.by_role()[token].sum(1).numpy(), found.role_names)
    drawing.title(ax, title or token_title(found, token, "read from"))
    return ax


@figure
def head_map(
    found: DirectAttribution,
    token: int = 0,
    role: str | None = None,
    ax: Axes | None = None,
    *,
    title: str | None = None,
) -> Axes:
    """Layers × heads: what each head wrote for one answer token, or what of it was read from one role.

    Args:
        found: from `direct`.
        token: which answer token, from 0.
        role: only what was read from this role.
        ax: where to draw.
        title: names the token by default.

    Raises:
        InputError: no such token or role.
    """
    drawing.need_token(found.tokens, token, "the answer")
    if role is not None and role not in found.role_names:
        raise InputError(f"no role {role!r} in this prompt; it has {list(found.role_names)}")
    values = found.heads[token] if role is None else found.by_role()[token, ..., found.role_names.index(role)]
    ax = _by_layer(ax, values.numpy(), [str(head) for head in range(values.shape[1])])
    drawing.title(ax, title or token_title(found, token, "head by head" if role is None else f"read from {role}"))
    return ax


def _by_layer(ax: Axes | None, values: np.ndarray, names: Sequence[str]) -> Axes:
    ax = drawing.axes(ax, 2.2 + 0.42 * len(names), 1.4 + 0.16 * len(values))
    largest = max(1e-6, float(np.abs(values).max()))
    scale = Normalize(-largest, largest)
    image = ax.imshow(values, cmap=drawing.diverging(), norm=scale, aspect="auto", origin="lower")
    ax.set_xticks(range(len(names)), names, rotation=0 if len(names[0]) < 3 else 45, ha="right")
    ax.set_ylabel("block", fontsize=9, color=INK)
    drawing.quiet(ax)
    drawing.color_bar(ax, image, "raw logits")
    return ax
