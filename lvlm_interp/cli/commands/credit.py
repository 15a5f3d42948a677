"""`lvlm-interp credit`: how much of each word is whose."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import Asked, Json, asking
from lvlm_interp.cli.terminal import show

PLACE = 40
app = typer.Typer()


@app.command()
@asking
def credit(
    asked: Asked,
    value: Annotated[
        Literal["odds", "full", "difference", "logprob", "logodds", "logit"],
        typer.Option(help="Rather than others (odds), any (full) or one other word (difference); or by itself."),
    ] = "odds",
    unit: Annotated[
        Literal["word", "token", "sentence", "answer"], typer.Option(help="What is explained at once.")
    ] = "word",
    players: Annotated[
        list[str] | None,
        typer.Option(help="Split further: images, turns (of the chat), sentences (of the context); may be repeated."),
    ] = None,
    keep: Annotated[list[str] | None, typer.Option(help="A role that is always visible; may be repeated.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="An alternative to one word; may be repeated.")] = None,
    word: Annotated[int, typer.Option(help="Which word --against is about, from 0.")] = 0,
    as_json: Json = False,
) -> None:
    """Prior, question, context, system and image: how much of each word is whose."""
    vlm, x = asked.open()
    kept: Any = ("template", *(keep or ()))
    among: Any = players or "roles"
    show(li.credit(vlm, x, kept, value, against, unit=unit, word=word, players=among), as_json, x.answer)
