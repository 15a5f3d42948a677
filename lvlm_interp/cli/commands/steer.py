"""`lvlm-interp steer`: what an answer becomes where states are pushed along a direction."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import lvlm_interp as li
from lvlm_interp.cli.intervening import told_and_drawn
from lvlm_interp.cli.options import Asked, Json, asking, need_apart, need_texts
from lvlm_interp.cli.places import positions_of
from lvlm_interp.errors import InputError

PLACE = 78
FAR = (-0.2, -0.1, 0.1, 0.2)  # VISTA pushes by .1 to .17
app = typer.Typer()


@app.command()
@asking
def steer(
    asked: Asked,
    direction: Annotated[
        Path | None,
        typer.Option(help="Directions that were saved; by default what the image adds to this prompt (VISTA)."),
    ] = None,
    without: Annotated[
        str, typer.Option(help="What the image is compared with: hidden, dropped, blank, blur, noise or crop.")
    ] = "hidden",
    alpha: Annotated[
        list[float] | None, typer.Option(help="How far, in lengths of the direction; may be repeated.")
    ] = None,
    positions: Annotated[
        list[str] | None, typer.Option(help="Which positions: a role, repeatable; all by default; last, predicting.")
    ] = None,
    random: Annotated[int, typer.Option(min=1, help="Random directions beside it.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of these.")] = 0,
    against: Annotated[str | None, typer.Option(help="How far the answer leads over this one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Draw it: .png, .pdf, .svg, …")] = None,
    as_json: Json = False,
) -> None:
    """What the answer is worth where states are pushed along a direction, beside random ones of the same length."""
    from lvlm_interp.counterfactuals.counterfactual import named
    from lvlm_interp.report import figures

    need_texts("--against", [against])
    named(without)
    places = positions_of("--positions", positions) if positions else None
    read = None if direction is None else li.load_result(direction)
    if read is not None and not isinstance(read, li.Directions):
        raise InputError(f"{direction} holds a {type(read).__name__}; li.mean_difference(…).save(…) writes Directions")
    asked.need_figure(out)
    need_apart([out] if out and direction else [], [direction] if direction else [])
    vlm, x = asked.open()
    ways = li.image_difference(vlm, [x], without, seed=seed) if read is None else read
    alphas = sorted({0.0, *(alpha or FAR)})
    told = {"positions": places, "random": random, "seed": seed, "against": against}
    found = li.dose_response(vlm, [x], ways, alphas=alphas, progress=sys.stderr.isatty(), **told)
    told_and_drawn(asked, found, x, lambda: figures.dose_curve(found), out, as_json)
