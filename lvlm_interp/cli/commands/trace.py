"""`lvlm-interp trace`: an answer while it is written, with the image and without it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import lvlm_interp as li
from lvlm_interp.cli.intervening import told_and_drawn
from lvlm_interp.cli.options import Asked, Json, asking
from lvlm_interp.errors import InputError

PLACE = 34
app = typer.Typer()


@app.command()
@asking
def trace(
    asked: Asked,
    without: Annotated[
        list[str],
        typer.Option(
            help="What other streams go without: hidden, dropped, blank, blur, noise or crop; may be repeated."
        ),
    ] = ["hidden"],  # noqa: B006  typer copies it
    decoding: Annotated[
        str | None,
        typer.Option(help="How logits are changed before: vcd, icd, crg, pai, m3id, dola, deco; not, by default."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="Tokens are drawn; 0, the default, takes the likeliest.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    tokens: Annotated[int, typer.Option(min=1, help="At most so many.")] = 128,
    out: Annotated[Path | None, typer.Option(help="Draw it along the answer: .png, .pdf, .svg, …")] = None,
    as_json: Json = False,
) -> None:
    """The answer while the model writes it: what each token owes to the image, and what would be likelier without."""
    from lvlm_interp.counterfactuals.counterfactual import named
    from lvlm_interp.generation import decoding as known
    from lvlm_interp.report import figures

    if asked.answer is not None:
        raise InputError("--answer is what is written here: contrast tells the same of an answer that is given")
    for name in without:
        named(name)
    choosing = known(decoding, temperature)
    asked.need_figure(out)
    vlm, x = asked.open_prompt()
    bar = sys.stderr.isatty()
    found = li.trace(vlm, x, without, choosing=choosing, max_new_tokens=tokens, seed=seed, progress=bar)
    answered = x.with_answer(found.ids.tolist(), found.tokens, found.answer) if len(found.ids) else x
    told_and_drawn(asked, found, answered, lambda: figures.trace_lines(found), out, as_json)
