"""Results as files: a diagnosis as a page, JSON, CSV, NPZ and pictures; a heatmap; probes; a swap test."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from lvlm_interp.attribution.judging import Judgement
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.attribution.swap import SwapTest
from lvlm_interp.errors import OutputError
from lvlm_interp.files import aside, told
from lvlm_interp.given import checked
from lvlm_interp.heatmaps.faithfulness import Faithfulness
from lvlm_interp.heatmaps.joint_effects import JointEffects
from lvlm_interp.inputs.sources import ImageLike
from lvlm_interp.probes.result import ProbeResult
from lvlm_interp.report import explorer, figures
from lvlm_interp.report.diagnosis import Diagnosis
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.frames import csv_of
from lvlm_interp.report.overlay import arrays_of
from lvlm_interp.report.placing import Writer, check, check_file, placed
from lvlm_interp.report.sheet import drawn, sheet
from lvlm_interp.results import Result
from lvlm_interp.shown import gist

__all__ = [
    "check",
    "check_file",
    "figure_kind",
    "heatmap_png",
    "map_kind",
    "save_curves",
    "save_heatmap",
    "slug",
    "write",
    "write_probes",
    "write_swap",
]

PAGE = "report.html"
DPI = 120
LONGEST_NAME = 40
OPAQUE = {"eps", "ps"}


@checked
def write(
    diagnoses: Diagnosis | Iterable[Diagnosis], out_dir: str | Path, force: bool = False, title: str | None = None
) -> Path:
    """Write `report.html`, `diagnosis.json`, `tokens.csv`, `heatmaps.npz` and `heatmaps.png`.

    The last shows the picture and, on one scale, the maps of the words that the image changes most.

    Several diagnoses share one page; the other files of each go to a folder of its own, named by number and question.

    Args:
        diagnoses: one or several.
        out_dir: made if it is not there; one that holds something is refused.
        force: write into it all the same. Files with the names of ours are replaced; all others stay.
        title: of the page.

    Returns:
        The path of the page.

    Raises:
        InputError: no diagnoses.
        OutputError: the directory holds something, or cannot be written; nothing is left half-written.
    """
    folder = check(out_dir, force)
    diagnoses = diagnoses if isinstance(diagnoses, Diagnosis) else [*diagnoses]
    files = _single(diagnoses) if isinstance(diagnoses, Diagnosis) else _several(diagnoses)
    files[PAGE] = lambda: explorer.page(diagnoses, title).encode()
    return placed(folder, files, force) / PAGE


# --- which files ----------------------------------------------------------------------------------


def _several(diagnoses: Sequence[Diagnosis]) -> dict[str, Writer]:
    named = {f"{i + 1:02d}-{slug(d.question)}": d for i, d in enumerate(diagnoses)}
    return {f"{folder}/{name}": made for folder, d in named.items() for name, made in _single(d).items()}


def _single(diagnosis: Diagnosis) -> dict[str, Writer]:
    files: dict[str, Writer] = {
        "diagnosis.json": lambda: json.dumps(diagnosis.to_dict(), indent=1, ensure_ascii=False).encode(),
        "tokens.csv": lambda: csv_of(diagnosis.to_frame()),
        "heatmaps.npz": lambda: _arrays(diagnosis),
    }
    if diagnosis.patches is not None and (ranked := diagnosis.ranked):
        files["heatmaps.png"] = lambda: sheet(diagnosis, ranked)
    return files


def slug(text: str) -> str:
    """A part of a file name: small ASCII letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:LONGEST_NAME].strip("-") or "word"


def _arrays(diagnosis: Diagnosis) -> bytes:
    """`values` `[word, row, column]` in nats, `boxes` `[row, column, 4]` in pixels, `words`, `size` (width, height).

    Where there is no map, rows and columns are 0, so that a reader needs no other case.
    """
    patches, words = diagnosis.patches, diagnosis.words
    values = np.zeros((len(words), 0, 0), "float32") if patches is None else patches.values.numpy()
    boxes = np.zeros((0, 0, 4), "float32") if patches is None else patches.boxes.numpy()
    stream = io.BytesIO()
    np.savez(stream, values=values, boxes=boxes, words=np.array(words, dtype=str), size=np.array(diagnosis.image.size))
    return stream.getvalue()


