"""What figures share: their Axes, ink, scales and legends, and text that is shown letter for letter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.transforms import ScaledTranslation
from PIL import Image

from lvlm_interp.errors import InputError
from lvlm_interp.given import explained
from lvlm_interp.report.palette import OPACITY, OPPOSES, SUPPORTS
from lvlm_interp.report.pictures import faded

INK = "#222222"
SEQUENTIAL = "YlGnBu"
DARK = 0.55  # of that scale; what is written on darker cells is white
BLANK = "⏎"  # what a token of blanks is shown as

F = TypeVar("F", bound=Callable[..., Axes])
FIGURES: dict[str, Callable[..., Axes]] = {}
"""Name → function, of every figure."""


def figure(function: F) -> F:
    """Make a function a name of `lvlm_interp.report.figures`."""
    known: Any = explained(function)
    FIGURES[function.__name__] = known
    return known


def axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The Axes that were given, or those of a new figure of this size in inches."""
    return ax if ax is not None else Figure(figsize=(width, height), layout="constrained").subplots()


# --- text -------------------------------------------------------------------------------------------------------------


def literal(text: str) -> str:
    """Text of a model is not mathematics: matplotlib reads what stands between dollar signs."""
    return text.replace("$", r"\$")


def token_text(token: str, longest: int | None = None) -> str:
    """A token as a label."""
    return literal(token.strip()[:longest] or BLANK)


def title(ax: Axes, text: str, loc: Literal["left", "center"] = "left") -> None:
    ax.set_title(literal(text), fontsize=11, color=INK, loc=loc)


# --- what is asked for ------------------------------------------------------------------------------------------------


def need_token(tokens: Sequence[str], token: int, holder: str) -> None:
    """Raise unless there is such a token; `holder` has them, "the map" for example."""
    if not -len(tokens) <= token < len(tokens):
        raise InputError(f"no token {token}: {holder} has {len(tokens)}, counted from 0")


def need_size(picture: Image.Image | None, size: tuple[int, int], made_of: str) -> None:
    """Raise if a picture is not of the size that a result was made of; `made_of` begins the sentence."""
    if picture is not None and picture.size != size:
        raise InputError(f"{made_of} an image of {size} pixels, this picture has {picture.size}")


# --- axes -------------------------------------------------------------------------------------------------------------


def quiet(ax: Axes) -> None:
    """No frame, no tick marks, small labels."""
    for side in ax.spines.values():
        side.set_visible(False)
    ax.tick_params(length=0, labelsize=9, labelcolor=INK)
    ax.xaxis.label.set(fontsize=9, color=INK)


def bar_axis(ax: Axes, names: Sequence[str]) -> None:
    """Names down the side, first on top, and a line at zero."""
    ax.set_yticks(np.arange(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.axvline(0, color=INK, linewidth=0.8)
    quiet(ax)


def word_axis(ax: Axes, words: Sequence[str]) -> None:
    """`bar_axis` for words of an answer, with a grid."""
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    bar_axis(ax, [token_text(word) for word in words])


def picture_axis(ax: Axes, size: tuple[float, float], picture: Image.Image | None, fade: float = 0.55) -> None:
    """The pixels of an original image; under them the image itself, bleached, where it is given."""
    width, height = size
    if picture is not None:
        ax.imshow(faded(picture, fade), extent=(0, width, height, 0), interpolation="antialiased")
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xlabel="pixels of the original image")
    quiet(ax)


# --- scales and legends -----------------------------------------------------------------------------------------------


def diverging() -> Colormap:
    """Purple over nothing to orange; what is 0 is transparent, so that the picture shows."""
    stops = [
        (0.0, to_rgba(OPPOSES, OPACITY)),
        (0.5, to_rgba(OPPOSES, 0.0)),
        (0.5, to_rgba(SUPPORTS, 0.0)),
        (1.0, to_rgba(SUPPORTS, OPACITY)),
    ]
    return LinearSegmentedColormap.from_list("opposes_supports", stops, N=512)


def color_bar(ax: Axes, scale: ScalarMappable, label: str, pad: float = 0.02) -> None:
    """The scale beside the Axes."""
    bar = ax.figure.colorbar(scale, ax=ax, shrink=0.85, pad=pad)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def legend_below(ax: Axes, colors: Mapping[str, str], diamond: str | None = None) -> None:
    """Label → colour, in a row under the Axes; `diamond` is the label of white diamonds."""
    handles: list[Artist] = [Rectangle((0, 0), 1, 1, facecolor=color, label=name) for name, color in colors.items()]
    if diamond:
        handles.append(Line2D([], [], marker="D", linestyle="", color="white", markeredgecolor=INK, label=diamond))
    under = ax.transAxes + ScaledTranslation(0, -38 / 72, ax.figure.dpi_scale_trans)  # 38 points below the axis
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=under,
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        borderpad=0,
        handlelength=1.2,
        columnspacing=1.2,
    )
