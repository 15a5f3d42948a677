"""Pictures of maps: one beside its picture, and all that matter of an answer on one sheet."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from PIL import Image

from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.inputs.sources import ImageLike
from lvlm_interp.report import figures
from lvlm_interp.report.diagnosis import Diagnosis, WordReport
from lvlm_interp.report.figures import coloring, drawing, lettering
from lvlm_interp.report.scales import shared_limit
from lvlm_interp.report.sentences import signed

DPI = 120
MOST = 11  # maps of a sheet, with the picture before them
ACROSS = 4
WIDTH, TALLEST = 2.4, 3.6  # inches of a panel
QUESTION = 160  # letters of a question that stand above


def drawn(patches: PatchMap, picture: ImageLike | None, index: int = 0, question: str = "", kind: str = "png") -> bytes:
    """The picture, and beside it one word's map over it, in panels of one size."""
    opened = drawing.picture_of(picture, patches.size, "the map is of")
    width, height = drawing.fitting(patches.size)
    figure, panels = drawing.own(2 * width - 0.6, height + 0.5, 1, 2)
    left, right = panels[0]
    _show(left, opened, patches.size)
    figures.heatmap(patches, index, opened, right)
    _ask(figure, question)
    return _bytes(figure, kind)


def sheet(diagnosis: Diagnosis, reports: Sequence[WordReport], kind: str = "png") -> bytes:
    """The picture, and the maps of these words, on one scale; each says by how many nats the image changes its word."""
    patches, shown = diagnosis.patches, list(reports)[:MOST]
    assert patches is not None  # asked for only where there is a map
    columns = min(ACROSS, len(shown) + 1)
    rows = -(-(len(shown) + 1) // columns)
    high = min(TALLEST, max(0.8, WIDTH * patches.size[1] / patches.size[0]))
    wide = min(WIDTH, high * patches.size[0] / patches.size[1])
    figure, panels = drawing.own(max(3.2, wide * columns + 0.9), (high + 0.45) * rows + 0.5, rows, columns)
    first, *others = panels.ravel()
    _show(first, diagnosis.image, patches.size)
    limit = max([shared_limit(patches), *(shared_limit(patches, report.index) for report in shown)])
    for ax, report in zip(others, shown, strict=False):
        _map(ax, patches, report, diagnosis.image, limit)
    for ax in others[len(shown) :]:
        ax.set_axis_off()
    scale = ScalarMappable(Normalize(-limit, limit), coloring.diverging())
    bar = figure.colorbar(scale, ax=panels, aspect=30, shrink=0.9, pad=0.02)
    bar.set_label("log-odds lost, nats")
    _ask(figure, diagnosis.question)
    return _bytes(figure, kind)


def _map(ax: Axes, patches: PatchMap, report: WordReport, picture: Image.Image, limit: float) -> None:
    title = f"{lettering.quoted(report.text)}  {signed(report.delta_nats)} nats"
    figures.heatmap(patches, report.index, picture, ax, limit=limit, colorbar=False, title=title)
    ax.set(xticks=[], yticks=[], xlabel="")


def _show(ax: Axes, picture: Image.Image | None, size: tuple[int, int]) -> None:
    """The picture as it is, in a panel like those of the maps."""
    drawing.picture_axis(ax, size, picture, fade=0.0)
    ax.set(xticks=[], yticks=[], xlabel="")


def _ask(figure: Any, question: str) -> None:
    """The question above all panels, broken where it would be wider."""
    text = lettering.literal(lettering.shorter(lettering.visible(question), QUESTION) or "")
    letter = lettering.size("figure.titlesize") * (0.55 if text.isascii() else 1.0) / 72
    heading = figure.suptitle(textwrap.fill(text, max(8, int(figure.get_figwidth() / letter))))
    lettering.complete(heading)


def _bytes(figure: Any, kind: str) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=DPI, bbox_inches="tight")
    return stream.getvalue()
