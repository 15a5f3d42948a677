"""A diagnosis as one HTML file: no network, no library, everything that came from a model or a file escaped.

What the page shows is worked out here as plain values; the templates only lay it out.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from lvlm_interp.inputs.view import Box
from lvlm_interp.report.diagnosis import Diagnosis, WordReport
from lvlm_interp.report.palette import FAINT, OPACITY, OPPOSES, SOURCES, SUPPORTS
from lvlm_interp.report.pictures import embedded, faded
from lvlm_interp.report.sentences import box_text, grouped, percent, signed
from lvlm_interp.results import Result

LARGEST = 1024  # longer side, in pixels, of a picture in the page
THUMBNAIL = 192
MAPS_IN_NOTEBOOK = 6
TITLE = "Where did each word come from?"
BLANK = "⏎"  # what a word of blanks is shown as
MEANING = (
    "Credit is counterfactual. Each source is hidden alone and in every combination, positions kept, and the change in "
    "the word’s log-probability is shared out exactly (Shapley values). Prior + sources = total. It says what the word "
    "depended on, not whether the word is right.",
    "“odds” asks why this word rather than the ones it is compared with; “full” asks why this word rather than any. "
    "Percentages are shares of the positive credits of “odds”; what speaks against a word is not in them.",
    "The prior is what the model would say if it saw nothing but its chat template and the answer so far. What it "
    "knows only once it is asked (that bananas are yellow, say) counts for the question: compare the probability with "
    "and without the image.",
    "A heatmap hides one image token at a time. Neighbouring patches tell the same, so the values are small, do not "
    "add up to the image’s credit, and miss what only several patches show together.",
    "An image token has mixed its surroundings before the language model reads it. A hot patch says that the token was "
    "read, not that the pixels under it alone would do; and none of this says through which layer or head.",
)
VALUES = {
    "odds": ("odds", "Why this word rather than another: 0 is no better than the words it is compared with."),
    "asked": (
        "once asked",
        "The same odds, but the question is always visible: the prior is what the model would say without looking.",
    ),
    "full": ("full", "Why this word rather than any word: 0 is a uniform guess over the vocabulary."),
}
"""What the bars can show, by the attribute of a word's report: its name on the page, and what it means."""


def page(diagnoses: Diagnosis | Sequence[Diagnosis], title: str | None = None) -> str:
    """One self-contained HTML page about one diagnosis or several.

    Args:
        diagnoses: what to show, in this order.
        title: heading of the page.
    """
    shown = [diagnoses] if isinstance(diagnoses, Diagnosis) else list(diagnoses)
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    present = {name for d in shown for name in ("prior", *d.credit.roles)}
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title or TITLE,
            sections=[_section(d, f"d{i + 1}") for i, d in enumerate(shown)],
            legend=[source for source in SOURCES.values() if source.name in present],
            sources=SOURCES.values(),
            supports=SUPPORTS,
            opposes=OPPOSES,
            meaning=MEANING,
            provenance=_provenance(shown),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
        )
    )


def fragment(diagnosis: Diagnosis) -> str:
    """The same content, compactly and without scripts, for a notebook's cell."""
    section = _section(diagnosis, "d")
    maps = [
        {
            "caption": word["text"],
            "alt": _map_label(diagnosis, word["index"]),
            "tiles": _tiles(diagnosis, word["index"]),
        }
        for word in section["content"][:MAPS_IN_NOTEBOOK]
        if diagnosis.patches is not None
    ]
    for word in section["words"]:
        word["color"] = SOURCES[word["source"]].color() if word["source"] in SOURCES else "#8a8a8a"
    about = diagnosis.provenance
    model = f"Model {about.model}, weights {about.weights}."
    pale = embedded(faded(diagnosis.image), THUMBNAIL)
    return _environment().get_template("notebook.html").render(s=section, maps=maps, pale=pale, model=model)


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )


def _file(name: str) -> str:
    return (resources.files("lvlm_interp.report") / "templates" / name).read_text(encoding="utf-8")


# --- a section ------------------------------------------------------------------------------------


