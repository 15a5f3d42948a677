"""Methods × words: several maps of one picture beside each other, as in a paper's figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from matplotlib.axes import Axes

from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import InputError
from lvlm_interp.inputs.sources import ImageLike
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import figure
from lvlm_interp.report.figures.lettering import literal, quoted, shorter
from lvlm_interp.report.figures.patches import heatmap
from lvlm_interp.report.scales import own_limit

GAP = 0.06  # of a panel, between two
CELL = 1.7  # inches of a panel's longer side


@figure
def heatmap_grid(
    maps: Mapping[str, PatchMap],
    picture: ImageLike | None = None,
    tokens: Sequence[int | str] | None = None,
    ax: Axes | None = None,
    *,
    limit: Literal["row", "own"] = "row",
    smooth: bool = False,
    mark_peak: bool = True,
    title: str | None = None,
) -> Axes:
    """A row for each map, a column for each part of the answer.

    Args:
        maps: of one picture, by the name that stands beside the row: of several methods, models, or images of a study.
        picture: the original image, under all of them.
        tokens: which parts, by number or text; every part that all maps have, by default.
        ax: where to draw: the panels share its place.
        limit: `row`: the parts of a map share one scale, so that what does little looks faint; `own`: each has its own.
            Maps never share one, since methods measure in units of their own.
        smooth: as in `heatmap`.
        mark_peak: outline the strongest patch.
        title: above all.

    Returns:
        the Axes that hold the panels, which are its `child_axes`, row by row.

    Raises:
        InputError: no maps, maps of pictures of different sizes, another limit, or a part that a map does not have.
    """
    if not maps or len({one.size for one in maps.values()}) > 1:
        raise InputError(f"a grid is of one map or more, of one picture; got {[one.size for one in maps.values()]}")
    if limit not in ("row", "own"):
        raise InputError(f"limit is 'row' or 'own', since maps measure in units of their own; got {limit!r}")
    asked = _columns(maps) if tokens is None else [*tokens]
    if not asked:
        raise InputError("these maps have no part in common; name the parts with tokens=, or draw them one by one")
    ax = drawing.axes(ax, *_size(len(asked), len(maps), next(iter(maps.values())).size))
    ax.set_axis_off()
    ax.set(xticks=[], yticks=[])
    for row, (name, patches) in enumerate(maps.items()):
        numbers = [drawing.number_of(patches.tokens, token, f"the map {name!r}") for token in asked]
        largest = max(own_limit(patches, number) for number in numbers)
        for column, number in enumerate(numbers):
            panel = _panel(ax, row, column, len(maps), len(asked))
            reach = largest if limit == "row" else own_limit(patches, number)
            heading = quoted(patches.tokens[number])
            how = {"limit": reach, "smooth": smooth, "mark_peak": mark_peak}
            heatmap(patches, number, picture, panel, colorbar=False, title=heading, **how)  # type: ignore[arg-type]
            panel.set(xticks=[], yticks=[], xlabel="")
            if row:
                panel.set_title("")
            if not column:
                panel.set_ylabel(literal(shorter(name, 24) or ""))
    if title is not None:
        drawing.title(ax, title, above=20)
    return ax


def _columns(maps: Mapping[str, PatchMap]) -> list[int | str]:
    """The parts that all have: by their numbers where all have the same, else by their texts, where they are clear."""
    every = [one.tokens for one in maps.values()]
    if len({*every}) == 1:
        return list(range(len(every[0])))
    told = [[token.strip().casefold() for token in tokens] for tokens in every]
    return [own for own, text in zip(every[0], told[0], strict=True) if all(one.count(text) == 1 for one in told)]


def _size(columns: int, rows: int, size: tuple[int, int]) -> tuple[float, float]:
    longer = max(size)
    return columns * CELL * size[0] / longer + 0.5, rows * CELL * size[1] / longer + 0.5


def _panel(ax: Axes, row: int, column: int, rows: int, columns: int) -> Axes:
    wide, high = 1 / columns, 1 / rows
    place = (column * wide, 1 - (row + 1) * high, wide * (1 - GAP), high * (1 - GAP))
    return ax.inset_axes(place, label=f"panel {row} {column}")
