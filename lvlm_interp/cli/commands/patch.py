"""`lvlm-interp patch`: what an answer becomes with another picture's states."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import lvlm_interp as li
from lvlm_interp.cli.intervening import need_window, tried
from lvlm_interp.cli.options import Asked, Json, asking, need_texts
from lvlm_interp.cli.places import Layers, Window, layers_of, need_one_way, positions_of

PLACE = 76
app = typer.Typer()


@app.command()
@asking
def patch(
    asked: Asked,
    source: Annotated[
        str, typer.Option(metavar="PATH", help="The picture whose states are put in: a path or an address.")
    ],
    site: Annotated[
        str, typer.Option(help="Where; the stream behind each block by default.")
    ] = "blocks.*.hook_resid_post",
    positions: Annotated[
        list[str] | None, typer.Option(help="Which positions: a role, repeatable; image by default; last, predicting.")
    ] = None,
    layers: Layers = None,
    window: Window = None,
    against: Annotated[str | None, typer.Option(help="By how much the first word leads over this one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Draw what changes by layer: .png, .pdf, .svg, …")] = None,
    as_json: Json = False,
) -> None:
    """What the answer becomes with states of a run that sees another picture of the same size (activation patching)."""
    from lvlm_interp.inputs.media import open_image

    need_texts("--against", [against])
    need_one_way(layers, window)
    need_window(out, window)
    places, chosen = positions_of("--positions", positions or ["image"]), layers_of(layers)
    picture = open_image(source)
    asked.need_figure(out)
    vlm, x = asked.open()
    put = li.Patch(site, places, layers=chosen, source=vlm.with_pictures(x, [picture]))
    tried(asked, vlm, x, put, window, against, out, as_json)
