"""One diagnosis: the question, the answer word by word, the picture and the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lvlm_interp.report.diagnosis import Diagnosis, WordReport
from lvlm_interp.report.explorer import maps
from lvlm_interp.report.explorer.words import shown, word
from lvlm_interp.report.pictures import embedded, faded
from lvlm_interp.report.sentences import box_text, signed

LARGEST = 1024  # longer side of the picture, in pixels
THUMBNAIL = 192
MOST_TOLD, FEWEST_TOLD = 8, 3  # words that have a sentence that is not folded


def section(diagnosis: Diagnosis, name: str) -> dict[str, Any]:
    """Everything about one diagnosis; `name` begins the ids of its parts."""
    reports = diagnosis.reports
    # What is shown first, and all that is shown without scripts: the word that the image speaks for most.
    first = max(reports, key=lambda report: (report.word.is_content, report.delta_nats)).index
    mapped = diagnosis.patches is not None
    moved, folded = _ranked(diagnosis)
    words = [word(diagnosis, report, f"{name}-w{report.index}") for report in reports]
    return {
        "id": name,
        "question": diagnosis.question,
        "answer": diagnosis.answer + ("" if diagnosis.answer_generated else " (given)"),
        "given": _given(diagnosis),
        "finished": diagnosis.answer_finished,
        "words": words,
        "told": [words[i] for i in moved],
        "folded": [words[i] for i in folded],
        "first": first,
        "picture": embedded(diagnosis.image, LARGEST),
        "pale": embedded(faded(diagnosis.image), LARGEST),
        "thumbnail": embedded(diagnosis.image, THUMBNAIL),
        "size": diagnosis.image.size,
        "map": maps.surroundings(diagnosis, first) if mapped else None,
        "no_map": diagnosis.no_map,
        "tiles": maps.tiles(diagnosis, first),
        "table": _table(reports),
        "data": maps.data(diagnosis, len(reports)),
    }


def _ranked(diagnosis: Diagnosis) -> tuple[list[int], list[int]]:
    """The content words that are told at once, those first that the image changes most, and those that are folded.

    Of a long answer most words, such as articles, are as likely without the image: its class says so.
    """
    ranked = diagnosis.ranked
    told = [report.index for report in ranked if report.kind != "irrelevant" or len(ranked) <= MOST_TOLD][:MOST_TOLD]
    told = told or [report.index for report in ranked[:FEWEST_TOLD]]
    content = [report.index for report in diagnosis.reports if report.word.is_content]
    return told, [index for index in dict.fromkeys((*(r.index for r in ranked), *content)) if index not in told]


def _given(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    by = "Answer of the model" if diagnosis.answer_generated else "Answer given"
    told = [("System", diagnosis.system), ("Context", diagnosis.context), (by, diagnosis.answer)]
    return [(name, text) for name, text in told if text]


def _table(reports: Sequence[WordReport]) -> dict[str, Any]:
    """All words at a glance: what the frame holds, rounded."""
    names = list(reports[0].odds)
    head = ["word", *names, "Δ nats", "class", "strongest patch"]
    rows = [
        [
            shown(report),
            *(signed(report.odds[name]) for name in names),
            signed(report.delta_nats),
            report.kind,
            box_text(report.peak.box) if report.peak else "–",
        ]
        for report in reports
    ]
    return {"head": head, "rows": rows}
