"""Results as matplotlib figures. Every function takes a result, draws on `ax` or on a figure of its own, and returns
the Axes; `ax.figure.savefig(…)` keeps it. pyplot is not touched: nothing global changes, nothing has to be closed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.transforms import ScaledTranslation
from PIL import Image

from lvlm_interp.attribution.credit import CreditSplit
from lvlm_interp.attribution.occlusion import PatchMap
from lvlm_interp.counterfactuals.contrast import Contrast
from lvlm_interp.errors import InputError
from lvlm_interp.report.palette import FAINT, OPACITY, OPPOSES, SOURCES, SUPPORTS
from lvlm_interp.report.pictures import faded

INK = "#222222"
CLASS_COLORS = {"correlated": SUPPORTS, "irrelevant": "#9a9a9a", "contradictory": OPPOSES}


def heatmap(
    patch_map: PatchMap,
    token: int = 0,
    picture: Image.Image | None = None,
    ax: Axes | None = None,
    *,
    limit: float | None = None,
    fade: float = 0.55,
    mark_peak: bool = True,
    colorbar: bool = True,
    title: str | None = None,
) -> Axes:
    """One token's map over the original picture, every patch drawn at its own pixel box.

    Args:
        patch_map: from `attribute`; by token or by word.
        token: which token or word, from 0.
        picture: the original image; without it the map stands alone.
        ax: where to draw.
        limit: nats at the ends of the colour scale, which is symmetric about 0; the largest absolute value by default,
            at least 0.01.
        fade: how far the picture is bleached under the map, 0 (as it is) … 1 (white), so that the map's colours are the
            only ones.
        mark_peak: outline the patch that supports the token most.
        colorbar: draw the scale.
        title: the token by default.

    Raises:
        InputError: no such token, or a picture of another size than the map was made for.
    """
    values, boxes = _map_of(patch_map, token)
    _check_size(patch_map, picture)
    ax = _axes(ax, 4.6, 4.0)
    width, height = patch_map.size
    if picture is not None:
        ax.imshow(faded(picture, fade), extent=(0, width, height, 0), interpolation="antialiased")
    largest = limit or max(FAINT, float(np.abs(values).max()))
    scale = Normalize(-largest, largest)
    ax.add_collection(_tiles(boxes, values, scale))
    if mark_peak and values.max() > 0:
        ax.add_patch(_outline(boxes[int(values.argmax())]))
    in_patches = (height, width) == patch_map.values.shape[1:]  # the original picture is not known
    unit = "patches" if in_patches else "pixels of the original image"
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xlabel=unit)
    ax.set_title(literal(title or f"“{patch_map.tokens[token]}”"), fontsize=11, color=INK)
    _quiet(ax)
    if colorbar:
        bar = ax.figure.colorbar(ScalarMappable(scale, diverging()), ax=ax, shrink=0.85, pad=0.03)
        lost = {"logodds": "log-odds"}.get(patch_map.value, patch_map.value)
        bar.set_label(f"{lost} lost when the patch is hidden, {patch_map.unit}", fontsize=9, color=INK)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    return ax


def credit_bars(split: CreditSplit, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Stacked bars: for each word what speaks for it right of zero, what speaks against it left, the total marked.

    Args:
        split: from `credit`; the value that it shows first is drawn.
        ax: where to draw.
        title: names the value by default.
    """
    ax = _axes(ax, 7.0, 1.4 + 0.42 * len(split.tokens))
    rows = np.arange(len(split.tokens))
    right, left = np.zeros(len(rows)), np.zeros(len(rows))
    drawn = {"prior": SOURCES["prior"].color(), **_player_colors(split)}
    for name, color in drawn.items():
        values = (split.prior if name == "prior" else split.credits[:, split.players.index(name)]).numpy()
        start = np.where(values >= 0, right, left)
        ax.barh(rows, values, left=start, height=0.62, color=color)
        right, left = right + values.clip(min=0), left + values.clip(max=0)
    ax.plot(split.total.numpy(), rows, "D", color="white", markeredgecolor=INK, markersize=6)
    _word_axis(ax, split.tokens)
    ax.set_xlabel(f"{split.unit} ({split.value}); the parts add up to the total")
    ax.set_title(title or f"Where each word came from, by {split.value}", fontsize=11, color=INK, loc="left")
    labels = {name: SOURCES[name].label if name in SOURCES else name for name in drawn}
    _legend_below(ax, {labels[name]: color for name, color in drawn.items()}, "Total")
    return ax


