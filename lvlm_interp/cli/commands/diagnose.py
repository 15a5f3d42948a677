"""`lvlm-interp diagnose`: where every word of an answer came from."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import AskedOrTable, OutDir, asking
from lvlm_interp.cli.terminal import kept, say, show_diagnosis

PLACE = 10
app = typer.Typer()


@app.command()
@asking
def diagnose(asked: AskedOrTable, out: OutDir) -> None:
    """Say for every word of an answer where it came from, and write a page, figures and data."""
    from lvlm_interp.report import export

    export.check(out, asked.force)
    asked.need_two_places(out)
    vlm, rows = asked.open_rows(_ours(out))
    diagnoses: list[Any] = []

    def write() -> None:
        if diagnoses:
            say(export.write(diagnoses if asked.table else diagnoses[0], out, asked.force))

    with kept(write), asked.showing(False) as shown:
        for diagnosis in asked.each(rows, functools.partial(li.diagnose, vlm, progress=sys.stderr.isatty())):
            show_diagnosis(diagnosis)
            shown.keep(diagnosis.to_frame())
            diagnoses.append(diagnosis)


def _ours(out: Path) -> list[Path]:
    """The files in a directory that --force would write over."""
    names = ("report.html", "diagnosis.json", "tokens.csv", "heatmaps.npz", "heatmaps.png")
    return [path for name in names for path in (out / name, *out.glob(f"*/{name}"))]
