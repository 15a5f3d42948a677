"""`lvlm-interp reference`: the small model that ships."""

from __future__ import annotations

import typer

from lvlm_interp.cli.options import Verbose
from lvlm_interp.cli.terminal import say, working

PLACE = 100
app = typer.Typer(
    name="reference", help="The small model that ships: build it, find it, remove it.", no_args_is_help=True
)


@app.command()
def build(verbose: Verbose = False) -> None:
    """Fetch its parts and build it, if it is not there; prints its directory."""
    from lvlm_interp import reference

    with working("Building the reference model (about 180 MB to fetch, once)", verbose):
        folder = reference.build()
    say(folder)


@app.command()
def where() -> None:
    """Print its directory, whether it is built yet or not."""
    from lvlm_interp import reference

    say(reference.where())


@app.command()
def clear() -> None:
    """Remove what was fetched and built; prints what was removed."""
    from lvlm_interp import reference

    for path in reference.clear():
        say(path)
