"""`lvlm-interp credit`: how much of each word is whose."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import AskedOrTable, Json, asking, need_players, need_texts

PLACE = 40
app = typer.Typer()


@app.command()
@asking
def credit(
    asked: AskedOrTable,
    value: Annotated[
        Literal["odds", "full", "difference", "logprob", "logodds", "logit"],
        typer.Option(
            metavar="VALUE",
            help="Rather than others (odds), any (full) or one other word (difference); or by itself: logprob, "
            "logodds or logit.",
        ),
    ] = "odds",
    unit: Annotated[
        Literal["word", "token", "sentence", "answer"],
        typer.Option(metavar="UNIT", help="What is explained at once: word, token, sentence or answer."),
    ] = "word",
    players: Annotated[
        list[str] | None,
        typer.Option(help="Split further: images, turns (of the chat), sentences (of the context); may be repeated."),
    ] = None,
    keep: Annotated[list[str] | None, typer.Option(help="A role that is always visible; may be repeated.")] = None,
    together: Annotated[
        bool, typer.Option("--together", help="The question is a player like the others, and does not only ask.")
    ] = False,
    against: Annotated[list[str] | None, typer.Option(help="An alternative to one word; may be repeated.")] = None,
    word: Annotated[int | None, typer.Option(min=0, help="Which word --against is about, from 0.")] = None,
    as_json: Json = False,
) -> None:
    """Prior, question, context, system and image: how much of each word is whose."""
    need_texts("--against", against or ())
    need_players(players or (), keep or (), context=asked.table is not None or bool(asked.context))
    if word is not None and not against:
        raise typer.BadParameter("--word says which word --against is about, and there is none: give --against")
    if value == "difference" and len(against or ()) > 1:
        raise typer.BadParameter("--value difference is from one other word: give one --against")
    vlm, examples = asked.open()
    kept: Any = ("template", *(keep or ()))
    among: Any = players or "roles"
    number = word or 0
    with asked.showing(as_json) as shown:
        for x in examples:
            split = li.credit(vlm, x, kept, value, against, asking=not together, unit=unit, word=number, players=among)
            shown(split, x)
