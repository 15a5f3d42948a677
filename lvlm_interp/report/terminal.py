"""Results as tables for a terminal. Text of a model is printed as text: it is never read as rich's markup."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from lvlm_interp.attribution.occlusion import PatchMap
from lvlm_interp.report.diagnosis import Diagnosis, WordReport
from lvlm_interp.report.sentences import box_text, grouped, percent, signed

GROUP_STYLES = {"prompt": "blue", "image": "dark_orange", "prior": "bright_black"}


def heading(diagnosis: Diagnosis) -> Text:
    """What was asked and what was answered."""
    asked = [(diagnosis.context + "  ", "dim")] if diagnosis.context else []
    return Text.assemble(*asked, (diagnosis.question, "bold"), "  →  ", (diagnosis.answer, "bold"))


def diagnosis_table(diagnosis: Diagnosis) -> Table:
    """One row for each content word: how much came from the prompt, the image and the prior, and where it is seen."""
    table = Table(min_width=72)
    table.add_column("word")
    for name in ("from prompt", "image", "prior", "odds, nats", "strongest patch"):
        table.add_column(name, justify="right")
    for report in diagnosis.reports:
        if report.word.is_content:
            table.add_row(*_cells(report))
    return table


def _cells(report: WordReport) -> list[Text]:
    groups = grouped(report.shares)
    best = max(groups, key=lambda name: groups[name])
    styles = {name: f"bold {GROUP_STYLES[name]}" if name == best else "" for name in groups}
    # Shares of what speaks for a word say little where more speaks against it.
    told = [Text("–" if report.unlikely else percent(share), style=styles[name]) for name, share in groups.items()]
    place = box_text(report.peak.box) if report.peak else "–"
    return [Text(report.text), *told, Text(signed(report.odds["total"])), Text(place)]


def frame_table(frame: pd.DataFrame, title: str, digits: int = 3) -> Table:
    """Any frame: numbers to the right, rounded."""
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for name in frame.columns:
        justify = "right" if pd.api.types.is_numeric_dtype(frame[name]) else "left"
        table.add_column(str(name), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value, digits) for value in row))
    return table


def _cell(value: object, digits: int) -> Text:
    return Text(signed(value, digits) if isinstance(value, float) else str(value))


def notes(diagnosis: Diagnosis) -> Sequence[str]:
    """What a reader of the table must know besides."""
    told = [] if diagnosis.answer_finished else ["The model was cut off before it ended its answer."]
    return [*told, f"No heatmap: {diagnosis.no_map}."] if diagnosis.no_map else told


def peaks(patches: PatchMap) -> pd.DataFrame:
    """For each word: the box of the patch that supports it most, by how many nats, and what the whole image does."""
    count = range(len(patches.tokens))
    return pd.DataFrame(
        {
            "word": patches.tokens,
            "strongest patch": [box_text(patches.peak_box(i)) for i in count],
            "patch": [float(patches.values[i].max()) for i in count],
            "image": patches.image_total.tolist(),
        }
    )
