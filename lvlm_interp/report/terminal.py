"""Results as tables for a terminal. Text of a model is printed as text: it is read neither as rich's markup, nor as
what steers a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from lvlm_interp.attribution.definitions import grouped
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.report.diagnosis import Diagnosis, WordReport
from lvlm_interp.report.sentences import box_text, percent, signed
from lvlm_interp.shown import printable

FRAME = 3  # letters that a column has around it: two blanks and a line
GROUP_STYLES = {"prompt": "blue", "image": "dark_orange", "prior": "bright_black"}


def heading(diagnosis: Diagnosis) -> Text:
    """What was asked and what was answered."""
    asked = [(printable(diagnosis.context) + "  ", "dim")] if diagnosis.context else []
    question, answer = printable(diagnosis.question), printable(diagnosis.answer)
    return Text.assemble(*asked, (question, "bold"), "  →  ", (answer, "bold"))


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
    told = [_text("–" if report.unlikely else percent(share), style=styles[name]) for name, share in groups.items()]
    place = box_text(report.peak.box) if report.peak else "–"
    return [_text(report.text), *told, _text(signed(report.odds["total"])), _text(place)]


def _text(shown: object, style: str = "") -> Text:
    return Text(printable(str(shown).replace("\n", "⏎")), style=style)


def frame_tables(frame: pd.DataFrame, title: str, width: int, digits: int = 3) -> Iterator[Table]:
    """Any frame, numbers to the right and rounded; one table below the other where `width` letters do not hold all.

    No word is cut: columns that do not fit beside others begin the next table, which repeats the first column.
    """
    columns = [_Column.of(frame, name, digits, width // 2) for name in frame.columns if name != "example"]
    for number, some in enumerate(_blocks(columns, width)):
        table = Table(title=None if number else _text(title), title_justify="left", title_style="bold")
        for column in some:
            table.add_column(column.head, justify=column.justify, overflow="fold", min_width=column.need)
        for row in zip(*(column.cells for column in some), strict=True):
            table.add_row(*row)
        yield table


@dataclass(frozen=True)
class _Column:
    """A column as it is printed, and how many letters its longest word has: `need`."""

    head: Text
    cells: list[Text]
    justify: Literal["left", "right"]
    need: int

    @classmethod
    def of(cls, frame: pd.DataFrame, name: str, digits: int, widest: int) -> _Column:
        justify: Literal["left", "right"] = "right" if pd.api.types.is_numeric_dtype(frame[name]) else "left"
        signs = any(isinstance(value, float) and value < 0 for value in frame[name])
        head, cells = _text(name), [_cell(value, digits, signs) for value in frame[name]]
        words = (word for text in (head, *cells) for word in text.plain.split())
        return cls(head, cells, justify, min(widest, max((cell_len(word) for word in words), default=1)))


def _blocks(columns: Sequence[_Column], width: int) -> Iterator[list[_Column]]:
    """Columns that have room beside each other, the first of all in front of each block."""
    first, block = columns[0], list(columns[:1])
    for column in columns[1:]:
        if len(block) > 1 and 1 + sum(c.need + FRAME for c in (*block, column)) > width:
            yield block
            block = [first]
        block.append(column)
    yield block


def _cell(value: object, digits: int, signs: bool) -> Text:
    """Numbers above 0 have a sign in a column that has some below: a share has none."""
    if not isinstance(value, float):
        return _text(value)
    return _text(signed(value, digits) if signs else signed(value, digits).removeprefix("+"))


def notes(diagnosis: Diagnosis) -> Sequence[str]:
    """What a reader of the table must know besides."""
    told = [] if diagnosis.answer_finished else ["The model was cut off before it ended its answer."]
    if any(report.unlikely for report in diagnosis.reports if report.word.is_content):
        told.append("–: more speaks against the word than for it, so that there are no shares; see its odds.")
    return [*told, f"No heatmap: {printable(diagnosis.no_map)}."] if diagnosis.no_map else told


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
