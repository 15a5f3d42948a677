"""`lvlm-interp heatmap`: where in the image."""

from __future__ import annotations

import ast
import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import Asked, Json, Word, asking, need_apart, need_texts
from lvlm_interp.cli.terminal import say, show, show_frame
from lvlm_interp.errors import InputError

PLACE = 50
app = typer.Typer()


@app.command()
@asking
def heatmap(
    asked: Asked,
    out: Annotated[Path, typer.Option(help="What to write: .png, .pdf, .svg, …, or the numbers: .npz, .json.")],
    word: Word = 0,
    against: Annotated[str | None, typer.Option(help="Why that word rather than this one.")] = None,
    method: Annotated[str, typer.Option(help="How; `lvlm-interp methods` lists them.")] = "occlusion",
    hide_from: Annotated[Literal["text", "all"] | None, typer.Option(help="Who loses sight of a patch.")] = None,
    parameter: Annotated[list[str] | None, typer.Option(help="Of the method, name=value; may be given again.")] = None,
    as_json: Json = False,
) -> None:
    """Where in the image: a picture of one word's map, and a table of every word's strongest patch."""
    from lvlm_interp.heatmaps.method import method_of
    from lvlm_interp.report import export
    from lvlm_interp.report.terminal import peaks

    export.map_kind(out)
    how = method_of(method, parameters_of(parameter or [], hide_from))
    export.check_file(out, asked.force)
    asked.need_two_places(out)
    need_apart([out], [*asked.read, *(value for value in how.parameters.values() if isinstance(value, str))])
    need_texts("--against", [against])
    vlm, x = asked.open()
    patches, drawn = _mapped(vlm, x, word, against, {"method": how, "progress": sys.stderr.isatty()})
    with asked.showing(as_json) as shown:
        shown.keep(patches.to_frame())
        if as_json:
            show(patches, True, x.answer)
        else:
            show_frame(peaks(patches), f"{x.question}  →  {x.answer}", patches.note)
    export.check_file(out, asked.force)  # another process may have written it meanwhile
    export.save_heatmap(patches, x.images[0].picture, out, drawn, x.question)
    if not as_json:
        say(out)


def parameters_of(given: list[str], hide_from: str | None = None) -> dict[str, Any]:
    """Parameters of a method: `pairs=4` is a number, `baseline=zero` a text, `layers=[1,2]` several."""
    found: dict[str, Any] = {} if hide_from is None else {"hide_from": hide_from}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise InputError(f"--parameter is name=value, as in --parameter pairs=4; got {one!r}")
        if name in found:
            raise InputError(f"the parameter {name!r} is given twice, and takes one value")
        found[name] = _read(value)
    return found


def _read(value: str) -> Any:
    """A value as JSON or Python writes it; what is neither is a text."""
    import numpy as np

    for reader in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            read = reader(value)
            nested = isinstance(read, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in read)
            return np.array(read) if nested else tuple(read) if isinstance(read, list) else read
    return value


def _mapped(vlm: Any, x: Any, word: int, against: str | None, told: dict[str, Any]) -> tuple[Any, int]:
    """The maps of all words, or of the one that is held against another, and which of them is drawn."""
    from lvlm_interp.inputs.words import parts_of

    words = parts_of(x, "word", vlm.decode)
    if word >= len(words):
        raise InputError(f"no word {word}: the answer has {len(words)}, from 0: {[one.text for one in words]}")
    if against is not None:
        return li.attribute(vlm, x, target=word, against=against, **told), 0
    if told["method"].name != "occlusion":
        return li.attribute(vlm, x, unit="word", **told), word
    return li.attribute(vlm, x, **told).words(words), word
