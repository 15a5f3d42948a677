"""`lvlm-interp contrast`: with and without the image."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import AskedOrTable, Json, Threshold, asking
from lvlm_interp.errors import InputError

PLACE = 30
app = typer.Typer()


@app.command()
@asking
def contrast(
    asked: AskedOrTable,
    without: Annotated[
        list[str],
        typer.Option(
            help="What stands for no image: hidden, dropped, blank, blur, noise or crop; may be repeated.",
        ),
    ] = ["hidden"],  # noqa: B006  typer copies it
    threshold: Threshold = 1.0,
    edge: Annotated[
        Literal["answer", "row"],
        typer.Option(help="What CAL's weights are averaged over at its edges: the answer, or as CAL's code, the row."),
    ] = "answer",
    as_json: Json = False,
) -> None:
    """The answer with and without the image, token by token (CAL's contrast)."""
    from lvlm_interp.counterfactuals.counterfactual import named

    if len({*without}) < len(without):
        raise InputError(f"--without names one twice: {without}")
    for name in without:  # one that is not known is found before the model is opened
        named(name)
    vlm, examples = asked.open()
    with asked.showing(as_json) as shown:
        for x in examples:
            shown(li.contrast(vlm, x, without if len(without) > 1 else without[0], threshold=threshold, edge=edge), x)