@checked
def heatmap_png(patches: PatchMap, picture: ImageLike | None, index: int = 0, question: str = "") -> bytes:
    """The picture, and beside it one word's map over it, as a PNG."""
    return drawn(patches, picture, index, question)


DATA = {"npz": "arrays", "json": "text"}
"""Endings of files that hold a map's numbers, with boxes, units and provenance."""


def map_kind(path: str | Path) -> str:
    """What kind of file of a map a name asks for: a picture's, as in `figure_kind`, or `npz`, `json`.

    Raises:
        OutputError: none that is known.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    return kind if kind in DATA else figure_kind(path, or_numbers="; .npz and .json hold the numbers")


def figure_kind(path: str | Path, or_numbers: str = "") -> str:
    """What kind of picture a file's name asks for: one of those that matplotlib writes, `pdf` for instance.

    Args:
        path: the file.
        or_numbers: what an error says of other kinds that would do.

    Raises:
        OutputError: none that it knows, or one that it cannot write here: some need programs or codecs of their own.
    """
    kind, known = Path(path).suffix.lower().removeprefix("."), {*FigureCanvasBase.get_supported_filetypes()}
    known -= OPAQUE if shutil.which("xelatex") else {*OPAQUE, "pgf"}
    if kind in OPAQUE:
        raise OutputError(f"{str(path)!r}: PostScript has no transparency: a map would hide its picture; try .pdf")
    if kind not in known:
        raise OutputError(
            f"{str(path)!r} does not end like a picture that can be written: give it one of "
            f"{', '.join(f'.{name}' for name in sorted(known))}{or_numbers}"
        )
    _try_figure(path, kind)
    return kind


def _try_figure(path: str | Path, kind: str) -> None:
    """Write a figure of one letter: what fails then would fail when all was computed."""
    trial = Figure(figsize=(1, 1))
    trial.text(0, 0, "a")
    try:
        trial.savefig(io.BytesIO(), format=kind)
    except Exception as error:  # each backend has its own kinds
        raise OutputError(f"{str(path)!r}: .{kind} cannot be written here ({gist(error)}); try .png") from error


@checked
def save_heatmap(
    patches: PatchMap, picture: ImageLike | None, path: str | Path, index: int = 0, question: str = ""
) -> Path:
    """Write the picture, and beside it one word's map over it, to a file, whole or not at all.

    `overlay.overlaid(patches, picture).save(path)` is the picture with the map on it in its own size.

    Args:
        patches: the map.
        picture: what it is laid on.
        path: the file; its ending says which kind: `.png`, `.pdf`, `.svg`, … as in matplotlib; `.npz` and `.json` hold
            the numbers of all words instead, with boxes, units and provenance.
        index: which word.
        question: stands above the picture.

    Raises:
        InputError: no such word.
        OutputError: a kind that is not known, or the file cannot be written.
    """
    target = Path(path)
    kind = map_kind(target)
    made = _numbers(patches, kind) if kind in DATA else drawn(patches, picture, index, question, kind)
    return _placed(target, made)


def _placed(target: Path, made: bytes) -> Path:
    with told("write", target), aside(target.parent) as partial:
        (partial / target.name).write_bytes(made)
        os.replace(partial / target.name, target)
    return target


def _numbers(patches: PatchMap, kind: str) -> bytes:
    if kind == "json":
        return json.dumps(patches.to_dict(), ensure_ascii=False).encode()
    stream, arrays = io.BytesIO(), arrays_of(patches)
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


@checked
def save_curves(found: Faithfulness, path: str | Path, kind: str = "insertion", force: bool = False) -> Path:
    """Write curves of faithfulness to a file, a panel for each substrate.

    Raises:
        InputError: another kind than `insertion` or `deletion`.
        OutputError: a kind of file that is not known, one that is there, or that cannot be written.
    """
    target, ending = check_file(path, force), figure_kind(path)
    panels = drawing.own(4.6 * len(found.substrates), 3.6, 1, len(found.substrates))[1][0]
    for ax, substrate in zip(panels, found.substrates, strict=True):
        figures.faithfulness_curves(found, kind, substrate, ax)
    return _placed(target, _figure(panels[0].figure, ending))


@checked
def save_pairs(found: JointEffects, path: str | Path, force: bool = False) -> Path:
    """Write what every two players do together to a file, a panel for each part of the answer.

    Raises:
        OutputError: a kind of file that is not known, one that is there, or that cannot be written.
    """
    target, ending = check_file(path, force), figure_kind(path)
    panels = drawing.own(5.2 * len(found.tokens), 4.6, 1, len(found.tokens))[1][0]
    for number, ax in enumerate(panels):
        figures.joint_pairs(found, number, ax)
    return _placed(target, _figure(panels[0].figure, ending))


@checked
def save_drawn(draw: Callable[[], Axes], path: str | Path, force: bool = False) -> Path:
    """Write what a function draws to a file.

    Raises:
        OutputError: a kind of file that is not known, one that is there, or that cannot be written.
    """
    target, ending = check_file(path, force), figure_kind(path)
    return _placed(target, _figure(draw().figure, ending))


@checked
def write_probes(found: ProbeResult, out_dir: str | Path, force: bool = False) -> Path:
    """Write `probes.safetensors` (the result, to load again), `probes.csv` (a row for each site) and `probes.png`.

    Raises:
        OutputError: the directory holds something, or cannot be written.
    """
    folder = check(out_dir, force)
    writers: dict[str, Writer] = {
        "probes.safetensors": lambda: _saved(found),
        "probes.csv": lambda: csv_of(found.to_frame()),
        "probes.png": lambda: _probe_png(found),
    }
    return placed(folder, writers, force)


SWAPPED = ("swap.safetensors", "examples.csv", "answers.csv", "judged.csv", "missed.csv", "judged.png")


@checked
def write_swap(test: SwapTest, found: Judgement | None, out_dir: str | Path, force: bool = False) -> Path:
    """Write a swap test as `swap.safetensors` (to load again), `examples.csv` and `answers.csv`.

    And how definitions of credit are judged by it, if that is given: `judged.csv`, `missed.csv` (what they fail on) and
    `judged.png`.

    Raises:
        OutputError: the directory holds something, or cannot be written.
    """
    folder = check(out_dir, force)
    writers: list[Writer] = [lambda: _saved(test), lambda: csv_of(test.to_frame()), lambda: csv_of(test.answers())]
    if found is not None:
        writers += [lambda: csv_of(found.to_frame()), lambda: csv_of(found.missed()), lambda: _judged_png(found)]
    return placed(folder, dict(zip(SWAPPED, writers, strict=False)), force)


def _judged_png(found: Judgement) -> bytes:
    return _png(figures.judged_definitions(found).figure)


def _saved(found: Result) -> bytes:
    with tempfile.TemporaryDirectory() as temporary:
        return found.save(Path(temporary, "result.safetensors")).read_bytes()


def _probe_png(found: ProbeResult) -> bytes:
    several = len(found.site_shape) > 1 and found.site_shape[1] > 1
    ax = drawing.own(6.4, 5.2 if several else 3.6)[1][0, 0]
    made = figures.probe_map(found, ax=ax) if several else figures.probe_layers({found.metrics[0]: found}, ax=ax)
    return _png(made.figure)


def _png(figure: Any) -> bytes:
    return _figure(figure, "png")


def _figure(figure: Any, kind: str) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=DPI)
    return stream.getvalue()
