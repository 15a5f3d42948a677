"""`lvlm-interp faithfulness`: which map to believe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import Asked, Json, Word, asking, need_texts, of_word
from lvlm_interp.cli.terminal import say
from lvlm_interp.errors import InputError
from lvlm_interp.given import need_seed

PLACE = 52
METHODS = ("occlusion", "attention", "integrated_gradients")
app = typer.Typer()


@app.command()
@asking
def faithfulness(
    asked: Asked,
    method: Annotated[list[str] | None, typer.Option(help="A map to judge; may be repeated. Three by default.")] = None,
    word: Word = 0,
    against: Annotated[str | None, typer.Option(help="Why that word rather than this one.")] = None,
    substrate: Annotated[
        list[str] | None,
        typer.Option(help="In the place of what is not seen: tokens, mean, blur, black, road; may be repeated."),
    ] = None,
    regions: Annotated[int, typer.Option(min=1, help="Blocks along a side that come and go together.")] = 8,
    orders: Annotated[int, typer.Option(min=1, help="Random orders, the null.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    curve: Annotated[Literal["insertion", "deletion"], typer.Option(help="What --out draws.")] = "insertion",
    out: Annotated[Path | None, typer.Option(help="Draw the curves: .png, .pdf, .svg, …")] = None,
    as_json: Json = False,
) -> None:
    """Whether the word follows when patches come and go as a map says, against random orders."""
    from lvlm_interp.heatmaps.method import method_of
    from lvlm_interp.report import export

    methods = {name: method_of(name, {}) for name in method or METHODS}
    substrates = _substrates(substrate or ["tokens", "mean", "blur"])
    need_seed(seed)
    need_texts("--against", [against])
    asked.need_figure(out)
    vlm, x = asked.open()
    told = of_word(word, against)
    maps = {name: li.attribute(vlm, x, how, **told) for name, how in methods.items()}
    settings = {"substrates": substrates, "regions": regions, "orders": orders, "seed": seed}
    found = li.faithfulness(vlm, x, maps, **settings, **told)
    with asked.showing(as_json) as shown:
        shown(found, x)
    if out is not None:
        export.save_curves(found, out, curve, asked.force)
    if out is not None and not as_json:
        say(out)


def _substrates(names: list[str]) -> list[str]:
    from lvlm_interp.heatmaps.filling import PIXELS, TOKENS

    if unknown := [name for name in names if name not in (TOKENS, *PIXELS)]:
        raise InputError(f"--substrate {unknown[0]}: there are {', '.join((TOKENS, *PIXELS))}")
    if len({*names}) < len(names):
        raise InputError("--substrate names one twice")
    return names
