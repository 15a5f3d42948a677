"""What an answer says, as what can be compared: its words, without what is only form."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from lvlm_interp.given import explained
from lvlm_interp.inputs.words import by_unicode

ARTICLES = {"a", "an", "the"}
MEANT = frozenset("-%‰#&@/\\§")  # signs that Unicode counts as punctuation, and that make another word
READ_AS = str.maketrans({**dict.fromkeys("’‘ʼ´`′", "'"), **dict.fromkeys("‐‑‒−", "-"), **dict.fromkeys(":/", " ")})
GLUED = MEANT | {"+"}  # with these, a word is more than its letters


@explained
def said(answer: str) -> tuple[str, ...]:
    """An answer as what is compared: its words in small letters, without punctuation at their ends and without
    articles; the articles stay where there is nothing else."""
    words = _bared(answer)
    return tuple(word for word in words if word not in ARTICLES) or words


def _bared(text: str) -> tuple[str, ...]:
    return tuple(word for piece in text.casefold().split() if (word := _bare(piece)))


def _bare(word: str) -> str:
    """A word without Unicode's punctuation at its ends, whatever the script."""
    inner = [n for n, sign in enumerate(word) if sign in MEANT or unicodedata.category(sign)[0] != "P"]
    return word[inner[0] : inner[-1] + 1] if inner else ""


@explained
def stands_in(answer: str, text: str) -> bool:
    """Whether the words of an answer stand in a text, one behind the other, however they are spelt.

    Where no blanks part them, they are Unicode's words; "C#" is one, and not "C".
    """
    wanted = said(_plain(answer))
    words = said(_plain(text)) if set(wanted) - ARTICLES else _bared(_plain(text))
    return _within(_pieces(wanted), _pieces(words))


def _plain(text: str) -> str:
    """One spelling of what reads the same: composed, of usual width, one apostrophe, no signs that are not seen."""
    composed = unicodedata.normalize("NFKC", text.translate(READ_AS))
    return "".join(sign for sign in composed if unicodedata.category(sign) != "Cf")


def _pieces(words: Sequence[str]) -> list[str]:
    return [piece for word in words for piece in ([word] if GLUED & set(word) else by_unicode(word))]


def _within(wanted: list[str], words: list[str]) -> bool:
    return bool(wanted) and any(words[i : i + len(wanted)] == wanted for i in range(len(words)))
