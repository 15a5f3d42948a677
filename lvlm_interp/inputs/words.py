"""Tokens into words: a word of several tokens is one thing to explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Word:
    """A word of the answer and its tokens: `start` and `stop` count answer tokens from 0."""

    text: str
    start: int
    stop: int

    @property
    def is_content(self) -> bool:
        """False for punctuation and blanks."""
        return any(c.isalnum() for c in self.text)


def split_words(tokens: Sequence[str]) -> tuple[Word, ...]:
    """Group answer tokens into words: letters and digits with no blank between belong together."""
    words: list[Word] = []
    for i, token in enumerate(tokens):
        if words and continues(words[-1].text, token):
            words[-1] = Word(words[-1].text + token, words[-1].start, i + 1)
        else:
            words.append(Word(token, i, i + 1))
    return tuple(Word(word.text.strip(), word.start, word.stop) for word in words)


def continues(text: str, token: str) -> bool:
    """Whether a token goes on with the word that `text` ends in."""
    if not token or not text or token[:1].isspace() or text[-1:].isspace():
        return False
    return (text[-1].isalnum() or text[-1] in "'-�") and (token[0].isalnum() or token[0] in "'-�")


def by_word(values: Float[Tensor, answer * rest], words: Sequence[Word]) -> Float[Tensor, word * rest]:
    """Sum token values into word values; log-probabilities add up to those of the word."""
    return torch.stack([values[word.start : word.stop].sum(0) for word in words])
