"""Colour maps, and the scale beside a figure that says what its colours mean."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, Normalize, to_rgba
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation, blended_transform_factory

from lvlm_interp.errors import InputError
from lvlm_interp.report.figures import lettering
from lvlm_interp.report.figures.lettering import literal
from lvlm_interp.report.palette import OPACITY, OPPOSES, SUPPORTS

SEQUENTIAL = "YlGnBu"
COLOR_BAR = "lvlm_interp color bar"  # what its Axes are called


def diverging(cmap: str | Colormap | None = None) -> Colormap:
    """Purple over nothing to orange; what is 0 is transparent, so that the picture shows. Or another, let through."""
    if cmap is not None:
        whole = colors(cmap)
        return ListedColormap([(*color[:3], OPACITY) for color in whole(np.linspace(0, 1, 256))], name=whole.name)
    stops = [
        (0.0, to_rgba(OPPOSES, OPACITY)),
        (0.5, to_rgba(OPPOSES, 0.0)),
        (0.5, to_rgba(SUPPORTS, 0.0)),
        (1.0, to_rgba(SUPPORTS, OPACITY)),
    ]
    return LinearSegmentedColormap.from_list("opposes_supports", stops, N=512)


def colors(cmap: str | Colormap | None) -> Colormap:
    """A colour map by its name.

    Raises:
        InputError: matplotlib has none of that name.
    """
    if isinstance(cmap, Colormap):
        return cmap
    try:
        return mpl.colormaps[cmap or SEQUENTIAL]
    except KeyError:
        raise InputError(f"matplotlib has no colour map {cmap!r}; 'viridis' is one, 'RdBu_r' another") from None


def signed_square(
    ax: Axes,
    values: np.ndarray,
    unit: str,
    limit: float | None,
    cmap: str | Colormap | None,
    origin: Literal["upper", "lower"] = "upper",
) -> None:
    """Numbers of either sign in rows and columns, as colours about 0.

    Raises:
        InputError: a limit that is not above 0.
    """
    if limit is not None and not 0 < limit < math.inf:
        raise InputError(f"limit is a number, in {unit}, above 0; got {limit!r}")
    largest = limit or max(1e-6, float(np.abs(values).max()))
    scale = Normalize(-largest, largest)
    image = ax.imshow(values, cmap=diverging(cmap), norm=scale, aspect="auto", origin=origin)
    ax.set_facecolor("white")
    color_bar(ax, image, unit)


def color_bar(ax: Axes, scale: ScalarMappable, label: str) -> None:
    """The scale beside the Axes, as tall as they are whatever a layout or the shape of a picture makes of them.

    There is one at a time: of a second figure on the same Axes it takes the place of the first.
    """
    for before in [one for one in ax.child_axes if one.get_label() == COLOR_BAR]:
        before.remove()
    inches = ax.figure.dpi_scale_trans + ScaledTranslation(1, 0, cast(Any, ax.transAxes))
    beside = blended_transform_factory(inches, ax.transAxes)
    grown = lettering.em() / lettering.USUAL
    place = ax.inset_axes((0.08 * grown, 0, 0.12 * grown, 1), transform=beside, label=COLOR_BAR)
    bar = ax.figure.colorbar(scale, cax=place)
    place.set_facecolor("white")
    # The same numbers whatever height a layout tries, since it leaves room for these.
    if type(scale.norm) is Normalize:
        low, high = scale.get_clim()
        ticks = MaxNLocator(_numbers(ax), steps=[1, 2, 2.5, 5, 10], min_n_ticks=1).tick_values(low, high)
        shown = [float(tick) for tick in ticks if low <= tick <= high]
        bar.set_ticks(shown, labels=[f"{tick:g}".replace("-", "−") for tick in shown])
    bar.set_label(literal(label))
    lettering.wrap(place.yaxis.label, ax, "height")
    cast(Any, bar.outline).set_visible(False)


def _numbers(ax: Axes) -> int:
    """How many steps there are between numbers beside the Axes, as tall as they will be."""
    tall = lettering.points(ax, "height")
    if ax.get_aspect() != "auto":
        tall = min(tall, 0.75 * lettering.points(ax, "width") * ax.get_data_ratio())
    return int(np.clip(tall / (2.2 * lettering.size("ytick.labelsize")), 1, 7))
