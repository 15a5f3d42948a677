"""`lvlm-interp interactions`: what regions of the picture do together with words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import Asked, Json, Word, asking, need_texts, of_word
from lvlm_interp.cli.terminal import say

PLACE = 54
app = typer.Typer()


@app.command()
@asking
def interactions(
    asked: Asked,
    phrase: Annotated[
        list[str] | None,
        typer.Option(help="Words of the prompt, a player; may be repeated. By default question, context and system."),
    ] = None,
    regions: Annotated[int, typer.Option(min=1, max=3, help="Blocks of the picture along a side.")] = 2,
    word: Word = 0,
    against: Annotated[str | None, typer.Option(help="Why that word rather than this one.")] = None,
    hide_from: Annotated[
        Literal["text", "all"] | None, typer.Option(help="Who loses sight of a region; text rows by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Draw the pairs: .png, .pdf, .svg, …")] = None,
    as_json: Json = False,
) -> None:
    """What regions of the picture and words of the prompt do, alone and together, exactly: all sets are scored."""
    from lvlm_interp.report import export

    need_texts("--against", [against])
    need_texts("--phrase", phrase or ())
    asked.need_figure(out)
    vlm, x = asked.open()
    told = of_word(word, against)
    found = li.interactions(vlm, x, phrase or "roles", regions=regions, hide_from=hide_from, **told)
    with asked.showing(as_json) as shown:
        shown(found, x)
    if out is not None:
        export.save_pairs(found, out, asked.force)
    if out is not None and not as_json:
        say(out)
