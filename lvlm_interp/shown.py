"""Text of others, made safe to be shown: in a terminal it must not steer it, in a page it must not be markup."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# What a terminal obeys rather than shows: C0 but tab and newline, DEL, C1, line and paragraph separators, and what
# turns the direction of writing, so that text reads otherwise than it is.
STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

ELSEWHERE = re.compile(r"[^.!\n]*\babove report\b[^.!\n]*[.!]?")  # which was logged, if anything was
UNFINISHED = re.compile(r"([:,;]|\b(or|and))$")
NAMELESS = (AttributeError, LookupError, TypeError, ArithmeticError, RecursionError)


def printable(text: object) -> str:
    r"""The text with each character that would steer a terminal spelled out, as `\x1b`."""
    return STEERING.sub(_spelled, str(text))


def printable_json(text: str) -> str:
    """The same for a line of JSON, which goes on saying what it said."""
    return STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON; what is no number is null, since JSON has none."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def gist(error: BaseException, most: int = 400) -> str:
    """What an error of others says, in one line: its first, and those after it while a line is not the end of it.

    What points to something that is not shown is left out; what says nothing alone is said with the error's name.
    """
    lines = [line.strip() for line in ELSEWHERE.sub("", str(error)).splitlines() if line.strip()]
    told = ""
    for line in lines:
        told = f"{told} {line}".strip()
        if not UNFINISHED.search(told):
            break
    if not told or isinstance(error, NAMELESS):
        told = ": ".join(filter(None, [type(error).__name__, told]))
    return told if len(told) <= most else f"{told[: most - 1]}…"


def _spelled(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def table_html(
    frame: pd.DataFrame, precision: int = 3, caption: str | None = None, formats: Mapping[str, str] | None = None
) -> str:
    """A table for a notebook, all of it escaped: cells, the names of rows and columns, and what stands above it.

    Args:
        frame: the table.
        precision: digits behind the point.
        caption: stands above it.
        formats: of columns that are shown otherwise, such as `"{:.1e}"`.
    """
    style = frame.style.format(dict(formats) if formats else None, precision=precision, escape="html")
    for axis in (0, 1):
        style = style.format_index(escape="html", axis=axis)
    return (style if caption is None else style.set_caption(html.escape(caption))).to_html()
