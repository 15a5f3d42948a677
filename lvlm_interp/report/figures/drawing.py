"""What figures share: their Axes, ink, scales and legends.

Colours of text and lines, and sizes of letters, are those of the Axes, and so of the style sheet that is in force.
"""

from __future__ import annotations

import functools
import io
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from lvlm_interp.errors import InputError
from lvlm_interp.given import explained
from lvlm_interp.inputs.media import open_image
from lvlm_interp.report.figures import lettering
from lvlm_interp.report.figures.lettering import literal, token_text
from lvlm_interp.report.palette import Mode
from lvlm_interp.report.pictures import faded
from lvlm_interp.results import number_of as number_of

MARK = "#222222"  # on a pale picture, whatever the style
MOST_LIGHT = 0.45  # luminance of a cell; what is written on darker ones is white
EMBEDDED: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}  # letters stay letters
SMALL = 16  # letters beside each other, up to which a picture has no numbers at its sides
SMALLEST = 7.0  # of those that figures shrink with
LOWEST = 0.9  # of cells in a figure of their own, however few rows they are
CORNER = 0.35  # ems between numbers and their side
AREA, SHORTEST, LONGEST = 12.0, 1.8, 6.0  # of a picture in a figure of its own: square inches, sides in inches

F = TypeVar("F", bound=Callable[..., Axes])
FIGURES: dict[str, Callable[..., Axes]] = {}
"""Name → function, of every figure."""


def figure(function: F) -> F:
    """Make a function a name of `lvlm_interp.report.figures`; what it draws is given fonts that have its letters."""

    @functools.wraps(function)
    def drawn(*given: Any, **options: Any) -> Axes:
        ax = function(*given, **options)
        lettering.legible(ax)
        return ax

    known: Any = explained(drawn)
    FIGURES[function.__name__] = known
    return cast(F, known)


# --- axes and figures -------------------------------------------------------------------------------------------------


class Layout(ConstrainedLayoutEngine):
    """matplotlib's constrained layout, which leaves room for what stands around pictures, whatever their shape.

    It measures what stands around Axes as they are; but a picture fills its place in one direction only, and in which
    one can change as the place does. So room is made as if pictures filled their places.
    """

    def execute(self, fig: Any) -> None:
        aspects = [(ax, ax.get_aspect()) for ax in fig.axes]
        for ax, _ in aspects:
            ax.set_aspect("auto")
        try:
            super().execute(fig)
        finally:
            for ax, aspect in aspects:
                ax.set_aspect(aspect)


class OwnFigure(Figure):
    """A figure that a notebook shows without pyplot, and that keeps letters as text in PDF, PostScript and SVG."""

    def savefig(self, fname: Any, **options: Any) -> None:
        with mpl.rc_context(EMBEDDED), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # it was said once which letters no font has
            super().savefig(fname, **options)

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", bbox_inches="tight")
        return stream.getvalue()


class OwnAxes(Axes):
    """Axes of such a figure: as the last line of a cell they show it."""

    def _repr_png_(self) -> bytes:
        return cast(OwnFigure, self.figure)._repr_png_()


