"""What players do by themselves and together: a square of them."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from lvlm_interp.heatmaps.joint_effects import JointEffects
from lvlm_interp.report.figures import coloring, drawing
from lvlm_interp.report.figures.drawing import figure
from lvlm_interp.report.figures.lettering import literal, quoted, shorter


@figure
def joint_pairs(
    found: JointEffects,
    token: int | str = 0,
    ax: Axes | None = None,
    *,
    limit: float | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
) -> Axes:
    """Players × players: Shapley interaction indices, and on the diagonal the Shapley values.

    Args:
        found: from `interactions`.
        token: which part of the answer: its number, from 0, or its text.
        ax: where to draw.
        limit: the number at the ends of the colour scale; the largest by default.
        cmap: another colour map, a diverging one.
        title: names the part by default, and what of it picture and phrases add together.

    Raises:
        InputError: no such part or colour map, or a limit that is not above 0.
    """
    number = drawing.number_of(found.tokens, token, "the answer")
    values, count = found.pairs[number].numpy(), len(found.players)
    ax = drawing.axes(ax, 3.4 + 0.42 * count, max(2.6, 1.2 + drawing.high(count, 0.42)))
    coloring.signed_square(ax, values, f"{found.value}, {found.unit}", limit, cmap)
    names = [f"{literal(shorter(name, 18) or '')}  {n}" for n, name in enumerate(found.players)]
    ax.set_xticks(range(count), [str(n) for n in range(count)])
    ax.set_yticks(range(count), names)
    drawing.quiet(ax)
    joint, total = float(found.joint[number]), float(found.total[number])
    drawing.title(ax, title or f"{quoted(found.tokens[number])}: {joint:.1f} of {total:.1f} together")
    return ax