def _player_colors(split: CreditSplit) -> dict[str, str]:
    """Each player in the colour of its role, the parts of one role ever paler; players of no role in grey."""
    found: dict[str, str] = {}
    parts = dict(zip(split.players, split.player_roles, strict=True))
    for name, role in parts.items():
        alike = [other for other, its in parts.items() if its == role]
        pale = 0.75 * alike.index(name) / len(alike)
        red, green, blue = to_rgb(SOURCES[role].color() if role in SOURCES else "#303030")
        found[name] = to_hex((red + (1 - red) * pale, green + (1 - green) * pale, blue + (1 - blue) * pale))
    return found


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
    """
    ax = _axes(ax, 7.0, 1.4 + 0.36 * len(contrast.tokens))
    if quantity not in ("delta_nats", "delta"):
        raise InputError(f"quantity is 'delta_nats' or 'delta', got {quantity!r}")
    values = getattr(contrast, quantity).numpy()
    rows = np.arange(len(values))
    ax.barh(rows, values, height=0.62, color=[CLASS_COLORS[kind] for kind in contrast.classes])
    if quantity == "delta_nats":  # the classes are drawn where they are decided
        threshold = contrast.provenance.parameters["threshold"]
        ax.axvline(threshold, color=INK, linewidth=0.7, linestyle=":")
        ax.axvline(-threshold, color=INK, linewidth=0.7, linestyle=":")
    _word_axis(ax, contrast.tokens)
    unit = "nats" if quantity == "delta_nats" else "raw logits"
    ax.set_xlabel(f"with − without the image, {unit}")
    ax.set_title(title or f"What the image adds (without: {contrast.without})", fontsize=11, color=INK, loc="left")
    _legend_below(ax, CLASS_COLORS)
    return ax


def diverging() -> Colormap:
    """Purple over nothing to orange; what is 0 is transparent, so that the picture shows."""
    stops = [
        (0.0, to_rgba(OPPOSES, OPACITY)),
        (0.5, to_rgba(OPPOSES, 0.0)),
        (0.5, to_rgba(SUPPORTS, 0.0)),
        (1.0, to_rgba(SUPPORTS, OPACITY)),
    ]
    return LinearSegmentedColormap.from_list("opposes_supports", stops, N=512)


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    return ax if ax is not None else Figure(figsize=(width, height), layout="constrained").subplots()


def _map_of(patch_map: PatchMap, token: int) -> tuple[np.ndarray, np.ndarray]:
    """Values `[patch]` and boxes `[patch, 4]`."""
    if not -len(patch_map.tokens) <= token < len(patch_map.tokens):
        raise InputError(f"no token {token}: the map has {len(patch_map.tokens)}, counted from 0")
    return patch_map.values[token].double().numpy().ravel(), patch_map.boxes.numpy().reshape(-1, 4)


def _check_size(patch_map: PatchMap, picture: Image.Image | None) -> None:
    if picture is not None and picture.size != tuple(patch_map.size):
        raise InputError(f"the map is of an image of {tuple(patch_map.size)} pixels, this picture has {picture.size}")


def _tiles(boxes: np.ndarray, values: np.ndarray, scale: Normalize) -> PatchCollection:
    tiles = [Rectangle((x0, y0), x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes]
    # Smoothed edges of neighbours would let the picture shine through as a grid.
    drawn = PatchCollection(tiles, cmap=diverging(), norm=scale, linewidth=0, antialiased=False)
    drawn.set_array(values)
    return drawn


def _outline(box: np.ndarray) -> Rectangle:
    x0, y0, x1, y1 = box
    return Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=INK, linewidth=1.4)


def _word_axis(ax: Axes, words: Sequence[str]) -> None:
    """Words down the side, first on top, and a line at zero."""
    ax.set_yticks(np.arange(len(words)), [literal(word.strip() or "⏎") for word in words])
    ax.set_ylim(len(words) - 0.4, -0.6)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    _quiet(ax)


def _quiet(ax: Axes) -> None:
    for side in ax.spines.values():
        side.set_visible(False)
    ax.tick_params(length=0, labelsize=9, labelcolor=INK)
    ax.xaxis.label.set(fontsize=9, color=INK)


def _legend_below(ax: Axes, colors: Mapping[str, str], diamond: str | None = None) -> None:
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


def literal(text: str) -> str:
    """Text of a model is not mathematics: matplotlib reads what stands between dollar signs."""
    return text.replace("$", r"\$")
