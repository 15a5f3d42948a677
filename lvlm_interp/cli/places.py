"""Options that say where in a model and in a prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from lvlm_interp.cli.options import need_roles
from lvlm_interp.errors import InputError

WORDS = ("last", "predicting")
SPAN = re.compile(r"(\d+)(?:-(\d+))?")

Layers = Annotated[
    str | None, typer.Option("--layers", metavar="LIST", help="Blocks, from 0: 12, 8-16, or 0-3,20; all by default.")
]
Window = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Go over the model: in each window of so many layers, one after the other."),
]


def layers_of(text: str | None) -> list[int] | None:
    """Blocks by number.

    Raises:
        InputError: what is no list of them.
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        span = SPAN.fullmatch(part.strip())
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if first > last:
            raise InputError(f"--layers is numbers and spans of them, such as 8-16 or 0-3,20; got {text!r}")
        found += range(first, last + 1)
    return found


def positions_of(option: str, given: Sequence[str]) -> Any:
    """Roles, or one of two words for rows that an answer is read from.

    Raises:
        InputError: a word among several names.
        VisibilityError: no role.
    """
    if len(given) == 1 and given[0] in WORDS:
        return given[0]
    if word := next((one for one in given if one in WORDS), None):
        raise InputError(f"{option} {word} stands alone, or give roles")
    need_roles(option, given)
    return [*given]


def need_one_way(layers: str | None, window: int | None) -> None:
    """Raise for layers that are named where all are gone over.

    Raises:
        InputError: both are given.
    """
    if layers is not None and window is not None:
        raise InputError("--layers names layers, and --window goes over all of them: give one")
