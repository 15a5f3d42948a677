"""`lvlm-interp contrast`: with and without the image."""

from __future__ import annotations

from typing import Annotated

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import Asked, Json, asking
from lvlm_interp.cli.terminal import show

PLACE = 30
app = typer.Typer()


@app.command()
@asking
def contrast(
    asked: Asked,
    without: Annotated[
        str, typer.Option(help="What stands for no image: hidden, dropped, blank, blur, noise or crop.")
    ] = "hidden",
    threshold: Annotated[float, typer.Option(help="Nats from which a token is correlated or contradictory.")] = 1.0,
    as_json: Json = False,
) -> None:
    """The answer with and without the image, token by token (CAL's contrast)."""
    vlm, x = asked.open()
    show(li.contrast(vlm, x, without, threshold=threshold), as_json, x.answer)
