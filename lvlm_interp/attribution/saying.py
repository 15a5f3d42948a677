"""What an answer says, as what can be compared: its words, without what is only form."""

from __future__ import annotations

import unicodedata

from lvlm_interp.given import explained
from lvlm_interp.inputs.words import by_unicode

ARTICLES = {"a", "an", "the"}
MEANT = frozenset("-%‰#&@/\\§")  # signs that Unicode counts as punctuation, and that make another word


@explained
def said(answer: str) -> tuple[str, ...]:
    """An answer as what is compared: its words in small letters, without punctuation at their ends and without
    articles; the articles stay where there is nothing else."""
    words = [word for piece in answer.casefold().split() if (word := _bare(piece))]
    return tuple(word for word in words if word not in ARTICLES) or tuple(words)


def _bare(word: str) -> str:
    """A word without Unicode's punctuation at its ends, whatever the script."""
    inner = [n for n, sign in enumerate(word) if sign in MEANT or unicodedata.category(sign)[0] != "P"]
    return word[inner[0] : inner[-1] + 1] if inner else ""


@explained
def stands_in(answer: str, text: str) -> bool:
    """Whether the words of an answer stand in a text, one behind the other; Unicode's words, where no blanks part
    them."""
    wanted, words = _pieces(answer), _pieces(text)
    return bool(wanted) and any(words[i : i + len(wanted)] == wanted for i in range(len(words)))


def _pieces(text: str) -> list[str]:
    return [piece for word in said(text) for piece in by_unicode(word)]