def _section(diagnosis: Diagnosis, name: str) -> dict[str, Any]:
    reports = diagnosis.reports
    # What is shown first, and all that is shown without scripts: the word that the image changes most.
    first = max(reports, key=lambda report: (report.word.is_content, report.delta_nats)).index
    mapped = diagnosis.patches is not None
    words = [_word(diagnosis, report, f"{name}-w{report.index}") for report in reports]
    return {
        "id": name,
        "question": diagnosis.question,
        "answer": diagnosis.answer + ("" if diagnosis.answer_generated else " (given)"),
        "given": _given(diagnosis),
        "finished": diagnosis.answer_finished,
        "words": words,
        "content": [word for word in words if word["content"]],
        "first": first,
        "picture": embedded(diagnosis.image, LARGEST),
        "pale": embedded(faded(diagnosis.image), LARGEST),
        "thumbnail": embedded(diagnosis.image, THUMBNAIL),
        "size": diagnosis.image.size,
        "map": _map(diagnosis, first) if mapped else None,
        "no_map": diagnosis.no_map,
        "tiles": _tiles(diagnosis, first),
        "table": _table(reports),
        "data": _data(diagnosis, len(reports)),
    }


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
            _shown(report),
            *(signed(report.odds[name]) for name in names),
            signed(report.delta_nats),
            report.kind,
            box_text(report.peak.box) if report.peak else "–",
        ]
        for report in reports
    ]
    return {"head": head, "rows": rows}


def _provenance(diagnoses: Sequence[Diagnosis]) -> list[tuple[str, str]]:
    """What the numbers came from; said once where diagnoses agree."""
    rows: list[tuple[str, str]] = []
    for diagnosis in diagnoses:
        about = diagnosis.provenance
        revision = f", revision {about.revision}" if about.revision else ""
        rows.append(("Model", f"{about.model}{revision}, weights {about.weights}, {about.dtype}"))
        rows.append(("Versions", ", ".join(f"{name} {number}" for name, number in about.versions.items())))
        parts: list[Result | None] = [diagnosis.contrast, diagnosis.credit, diagnosis.patches]
        rows += [_method(part) for part in parts if part is not None]
    return sorted(dict.fromkeys(rows), key=lambda row: list(dict.fromkeys(name for name, _ in rows)).index(row[0]))


def _method(part: Result) -> tuple[str, str]:
    about = part.provenance
    given = {**about.parameters, **({"seed": about.seed} if about.seed is not None else {})}
    return about.method.capitalize(), ", ".join(f"{name} = {value}" for name, value in given.items())


# --- a word ---------------------------------------------------------------------------------------


def _shown(report: WordReport) -> str:
    return report.text or BLANK


def _word(diagnosis: Diagnosis, report: WordReport, name: str) -> dict[str, Any]:
    with_image, without = report.likely
    return {
        "id": name,
        "index": report.index,
        "text": _shown(report),
        "content": report.word.is_content,
        "source": "none" if report.unlikely else report.source or "none",
        "unlikely": report.unlikely,
        "caption": _caption(report),
        "sentence": report.sentence,
        "likely": f"{percent(with_image)} likely with the image, {percent(without)} without.",
        "pills": [f"visually {report.kind}"],
        "facts": [
            ("likely with the image", percent(with_image)),
            ("without it", percent(without)),
            ("Δ of the image", f"{signed(report.delta_nats)} nats"),
        ],
        "values": [_value(report, name) for name in VALUES],
        "interactions": _interactions(diagnosis, report.index),
        "tokens": _tokens(diagnosis, report),
    }


def _caption(report: WordReport) -> str:
    if report.unlikely:
        return f"unlikely {signed(report.odds['total'])}"
    groups = grouped(report.shares)
    best = max(groups, key=lambda group: groups[group])
    return f"{best} {percent(groups[best])}"


def _value(report: WordReport, name: str) -> dict[str, Any]:
    """The bars of one value: where each begins and how long it is, in percent of the track."""
    numbers: Mapping[str, float] = getattr(report, name)
    low, high = min(0.0, *numbers.values()), max(0.0, *numbers.values())
    span = (high - low) or 1.0
    bars = [
        {
            "name": part,
            "label": SOURCES[part].label if part in SOURCES else "Total",
            "left": _places(100 * (min(0.0, value) - low) / span),
            "width": _places(100 * abs(value) / span),
            "text": signed(value),
            "share": percent(report.shares[part]) if name == "odds" and report.shares.get(part) else "",
        }
        for part, value in numbers.items()
    ]
    label, explain = VALUES[name]
    others = [] if name == "full" else list(dict.fromkeys(other or BLANK for other in report.alternatives))
    zero = _places(100 * -low / span)
    return {"name": name, "label": label, "zero": zero, "bars": bars, "explain": explain, "others": others}


