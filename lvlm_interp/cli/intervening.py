"""What commands that intervene have in common: one intervention, or one window of layers after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lvlm_interp as li
from lvlm_interp.cli.options import Asked
from lvlm_interp.cli.terminal import say


def told(against: str | None) -> dict[str, Any]:
    """What the answer is worth: words, or the lead of its first over another."""
    return {"unit": "word", "against": against}


def tried(
    asked: Asked,
    vlm: Any,
    x: Any,
    intervention: Any,
    window: int | None,
    against: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Do it, or go over the layers with it, and show what becomes of the answer."""
    from lvlm_interp.report import figures

    if window is None:
        found: Any = li.intervene(vlm, x, intervention, **told(against))
    else:
        over: Any = {"layers": li.windows(vlm, window)}
        found = li.sweep(vlm, x, intervention, over, **told(against), progress=sys.stderr.isatty())
    told_and_drawn(asked, found, x, lambda: figures.sweep_map(found), out, as_json)


def told_and_drawn(asked: Asked, found: Any, x: Any, draw: Callable[[], Any], out: Path | None, as_json: bool) -> None:
    """Print a result, and write its figure if one was asked for: the table comes first."""
    from lvlm_interp.report import export

    with asked.showing(as_json) as shown:
        shown(found, x)
    if out is not None:
        export.save_drawn(draw, out, asked.force)
    if out is not None and not as_json:
        say(out)


def need_window(out: Path | None, window: int | None) -> None:
    """Raise for a figure of one number.

    Raises:
        InputError: says what it is drawn of.
    """
    from lvlm_interp.errors import InputError

    if out is not None and window is None:
        raise InputError("--out draws what changes from layer to layer: give --window 1, or more layers at once")
