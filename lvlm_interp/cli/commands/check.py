"""`lvlm-interp check`: whether a model is read truly."""

from __future__ import annotations

from typing import Annotated

import typer

from lvlm_interp.cli.options import Device, DType, Json, Verbose, open_model
from lvlm_interp.cli.terminal import print_json, show_frame, working

PLACE = 90
app = typer.Typer()


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="'reference', a hub id, or a directory.")],
    device: Device = None,
    dtype: DType = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Whether a model is read truly: six checks, and what to do where one fails. Status 0 only if all hold."""
    from lvlm_interp.opening.conformance import check as conform

    vlm = open_model(model, None, verbose, device, dtype)
    with working(f"Checking {model!r}", verbose):
        found = conform(vlm)
    if as_json:
        print_json({**found.to_dict(), "ok": found.ok})
    else:
        frame = found.to_frame()
        frame["ok"] = frame["ok"].map({True: "holds", False: "FAILS"})
        for name in ("measured", "limit"):
            frame[name] = frame[name].map("{:.1e}".format)
        show_frame(frame, f"{model}: {found.model_type}")
    raise typer.Exit(0 if found.ok else 1)