def own(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[OwnFigure, Any]:
    """A new figure of this size, and its Axes `[row, column]`.

    Sizes of figures are in inches where letters have 10 points, and grow with the largest kind of them in force: what
    is drawn has the same room. What stands around letters does not shrink with them.
    """
    grown = max(SMALLEST, lettering.largest()) / lettering.USUAL
    made = OwnFigure(figsize=(width * grown, height * grown), layout=Layout())
    return made, made.subplots(rows, columns, squeeze=False, subplot_kw={"axes_class": OwnAxes})


def axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The Axes that were given, or those of a new figure of this size; see `own`.

    A figure that has no layout, and whose margins nobody has touched, gets matplotlib's constrained one: otherwise
    labels would be cut and overlap those of the Axes beside.
    """
    if ax is None:
        return cast(Axes, own(width, height)[1][0, 0])
    if not isinstance(ax, Axes) or not ax.transData.is_separable or hasattr(ax, "get_zlim"):
        raise InputError(f"ax= is matplotlib's Axes of two straight sides, plt.subplots()[1]; got {type(ax).__name__}")
    if ax.figure is None:
        raise InputError("ax= is Axes of a figure, plt.subplots()[1]; these were removed from theirs")
    for side in "xy":  # bars begin at 0, and cells are of one size
        if (scale := getattr(ax, f"get_{side}scale")()) != "linear":
            raise InputError(f"ax= is Axes of linear scales, its {side} is {scale!r}: ax.set_{side}scale('linear')")
    root: Any = ax.figure.figure  # the figure of a subfigure
    engine = root.get_layout_engine()
    plain = type(engine) is ConstrainedLayoutEngine and not getattr(engine, "_compress", False)
    if plain or (engine is None and _untouched(root) and _in_a_grid(ax)):
        root.set_layout_engine(Layout(**(engine.get() if engine else {})))
    return ax


def _in_a_grid(ax: Axes) -> bool:
    """Whether the figure knows where the Axes stand beside others, as layouts need."""
    place = ax.get_subplotspec()
    grid: Any = None if place is None else place.get_topmost_subplotspec().get_gridspec()
    return grid is not None and grid.figure is not None


def _untouched(root: Figure) -> bool:
    return all(
        getattr(root.subplotpars, name) == cast(Any, mpl.rcParams)[f"figure.subplot.{name}"]
        for name in ("left", "right", "bottom", "top", "wspace", "hspace")
    )


def fitting(size: tuple[float, float], beside: float = 1.3, above: float = 0.9) -> tuple[float, float]:
    """Size of a figure for a picture of this shape, and for what stands beside and above it; see `own`."""
    width = float(np.clip((AREA * size[0] / size[1]) ** 0.5, SHORTEST, LONGEST))
    height = float(np.clip(width * size[1] / size[0], SHORTEST, LONGEST))
    return min(width, height * size[0] / size[1]) + beside, height + above


def high(rows: int, each: float) -> float:
    """How high so many rows of cells are in a figure of its own: one is as high as a short label beside it."""
    return max(LOWEST, each * rows)


def quiet(ax: Axes) -> None:
    """No frame, no tick marks; the labels of axes wrap."""
    for side in ax.spines.values():
        side.set_visible(False)
    for axis, name in ((ax.xaxis, "xtick"), (ax.yaxis, "ytick")):  # in larger letters those at a corner would meet
        pad = max(cast(Any, mpl.rcParams)[f"{name}.major.pad"], CORNER * lettering.size(f"{name}.labelsize"))
        axis.set_tick_params(which="both", length=0, pad=pad)
    lettering.wrap(ax.xaxis.label, ax)
    lettering.wrap(ax.yaxis.label, ax, "height")


def title(ax: Axes, text: str, loc: Literal["left", "center"] = "left", above: float = 0.0) -> None:
    """What is shown, as many points above the Axes besides as something else stands there; it wraps."""
    corner = 3.0 if loc == "center" else 0.0  # wider than its Axes, it would touch the number at their corner
    pad = mpl.rcParams["axes.titlepad"] + above + corner
    lettering.wrap(ax.set_title(literal(text), loc=loc, pad=pad), ax)


# --- ink --------------------------------------------------------------------------------------------------------------


def ink(ax: Axes) -> Any:
    """The colour that the Axes write in."""
    return ax.title.get_color()


def ground(ax: Axes) -> Mode:
    """Whether the Axes are light or dark."""
    red, green, blue, alpha = to_rgba(ax.get_facecolor())
    under = to_rgb(ax.figure.get_facecolor()) if alpha < 1 else (0, 0, 0)
    shown = [alpha * one + (1 - alpha) * two for one, two in zip((red, green, blue), under, strict=True)]
    return "light" if luminance(shown) > MOST_LIGHT else "dark"


def shade(ax: Axes, color: str) -> str:
    """A colour of bars, paler where the ground is dark."""
    return color if ground(ax) == "light" else to_hex(cast(Any, [1 - 0.55 * (1 - part) for part in to_rgb(color)]))


def luminance(color: Any) -> float:
    """How light a colour is, 0 … 1; transparent ones stand on white."""
    red, green, blue, alpha = to_rgba(color)
    return alpha * (0.299 * red + 0.587 * green + 0.114 * blue) + 1 - alpha


def ink_on(color: Any) -> str:
    """What is read on a cell of this colour."""
    return MARK if luminance(color) > MOST_LIGHT else "white"


# --- what is asked for ------------------------------------------------------------------------------------------------


def picture_of(picture: Any, size: tuple[int, int], made_of: str) -> Image.Image | None:
    """A picture, from wherever it is; it must be of the size that a result was made of. `made_of` begins a sentence.

    Raises:
        ImageError: it cannot be read.
        InputError: another size.
    """
    opened = picture if picture is None or isinstance(picture, Image.Image) else open_image(picture)
    if opened is not None and opened.size != tuple(size):
        raise InputError(f"{made_of} an image of {size} pixels, this picture has {opened.size}")
    return opened


# --- axes of bars, cells and pictures ---------------------------------------------------------------------------------


def bar_axis(ax: Axes, names: Sequence[str]) -> None:
    """Names down the side, first on top, and a line at zero; where there is no room for all, some of the names."""
    shown = range(0, len(names), lettering.step(len(names), ax, "height"))
    ax.set_yticks(shown, [names[i] for i in shown])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.axvline(0, color=ink(ax), linewidth=0.8)
    quiet(ax)


def word_axis(ax: Axes, words: Sequence[str]) -> None:
    """`bar_axis` for words of an answer, with a grid."""
    ax.grid(axis="x", color=ink(ax), alpha=0.15, linewidth=0.6)
    ax.set_axisbelow(True)
    bar_axis(ax, [token_text(word, 24) for word in words])


def position_ticks(ax: Axes, tokens: Sequence[str]) -> None:
    """Equal neighbours, such as the tokens of an image, have one label; where there is no room for all, some have."""
    ax.set_xlabel("token at the position")
    names: list[tuple[float, str]] = []
    start = 0
    for token, run in itertools.groupby(tokens):
        count = len(list(run))
        text = token_text(token, 14)
        names.append((start + (count - 1) / 2, f"{text} × {count}" if count > 1 else text))
        start += count
    shown = _apart(names, lettering.step(len(tokens), ax, "width"))
    places, labels = map(list, zip(*shown, strict=True))
    ems = 0.65 * (max(map(len, labels)) + 2)
    flat = _apart(names, lettering.step(len(tokens), ax, "width", ems)) == names
    how: dict[str, Any] = {} if flat else {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(places, labels, **how)


def _apart(names: Sequence[tuple[float, str]], least: float) -> list[tuple[float, str]]:
    """The names that stand at least so far from the one before them that is shown."""
    shown = list(names[:1])
    for place, name in names[1:]:
        if place - shown[-1][0] >= least:
            shown.append((place, name))
    return shown


def layer_ticks(ax: Axes, layers: Sequence[int], label: str = "after n blocks") -> None:
    """Numbers of layers, as many as there is room for; none between two."""
    every = max(len(layers) // 16, lettering.step(len(layers), ax, "height"), 1)
    ax.set_yticks(range(0, len(layers), every), [str(n) for n in layers[::every]])
    ax.set_ylabel(label)


def picture_axis(ax: Axes, size: tuple[float, float], picture: Image.Image | None, fade: float = 0.55) -> None:
    """The pixels of an original image; under them the image itself, bleached, where it is given."""
    width, height = size
    if picture is not None:
        ax.imshow(faded(picture, fade), extent=(0, width, height, 0), interpolation="antialiased")
    ax.set_facecolor("white")  # what the colours of a map are mixed with, in every style
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    quiet(ax)
    if is_small(ax):
        ax.set(xticks=[], yticks=[])
    else:
        ax.set_xlabel("pixels of the image")


def is_small(ax: Axes) -> bool:
    """Whether the Axes are too small for a picture with numbers at its sides."""
    return lettering.points(ax, "width") < SMALL * lettering.size("xtick.labelsize")


# --- legends ----------------------------------------------------------------------------------------------------------


def legend_above(ax: Axes, labels: Mapping[str, str], diamond: str | None = None) -> float:
    """Label → colour, in rows between title and Axes; `diamond` is the label of white diamonds.

    Returns:
        How many points high it is.
    """
    handles: list[Artist] = [Rectangle((0, 0), 1, 1, facecolor=color, label=name) for name, color in labels.items()]
    if diamond:
        handles.append(Line2D([], [], marker="D", linestyle="", color="white", markeredgecolor=MARK, label=diamond))
    em = lettering.size("legend.fontsize")
    columns = _columns([str(handle.get_label()) for handle in handles], 0.85 * lettering.points(ax, "width") / em)
    rows = -(-len(handles) // columns)
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        frameon=False,
        borderpad=0,
        borderaxespad=0.3,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.2,
        labelspacing=0.3,
    )
    return em * (1.45 * rows + 0.3)


def _columns(labels: Sequence[str], ems: float) -> int:
    """Of a legend, as many as there is room for; each is as wide as the longest that stands in it."""
    for columns in range(len(labels), 1, -1):
        rows = -(-len(labels) // columns)
        some = [labels[start : start + rows] for start in range(0, len(labels), rows)]
        if sum(0.55 * max(map(len, column)) + 2.9 for column in some) <= ems:
            return columns
    return 1
