"""`lvlm-interp knockout`: what an answer loses where a route of attention is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import lvlm_interp as li
from lvlm_interp.cli.intervening import need_window, tried
from lvlm_interp.cli.options import Asked, Json, asking, need_texts
from lvlm_interp.cli.places import Layers, Window, layers_of, need_one_way, positions_of

PLACE = 74
app = typer.Typer()


@app.command()
@asking
def knockout(
    asked: Asked,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            help="Who reads: roles, repeatable; or last (default), which predicts the first token; or predicting."
        ),
    ] = None,
    keys: Annotated[list[str] | None, typer.Option(help="What they cannot read: a role, repeatable; image.")] = None,
    layers: Layers = None,
    window: Window = None,
    against: Annotated[str | None, typer.Option(help="By how much the first word leads over this one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Draw what is lost by layer: .png, .pdf, .svg, …")] = None,
    as_json: Json = False,
) -> None:
    """What the answer loses where a route of attention is cut, in some layers or in windows of them."""
    need_texts("--against", [against])
    need_one_way(layers, window)
    need_window(out, window)
    cut = li.Knockout(
        positions_of("--rows", rows or ["last"]), positions_of("--keys", keys or ["image"]), layers=layers_of(layers)
    )
    asked.need_figure(out)
    vlm, x = asked.open()
    tried(asked, vlm, x, cut, window, against, out, as_json)
