"""Two results side by side, and their difference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.attribution.split import CreditSplit
from lvlm_interp.counterfactuals.contrast import Contrast
from lvlm_interp.errors import InputError
from lvlm_interp.inputs.sources import ImageLike
from lvlm_interp.inside.lens import Lens
from lvlm_interp.pairs import Pair
from lvlm_interp.report.figures import coloring, drawing
from lvlm_interp.report.figures.drawing import figure
from lvlm_interp.report.figures.lettering import quoted, shorter
from lvlm_interp.report.figures.patches import heatmap
from lvlm_interp.report.palette import SOURCES, SUPPORTS
from lvlm_interp.report.scales import own_limit, shared_limit

PictureOrTwo = ImageLike | Sequence[ImageLike] | None


@figure
def pair_maps(
    pair: Pair,
    token: int | str = 0,
    picture: PictureOrTwo = None,
    ax: Axes | None = None,
    *,
    limit: float | None = None,
    title: str | None = None,
) -> Axes:
    """Two heatmaps and their difference, in three panels on one scale.

    Args:
        pair: one `PatchMap` minus another.
        token: which token or word: its number, from 0, or its text.
        picture: the original image of both, or of each its own.
        ax: draw the difference alone, here.
        limit: nats at the ends of the scale; the largest of the two maps and their difference by default.
        title: of the difference.

    Returns:
        The Axes of the difference; its figure holds all three.

    Raises:
        InputError: not a pair of maps, no such token, or a picture of another size.
    """
    first, second = _both(pair, PatchMap)
    number = drawing.number_of(first.tokens, token, "the map")
    differs = dataclasses.replace(
        first, values=first.values - second.values, image_total=first.image_total - second.image_total
    )
    shared = max(shared_limit(first, number), shared_limit(second, number), own_limit(differs, number))
    largest = shared if limit is None else limit
    several: Sequence[Any] = list(picture) if isinstance(picture, (list, tuple)) else [picture] * 2
    if len(several) != 2:
        raise InputError(f"picture= is one of both maps, or a list of two; got {len(several)}")
    one, two = several
    names = [shorter(name, 24) for name in pair.names]
    difference = title or f"{quoted(first.tokens[number])}: {names[0]} − {names[1]}"
    if ax is not None:
        return heatmap(differs, number, None, ax, limit=largest, title=difference, mark_peak=False)
    width, height = drawing.fitting(first.size)
    panels = drawing.own(3 * (width - 0.6) + 0.6, height + 0.3, 1, 3)[1][0]
    heatmap(first, number, one, panels[0], limit=largest, title=names[0], colorbar=False)
    heatmap(second, number, two, panels[1], limit=largest, title=names[1], colorbar=False)
    return heatmap(differs, number, None, panels[2], limit=largest, title=difference, mark_peak=False)


@figure
def pair_bars(pair: Pair, of: str | None = None, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Two credit splits or two contrasts: two bars for each word, and their difference as a diamond.

    Args:
        pair: one `CreditSplit` or `Contrast` minus another.
        of: a player, `prior` or `total` (the default); of contrasts `delta_nats` (the default) or `delta`.
        ax: where to draw.
        title: names what is drawn by default.

    Raises:
        InputError: a pair of other results, or contrasts that have no such number.
        VisibilityError: no such player.
    """
    values, unit, what = _numbers(pair, of)
    words = pair.first.tokens  # type: ignore[attr-defined]
    ax = drawing.axes(ax, 7.0, 1.6 + 0.5 * len(words))
    rows, mode = np.arange(len(words)), drawing.ground(ax)
    colors = (drawing.shade(ax, SUPPORTS), SOURCES["prior"].color(mode))
    for number, color, shift in zip(values, colors, (-0.2, 0.2), strict=True):
        ax.barh(rows + shift, number, height=0.36, color=color)
    ax.plot(values[0] - values[1], rows, "D", color="white", markeredgecolor=drawing.MARK, markersize=6)
    drawing.word_axis(ax, words)
    ax.set_xlabel(unit)
    above = drawing.legend_above(ax, dict(zip(pair.names, colors, strict=True)), "difference")
    drawing.title(ax, title or what, above=above)
    return ax


@figure
def pair_lens(pair: Pair, target: str | None = None, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Layers × positions: by how much a target is likelier in the first of two lenses, in nats.

    Args:
        pair: one `Lens` minus another.
        target: a target of both; the first by default.
        ax: where to draw.
        title: names the target by default.

    Raises:
        InputError: a pair of other results, or no such target.
    """
    first, second = _both(pair, Lens)
    if not first.targets:
        raise InputError("these lenses followed no target; ask for one: li.lens(vlm, x, target=…)")
    target = first.targets[0] if target is None else target
    values = (first.of(target) - second.of(target)).numpy()
    layers, positions = values.shape
    ax = drawing.axes(ax, 1.6 + min(12.0, max(3.0, 0.3 * positions)), 1.2 + drawing.high(layers, 0.24))
    largest = max(1e-6, float(np.abs(values).max()))
    norm = Normalize(-largest, largest)
    scale = ax.imshow(values, cmap=coloring.diverging(), norm=norm, aspect="auto", origin="lower")
    ax.set_facecolor("white")
    drawing.position_ticks(ax, first.tokens)
    drawing.layer_ticks(ax, first.layers)
    names = " − ".join(shorter(name, 24) for name in pair.names)
    drawing.title(ax, title or f"log-probability of {quoted(target)}: {names}")
    drawing.quiet(ax)
    coloring.color_bar(ax, scale, "nats")
    return ax


def _both(pair: Pair, kind: type[Any]) -> tuple[Any, Any]:
    if not isinstance(pair.first, kind):
        raise InputError(f"this figure is of two {kind.__name__}, the pair holds two {type(pair.first).__name__}")
    return pair.first, pair.second


def _numbers(pair: Pair, of: str | None) -> tuple[list[np.ndarray], str, str]:
    """What bars are drawn of, its unit, and the title."""
    both, first = (pair.first, pair.second), pair.first
    if isinstance(first, CreditSplit):
        name = of or "total"
        what = {"total": f"{first.value}, all sources", "prior": "the prior"}.get(name, f"credit of {name}")
        return [one.of(name).numpy() for one in both], first.unit, what  # type: ignore[attr-defined]
    if isinstance(first, Contrast) and (name := of or "delta_nats") in ("delta_nats", "delta"):
        unit = "nats" if name == "delta_nats" else "raw logits"
        return [getattr(one, name).numpy() for one in both], unit, "What the image adds"
    what = f"no number {of!r} of two" if of else "two"
    kind = type(first).__name__
    raise InputError(f"bars are of two credit splits, or `delta_nats` or `delta` of two contrasts; got {what} {kind}")
