"""`lvlm-interp diagnose`: where every word of an answer came from."""

from __future__ import annotations

import sys

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import Asked, Force, OutDir, asking
from lvlm_interp.cli.terminal import show_diagnosis

PLACE = 10
app = typer.Typer()


@app.command()
@asking
def diagnose(
    asked: Asked,
    out: OutDir,
    force: Force = False,
) -> None:
    """Say for every word of an answer where it came from, and write a page, figures and data."""
    from lvlm_interp.report import export

    export.check(out, force)
    told = asked.image, asked.question, asked.answer, asked.context, asked.system
    diagnosis = li.diagnose(asked.load(), *told, progress=sys.stderr.isatty())
    show_diagnosis(diagnosis)
    print(export.write(diagnosis, out, force))
