"""Tokens into words, sentences and other parts of an answer: what is said in several tokens is one thing to explain.

Sentences end where Unicode Standard Annex #29 says ("Unicode Text Segmentation", section 5): it knows full stops of all
scripts, but no abbreviations, so that "Dr. Smith" is two sentences.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from uniseg.sentencebreak import sentences

from lvlm_interp.errors import InputError
from lvlm_interp.inputs.example import Inputs

Unit = Literal["token", "word", "sentence", "answer"] | tuple[int, int]
"""What is explained at once; a pair is a span of answer tokens (start, stop), counted from 0."""
UNITS = ("token", "word", "sentence", "answer")
LOST = "�"  # what a token reads as that holds only some of the bytes of a character

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Word:
    """A word, or another part of the answer, and its tokens: `start` and `stop` count answer tokens from 0."""

    text: str
    start: int
    stop: int

    @property
    def is_content(self) -> bool:
        """False for punctuation and blanks."""
        return any(c.isalnum() for c in self.text)


def parts_of(x: Inputs, unit: str | tuple[int, int], decode: Decode | None = None) -> tuple[Word, ...]:
    """The answer in parts.

    Args:
        x: an example with an answer.
        unit: `token`, `word`, `sentence`, `answer`, or a span (start, stop) of its tokens, which is the only part.
        decode: what makes text of token ids (`Prompter.text`); without it, sentences end in no character whose bytes
            are in several tokens.

    Raises:
        InputError: an unknown unit, or a span that is empty or not in the answer.
    """
    tokens = x.answer_tokens
    if isinstance(unit, tuple):
        return (_span(tokens, unit),)
    if unit not in UNITS:
        raise InputError(f"unit is one of {list(UNITS)} or a span (start, stop) of answer tokens, got {unit!r}")
    if unit == "answer":
        return (Word(x.answer.strip(), 0, len(tokens)),)
    if unit == "sentence":
        return split_sentences(tokens, x.answer_ids.tolist(), decode)
    return split_words(tokens) if unit == "word" else tuple(Word(text, i, i + 1) for i, text in enumerate(tokens))


def _span(tokens: Sequence[str], unit: tuple[int, int]) -> Word:
    start, stop = unit
    if not 0 <= start < stop <= len(tokens):
        raise InputError(
            f"no span {unit} of answer tokens: the answer has {len(tokens)}, and a span (start, stop) needs "
            f"0 ≤ start < stop ≤ {len(tokens)}"
        )
    return Word("".join(tokens[start:stop]).strip(), start, stop)


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
    return (text[-1].isalnum() or text[-1] in f"'-{LOST}") and (token[0].isalnum() or token[0] in f"'-{LOST}")


def split_sentences(
    tokens: Sequence[str], ids: Sequence[int] | None = None, decode: Decode | None = None
) -> tuple[Word, ...]:
    """Group tokens into sentences: each token is in exactly one, that of its first letter or sign.

    Args:
        tokens: what each token reads as.
        ids: their ids, and
        decode: what makes text of ids: needed where a character's bytes are in several tokens, none of which reads as
            that character.
    """
    text, starts = _text(tokens, ids, decode)
    begins = _begins(text)
    blanks = [len(token) - len(token.lstrip()) if token.strip() else 0 for token in tokens]
    numbers = [bisect.bisect_right(begins, start + blank) - 1 for start, blank in zip(starts, blanks, strict=True)]
    found, stop = [], 0
    for _, some in itertools.groupby(numbers):
        start, stop = stop, stop + len(list(some))
        edge = starts[stop] if stop < len(starts) else len(text)
        found.append(Word(text[starts[start] : edge].strip(), start, stop))
    return tuple(found)


def _begins(text: str) -> list[int]:
    """Where sentences begin in a text; blank lines belong to what is before them."""
    pieces = list(sentences(text))
    places = itertools.accumulate((len(piece) for piece in pieces), initial=0)
    return [0, *[place for place, piece in zip(places, pieces, strict=False) if piece.strip() and place]]


def _text(tokens: Sequence[str], ids: Sequence[int] | None, decode: Decode | None) -> tuple[str, list[int]]:
    """The text as a whole, and where in it each token begins."""
    text = "".join(tokens)
    if decode is None or ids is None or LOST not in text:
        return text, list(itertools.accumulate(map(len, tokens), initial=0))[:-1]
    text = decode(list(ids))
    # A character that is not whole yet is not there yet: its tokens begin where it does.
    before = [_alike(decode(list(ids[:n])).rstrip(LOST), text) for n in range(len(ids))]
    return text, list(itertools.accumulate(before, max))


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def by_word(values: Float[Tensor, answer * rest], words: Sequence[Word]) -> Float[Tensor, word * rest]:
    """Sum token values into word values; log-probabilities add up to those of the word."""
    return torch.stack([values[word.start : word.stop].sum(0) for word in words])
