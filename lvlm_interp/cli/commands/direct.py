"""`lvlm-interp direct`: each answer token's logit as a sum."""

from __future__ import annotations

from typing import Annotated

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import AskedOrTable, Json, asking, need_texts

PLACE = 70
app = typer.Typer()


@app.command()
@asking
def direct(
    asked: AskedOrTable,
    target: Annotated[str | None, typer.Option(help="A token to explain, in the place of the answer's own.")] = None,
    against: Annotated[str | None, typer.Option(help="A token whose logit is subtracted.")] = None,
    as_json: Json = False,
) -> None:
    """Each answer token's logit as a sum: what heads read from text and image, MLPs, embedding and biases."""
    need_texts("--target", [target])
    need_texts("--against", [against])
    vlm, examples = asked.open()
    with asked.showing(as_json) as shown:
        for x in examples:
            shown(li.direct(vlm, x, target=target, against=against), x)
