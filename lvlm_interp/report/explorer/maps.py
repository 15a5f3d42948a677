"""One word's map over the picture, as rectangles in pixels of the original image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from lvlm_interp.inputs.view import Box
from lvlm_interp.report.diagnosis import Diagnosis
from lvlm_interp.report.palette import OPACITY, OPPOSES, SUPPORTS
from lvlm_interp.report.scales import shared_limit
from lvlm_interp.report.sentences import box_text, signed

BLANK = "⏎"  # what a word of blanks is shown as


def _values(diagnosis: Diagnosis, index: int) -> list[float]:
    assert diagnosis.patches is not None  # asked for only where there is a map
    return diagnosis.patches.values[index].flatten().tolist()


def _limit(diagnosis: Diagnosis, index: int) -> float:
    assert diagnosis.patches is not None
    return shared_limit(diagnosis.patches, index)


def _boxes(diagnosis: Diagnosis) -> list[Box]:
    assert diagnosis.patches is not None
    return [(box[0], box[1], box[2], box[3]) for box in diagnosis.patches.boxes.reshape(-1, 4).tolist()]


def _rectangle(box: Box) -> dict[str, str]:
    left, top, right, bottom = box
    sides = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return {name: f"{value:.6g}" for name, value in sides.items()}


def tiles(diagnosis: Diagnosis, index: int) -> list[dict[str, str]]:
    """One rectangle a patch, in pixels of the original image."""
    if diagnosis.patches is None:
        return []
    values, boxes = _values(diagnosis, index), _boxes(diagnosis)
    limit = _limit(diagnosis, index)
    return [
        {
            **_rectangle(box),
            "fill": OPPOSES if value < 0 else SUPPORTS,
            "opacity": f"{OPACITY * abs(value) / limit:.3f}",
            "title": f"{box_text(box)}: {_nats(value)} nats",
        }
        for box, value in zip(boxes, values, strict=True)
    ]


def surroundings(diagnosis: Diagnosis, index: int) -> dict[str, Any]:
    """What changes around a map when another word is chosen."""
    values, boxes = _values(diagnosis, index), _boxes(diagnosis)
    limit, best = _limit(diagnosis, index), max(values)
    peak = boxes[values.index(best)]
    told = f"Strongest patch {box_text(peak)}: {_nats(best)} nats" if best > 0 else "No patch speaks for this word"
    return {
        "limit": limit,
        "low": _nats(-limit),
        "high": _nats(limit),
        "peak": _rectangle(peak if best > 0 else (0, 0, 0, 0)),
        "readout": told,
        "label": label(diagnosis, index),
    }


def label(diagnosis: Diagnosis, index: int) -> str:
    """What a map shows, for those who cannot see it."""
    return f"Heatmap of the word “{diagnosis.words[index] or BLANK}” over the picture"


def _nats(value: float) -> str:
    """Two significant digits, signed."""
    if abs(value) < 1e-4:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    return signed(value, digits)


def data(diagnosis: Diagnosis, words: int) -> dict[str, Any]:
    """What the page's script draws other words' maps from."""
    colors = {"supports": SUPPORTS, "opposes": OPPOSES, "opacity": OPACITY}
    if diagnosis.patches is None:
        return {**colors, "boxes": [], "maps": []}
    maps = [{**surroundings(diagnosis, i), "values": list(_short(_values(diagnosis, i)))} for i in range(words)]
    return {**colors, "boxes": [box_text(box) for box in _boxes(diagnosis)], "maps": maps}


def _short(values: Sequence[float]) -> Iterator[float]:
    return (float(f"{value:.4g}") for value in values)