def _places(number: float) -> str:
    return f"{number:.2f}"


def _interactions(diagnosis: Diagnosis, index: int) -> list[tuple[str, list[tuple[str, str]]]]:
    """For both values, sets of sources by how much they do together, largest first."""
    told = []
    for name in ("odds", "full"):
        found = diagnosis.credit.with_value(name).interactions
        numbers = {" + ".join(roles): float(values[index]) for roles, values in found.items()}
        ordered = sorted(numbers.items(), key=lambda item: -abs(item[1]))
        told.append((name, [(who, signed(value, 2)) for who, value in ordered]))
    return told if told[0][1] else []


def _tokens(diagnosis: Diagnosis, report: WordReport) -> list[dict[str, str]]:
    contrast = diagnosis.contrast
    return [
        {
            "text": contrast.tokens[i],
            "delta": signed(float(contrast.delta[i]), 2),
            "nats": signed(float(contrast.delta_nats[i]), 2),
            "hellinger": f"{float(contrast.hellinger[i]):.2f}",
            "kind": contrast.classes[i],
        }
        for i in range(report.word.start, report.word.stop)
    ]


# --- maps -----------------------------------------------------------------------------------------


def _values(diagnosis: Diagnosis, index: int) -> list[float]:
    assert diagnosis.patches is not None  # asked for only where there is a map
    return diagnosis.patches.values[index].flatten().tolist()


def _boxes(diagnosis: Diagnosis) -> list[Box]:
    assert diagnosis.patches is not None
    return [(box[0], box[1], box[2], box[3]) for box in diagnosis.patches.boxes.reshape(-1, 4).tolist()]


def _rectangle(box: Box) -> dict[str, str]:
    left, top, right, bottom = box
    sides = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return {name: f"{value:.6g}" for name, value in sides.items()}


def _tiles(diagnosis: Diagnosis, index: int) -> list[dict[str, str]]:
    """One rectangle a patch, in pixels of the original image."""
    if diagnosis.patches is None:
        return []
    values, boxes = _values(diagnosis, index), _boxes(diagnosis)
    limit = max(FAINT, *map(abs, values))
    return [
        {
            **_rectangle(box),
            "fill": OPPOSES if value < 0 else SUPPORTS,
            "opacity": f"{OPACITY * abs(value) / limit:.3f}",
            "title": f"{box_text(box)}: {_nats(value)} nats",
        }
        for box, value in zip(boxes, values, strict=True)
    ]


def _map(diagnosis: Diagnosis, index: int) -> dict[str, Any]:
    """What changes around a map when another word is chosen."""
    values, boxes = _values(diagnosis, index), _boxes(diagnosis)
    limit, best = max(FAINT, *map(abs, values)), max(values)
    peak = boxes[values.index(best)]
    told = f"Strongest patch {box_text(peak)}: {_nats(best)} nats" if best > 0 else "No patch speaks for this word"
    return {
        "limit": limit,
        "low": _nats(-limit),
        "high": _nats(limit),
        "peak": _rectangle(peak if best > 0 else (0, 0, 0, 0)),
        "readout": told,
        "label": _map_label(diagnosis, index),
    }


def _map_label(diagnosis: Diagnosis, index: int) -> str:
    return f"Heatmap of the word “{diagnosis.words[index] or BLANK}” over the picture"


def _nats(value: float) -> str:
    """Two significant digits, signed."""
    if abs(value) < 1e-4:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    return signed(value, digits)


def _data(diagnosis: Diagnosis, words: int) -> dict[str, Any]:
    """What the page's script draws other words' maps from."""
    colors = {"supports": SUPPORTS, "opposes": OPPOSES, "opacity": OPACITY}
    if diagnosis.patches is None:
        return {**colors, "boxes": [], "maps": []}
    maps = [{**_map(diagnosis, i), "values": list(_short(_values(diagnosis, i)))} for i in range(words)]
    return {**colors, "boxes": [box_text(box) for box in _boxes(diagnosis)], "maps": maps}


def _short(values: Sequence[float]) -> Iterator[float]:
    return (float(f"{value:.4g}") for value in values)
