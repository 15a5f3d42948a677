"""`lvlm-interp methods`: how heatmaps can be made."""

from __future__ import annotations

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import Json
from lvlm_interp.cli.terminal import print_json, show_frame

PLACE = 55
app = typer.Typer()


@app.command()
def methods(as_json: Json = False) -> None:
    """The methods of `heatmap --method`: what each looks at, costs, promises and needs."""
    table = li.methods()
    if as_json:
        print_json(table.to_dict("records"))
    else:
        show_frame(
            table.drop(columns=["parameters", "source"]), "methods", "N patches; --json has parameters and papers"
        )
