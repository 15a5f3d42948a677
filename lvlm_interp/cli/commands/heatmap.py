"""`lvlm-interp heatmap`: where in the image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import Asked, Force, Json, asking
from lvlm_interp.cli.terminal import output, show
from lvlm_interp.errors import OutputError

PLACE = 50
app = typer.Typer()


@app.command()
@asking
def heatmap(
    asked: Asked,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")],
    word: Annotated[int, typer.Option(help="Which word of the answer is drawn, from 0.")] = 0,
    against: Annotated[str | None, typer.Option(help="Why that word rather than this one.")] = None,
    hide_from: Annotated[Literal["text", "all"] | None, typer.Option(help="Who loses sight of a patch.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Where in the image: a PNG of one word's map, and a table of every word's strongest patch."""
    if out.exists() and not force:
        raise OutputError(f"{out} exists; give another file, or --force to replace it")
    if not out.parent.is_dir():
        raise OutputError(f"there is no directory {out.parent} to write {out.name} to")
    from lvlm_interp.inputs.words import parts_of
    from lvlm_interp.report.export import save_heatmap
    from lvlm_interp.report.terminal import frame_table, peaks

    vlm, x = asked.open()
    told: Any = {"hide_from": hide_from, "progress": sys.stderr.isatty()}
    if against is None:
        found = li.attribute(vlm, x, **told)
        patches, drawn = found.words(parts_of(x, "word", vlm.decode)), word
    else:
        patches, drawn = li.attribute(vlm, x, target=word, against=against, **told), 0
    save_heatmap(patches, x.images[0].picture, out, drawn, x.question)
    if as_json:
        show(patches, True, x.answer)
    else:
        output().print(frame_table(peaks(patches), x.answer))
        print(out)
