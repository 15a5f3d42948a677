"""Text in figures: tokens as labels, text that wraps inside its Axes, and fonts that have the letters."""

from __future__ import annotations

import functools
import unicodedata
import warnings
from collections.abc import Iterable
from typing import Any, Literal, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

BLANK, BREAK, TAB, LOST = "␣", "⏎", "⇥", "�"
SIGNS = {"\n": BREAK, "\r": BREAK, "\x0b": BREAK, "\x0c": BREAK, "\x85": BREAK, "\u2028": BREAK, "\t": TAB}
CUT = "…"
USUAL = 10.0  # points of letters for which sizes of figures are given
# Where several installed fonts have a letter, these come first; they look well beside Latin ones.
PREFERRED = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "SimHei",
    "Arial Unicode MS",
)
KINDS = {  # of letters, and how large each usually is in ems
    "font.size": 1.0,
    "axes.titlesize": 1.2,
    "axes.labelsize": 1.0,
    "legend.fontsize": 1.0,
    "xtick.labelsize": 1.0,
    "ytick.labelsize": 1.0,
}
NO_LETTERS = ("LastResort", "Last Resort", "Adobe Blank", "Adobe NotDef")  # fonts of boxes that stand for letters
FALLBACKS: dict[str, str | None] = {}
"""Script → the installed font that its letters are drawn with, or None; what was looked for so far."""


# --- what is written --------------------------------------------------------------------------------------------------


def literal(text: str) -> str:
    """Text of a model is not mathematics: matplotlib reads what stands between dollar signs."""
    return text.replace("$", r"\$")


def visible(text: str) -> str:
    """Line breaks, tabs and other characters that print nothing, as signs; those without width are left out."""
    return "".join(map(_sign, text))


def _sign(character: str) -> str:
    if character in SIGNS or character.isprintable():
        return SIGNS.get(character, character)
    if character.isspace():
        return " "
    return "" if unicodedata.category(character) == "Cf" else LOST


def token_text(token: str, longest: int | None = None) -> str:
    """A token as a label: a blank before it shows, since " cat" is another token than "cat"; so do blanks alone."""
    inner = token.strip()
    if not inner:
        return "".join(SIGNS.get(blank, BLANK) for blank in token) or "∅"
    return literal(shorter((BLANK if token[0].isspace() else "") + visible(inner), longest))


def shorter(text: str, longest: int | None) -> str:
    """Cut to so many characters, the last of them a sign that something is missing."""
    return text if longest is None or len(text) <= longest else text[: longest - 1] + CUT


def quoted(token: str) -> str:
    """A token or word in the middle of a sentence."""
    return f"“{shorter(visible(token.strip()), 40) or token_text(token)}”"


# --- where it fits ----------------------------------------------------------------------------------------------------


def wrap(text: Text, ax: Axes, side: Literal["width", "height"] = "width") -> None:
    """Break a text where it would be longer than a side of its Axes, whatever size these come to have.

    matplotlib itself breaks text at the edge of the figure, which is where it still does if it loses this method.
    """
    text.set_wrap(True)
    text._get_wrap_line_width = functools.partial(_length, ax, side)  # type: ignore[attr-defined]


def _length(ax: Axes, side: str) -> float:
    """Of the place that a layout gave the Axes: a picture of another shape does not fill it."""
    return float(getattr(ax.get_position(original=True), side) * getattr(ax.figure.bbox, side))


def points(ax: Axes, side: Literal["width", "height"]) -> float:
    """About how long a side of the Axes is, in points; a layout may still change it a little."""
    return _length(ax, side) * 72 / ax.figure.dpi


def size(name: str) -> float:
    """A size of rcParams (`xtick.labelsize`, …) in points; it may be a word there."""
    return float(FontProperties(size=cast(Any, mpl.rcParams)[name]).get_size_in_points())


def em() -> float:
    """Points of the letters that are in force."""
    return size("font.size")


def largest() -> float:
    """What `font.size` would be, if all kinds of letters were as large for it as the largest is."""
    return max(size(name) / usual for name, usual in KINDS.items())


def step(count: int, ax: Axes, side: Literal["width", "height"], ems: float = 1.3) -> int:
    """1 if there is room for so many labels along a side, each of so many ems; n if there is for each nth."""
    one = size("xtick.labelsize" if side == "width" else "ytick.labelsize") * ems
    return max(1, -int(-count * one // max(points(ax, side), 1.0)))


# --- in which font ----------------------------------------------------------------------------------------------------


def legible(ax: Axes) -> None:
    """Give every text of the Axes a font for the letters that its own lacks, where one is installed; warn once if not.

    matplotlib falls back letter by letter on the families that a text has, in their order.
    """
    for one in (ax, *ax.child_axes):
        one.get_xticklabels(), one.get_yticklabels()  # they are made when asked for
    for text in ax.findobj(Text):
        if not text.get_text().isascii():
            complete(text)


def complete(text: Text) -> None:
    """Add fonts that have the letters that those of the text lack."""
    families = list(text.get_fontfamily())
    lacking = [c for c in dict.fromkeys(text.get_text()) if not c.isspace() and not _has(families, c)]
    found = dict.fromkeys(font for c in lacking if (font := _fallback(c)) is not None)
    if found:
        text.set_fontfamily([*families, *found])


def _has(families: Iterable[str], character: str) -> bool:
    return any(_letter(findfont(FontProperties(family=[name])), character) for name in families)


@functools.lru_cache(4096)
def _letter(path: str, character: str) -> bool:
    """Whether a font of outlines has a character; bitmaps, as of emoji, cannot be drawn."""
    try:
        font = get_font(path)
        return bool(font.scalable and font.get_char_index(ord(character)))
    except (OSError, RuntimeError):
        return False


def _fallback(character: str) -> str | None:
    script = unicodedata.name(character, "UNNAMED").split()[0].split("-")[0]
    if script not in FALLBACKS:
        FALLBACKS[script] = _installed(character)
        if FALLBACKS[script] is None:
            warnings.warn(
                f"no installed font has letters such as {character!r} ({script.title()}): they are drawn as boxes. "
                "Install one that has, such as Noto Sans CJK for Chinese, Japanese and Korean",
                stacklevel=2,
            )
    return FALLBACKS[script]


def _installed(character: str) -> str | None:
    """An installed font that has a character."""
    fonts = sorted(fontManager.ttflist, key=lambda font: font.name not in PREFERRED)
    named = (font for font in fonts if not font.name.startswith(NO_LETTERS) and font.style == "normal")
    return next((font.name for font in named if _letter(font.fname, character)), None)
