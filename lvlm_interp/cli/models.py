"""Commands about models themselves: whether one is read truly, and the small one that ships."""

from __future__ import annotations

from typing import Annotated

import typer

from lvlm_interp.cli.options import Json, Verbose, open_model
from lvlm_interp.cli.terminal import output, print_json, working

app = typer.Typer()
reference = typer.Typer(help="The small model that ships: build it, find it, remove it.", no_args_is_help=True)


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="'reference', a hub id, or a directory.")],
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Whether a model is read truly: five checks, and what to do where one fails. Status 0 only if all hold."""
    from lvlm_interp.opening.conformance import check as conform
    from lvlm_interp.report.terminal import frame_table

    vlm = open_model(model, None, verbose)
    with working(f"Checking {model!r}", verbose):
        found = conform(vlm)
    if as_json:
        print_json({**found.to_dict(), "ok": found.ok})
    else:
        frame = found.to_frame()
        frame["ok"] = frame["ok"].map({True: "holds", False: "FAILS"})
        for name in ("measured", "limit"):
            frame[name] = frame[name].map("{:.1e}".format)
        output().print(frame_table(frame, f"{model}: {found.model_type}"))
    raise typer.Exit(0 if found.ok else 1)


@reference.command()
def build(verbose: Verbose = False) -> None:
    """Fetch its parts and build it, if it is not there; prints its directory."""
    from lvlm_interp import reference

    with working("Building the reference model (about 180 MB to fetch, once)", verbose):
        folder = reference.build()
    print(folder)


@reference.command()
def where() -> None:
    """Print its directory, whether it is built yet or not."""
    from lvlm_interp import reference

    print(reference.where())


@reference.command()
def clear() -> None:
    """Remove what was fetched and built; prints what was removed."""
    from lvlm_interp import reference

    for path in reference.clear():
        print(path)
