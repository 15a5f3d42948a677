"""`lvlm-interp lens`: what the model would say after each layer."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import AskedOrTable, Json, asking, need_roles, need_texts

PLACE = 60
app = typer.Typer()


@app.command()
@asking
def lens(
    asked: AskedOrTable,
    target: Annotated[list[str] | None, typer.Option(help="A word to follow; may be repeated.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="A layer, 0 for the embeddings; may be repeated.")] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(help="Positions of a role, image for example; by default where the answer is read."),
    ] = None,
    raw: Annotated[bool, typer.Option("--no-norm", help="Leave the final norm out (Jiang et al. 2024).")] = False,
    as_json: Json = False,
) -> None:
    """What the model would say after each layer (logit lens), with the probability and rank of target words."""
    need_texts("--target", target or ())
    need_roles("--role", role or ())
    vlm, examples = asked.open()
    with asked.showing(as_json) as shown:
        for x in examples:
            positions: Any = role or [int(p) - 1 for p in x.answer_positions]
            progress = sys.stderr.isatty() and asked.table is None
            found = li.lens(vlm, x, layer, positions, target=target or (), norm=not raw, progress=progress)
            shown(found, x)
