"""One word: how likely it was, its bars, and its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lvlm_interp.attribution.definitions import grouped
from lvlm_interp.report.diagnosis import Diagnosis, WordReport
from lvlm_interp.report.explorer.maps import BLANK
from lvlm_interp.report.palette import SOURCES
from lvlm_interp.report.sentences import percent, signed

VALUES = {
    "odds": ("odds", "Why this word rather than another: 0 is no better than the words it is compared with."),
    "together": (
        "together",
        "The same odds, the question a player like the others: the prior is what is there with nothing of yours seen.",
    ),
    "full": ("full", "Why this word rather than any word: 0 is a uniform guess over the vocabulary."),
}
"""What the bars can show, by the attribute of a word's report: its name on the page, and what it means."""


def shown(report: WordReport) -> str:
    """Its text, or what stands for blanks."""
    return report.text or BLANK


def word(diagnosis: Diagnosis, report: WordReport, name: str) -> dict[str, Any]:
    """Everything about one word; `name` is its id."""
    with_image, without = report.likely
    return {
        "id": name,
        "index": report.index,
        "text": shown(report),
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
