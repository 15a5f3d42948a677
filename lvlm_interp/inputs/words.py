"""Tokens into words, sentences and other parts of an answer: what is said in several tokens is one thing to explain.

Words and sentences end where Unicode Standard Annex #29 says ("Unicode Text Segmentation", sections 4 and 5), in any
script. It knows no dictionary: where words are written without blanks, a Chinese or Japanese word is a character (or a
run of Katakana), and a Thai, Lao, Khmer or Burmese one a letter with its marks, so that a token of several is the word.
What knows a language's words cuts better, and can be handed in: anything that takes a text and gives its pieces
(`jieba.cut`, `pythainlp.word_tokenize`). Nor does it know abbreviations: "Dr. Smith" is two sentences.

Beyond the annex, hyphens, apostrophes, superscripts and fractions belong to the letters and digits that they touch.
"""

from __future__ import annotations

import bisect
import itertools
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from uniseg.sentencebreak import sentences
from uniseg.wordbreak import words

from lvlm_interp.errors import InputError
from lvlm_interp.fields import shown
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.spelling import LOST, Decode, Spelled, spelled

Segmenter = Callable[[str], Iterable[str]]
"""Cuts a text into words: the pieces, put together, are the text."""
Unit = Literal["token", "word", "sentence", "answer"] | tuple[int, int] | Segmenter
"""What is explained at once; a pair is a span of answer tokens (start, stop), counted from 0; a `Segmenter` cuts words.
"""
UNITS = ("token", "word", "sentence", "answer")
JOINING = "'-"  # belong to the word that they touch


@explained
def by_unicode(text: str) -> Iterable[str]:
    """A text in words, by Unicode's rules."""
    return iter(words(text))


@dataclass(frozen=True)
class Word:
    """A word, or another part of the answer, and its tokens: `start` and `stop` count answer tokens from 0."""

    text: str
    start: int
    stop: int

    @property
    def is_content(self) -> bool:
        """False for punctuation and blanks; pictures such as emoji are content."""
        return any(c.isalnum() or (unicodedata.category(c) == "So" and c != LOST) for c in self.text)


@explained
def parts_of(x: Inputs, unit: Unit | str, decode: Decode | None = None) -> tuple[Word, ...]:
    """The answer in parts.

    Args:
        x: an example with an answer.
        unit: `token`, `word`, `sentence`, `answer`, a span (start, stop) of its tokens, which is the only part, or what
            cuts a text into words.
        decode: what makes text of token ids (`vlm.decode`); without it, what tokens read as by themselves is put
            together, and a character whose bytes are in several tokens is not known.

    Raises:
        InputError: an unknown unit, a span that is empty or not in the answer, or words that are not the text.
    """
    tokens, ids = x.answer_tokens, x.answer_ids.tolist()
    if isinstance(unit, tuple) and len(unit) == 2:
        return (_span(spelled(tokens, ids, decode), unit),)
    if callable(unit):
        return split_words(tokens, ids, decode, unit)
    if not isinstance(unit, str) or unit not in UNITS:
        raise InputError(
            f"unit is one of {list(UNITS)}, a span (start, stop) of answer tokens, or a function that cuts a text into "
            f"words, got {unit!r}"
        )
    if unit == "answer":
        return (Word(x.answer.strip() or x.answer, 0, len(tokens)),)
    if unit == "token":
        return tuple(Word(text, i, i + 1) for i, text in enumerate(tokens))
    return (split_words if unit == "word" else split_sentences)(tokens, ids, decode)


@explained
def unit_name(unit: Unit | str) -> str | tuple[int, int]:
    """A unit as results tell it; what cuts words, by its name."""
    if not callable(unit):
        return unit
    return f"{getattr(unit, '__module__', '')}.{getattr(unit, '__qualname__', type(unit).__qualname__)}"


def _span(text: Spelled, unit: tuple[int, int]) -> Word:
    (start, stop), count = unit, len(text.starts)
    if not 0 <= start < stop <= count or bool in (type(start), type(stop)):
        raise InputError(
            f"no span {unit} of answer tokens: the answer has {count}, and a span (start, stop) needs "
            f"0 ≤ start < stop ≤ {count}"
        )
    return Word(text.part(start, stop), start, stop)


# --- words ----------------------------------------------------------------------------------------


@explained
def split_words(
    tokens: Sequence[str],
    ids: Sequence[int] | None = None,
    decode: Decode | None = None,
    segmenter: Segmenter = by_unicode,
) -> tuple[Word, ...]:
    """Group tokens into words: each token is in exactly one, and so are all tokens of one character.

    A token that holds several words is one; a blank belongs to the word behind it, the last one to that before, and
    line breaks stand alone.

    Args:
        tokens: what each token reads as.
        ids: their ids, and
        decode: what makes text of ids: needed where a character's bytes are in several tokens.
        segmenter: what cuts a text into words; Unicode's rules by default.

    Raises:
        InputError: the segmenter's words, put together, are not the text.
    """
    text = spelled(tokens, ids, decode)
    edges, begins = _edges(text.text, segmenter), [0] if tokens else []
    for i in range(1, len(tokens)):
        if _parted(text, begins[-1], i, edges):
            begins.append(i)
    spans = itertools.pairwise([*begins, len(tokens)])
    return tuple(Word(text.part(start, stop), start, stop) for start, stop in spans)


@explained
def first_word(
    tokens: Sequence[str], ids: Sequence[int], decode: Decode | None, segmenter: Segmenter = by_unicode
) -> tuple[int, bool]:
    """How many tokens the first word has, and whether it is known to end there, whatever follows.

    It is not where nothing follows yet, half a character, or a sign that parts words before a blank but not between
    letters or digits (`3.` may go on as `3.5`).
    """
    text, stop = spelled(tokens, ids, decode), split_words(tokens, ids, decode, segmenter)[0].stop
    if stop == len(tokens) or not text.ends_whole:
        return stop, False
    return stop, all(text.starts[stop] in _edges(text.text + more, segmenter) for more in "a0")


def _edges(text: str, segmenter: Segmenter) -> set[int]:
    """Where in a text words begin."""
    given = segmenter(text) if text else []
    pieces = list(given) if isinstance(given, Iterable) else [given]
    if wrong := [piece for piece in pieces if not isinstance(piece, str)]:
        raise InputError(f"the segmenter {unit_name(segmenter)} gives texts, one behind another; got {shown(wrong[0])}")
    if "".join(pieces) != text:
        raise InputError(f"the words {pieces[:5]} … of the segmenter {unit_name(segmenter)} are not the text {text!r}")
    return set(itertools.accumulate(map(len, pieces)))


def _parted(text: Spelled, begin: int, token: int, edges: set[int]) -> bool:
    """Whether a word begins with a token, where the one before it began with the token `begin`."""
    start, before = text.starts[token], text.text[text.starts[begin] : text.starts[token]]
    if not text.whole[token] or start not in edges or _joined(text.text, start):
        return False
    return not _only_blank(before) and not _only_blank(text.text[start:])


def _only_blank(text: str) -> bool:
    """Nothing, or blanks that break no line."""
    return not text.strip() and not any(c in "\n\r" for c in text)


def _joined(text: str, place: int) -> bool:
    """Whether two characters belong together that Unicode's rules part."""
    one, other = text[place - 1 : place], text[place : place + 1]
    letters = (one.isalnum() or one in JOINING) and (other.isalnum() or other in JOINING)
    return letters and any(c in JOINING or unicodedata.category(c) == "No" for c in (one, other))


# --- sentences ------------------------------------------------------------------------------------


@explained
def split_sentences(
    tokens: Sequence[str], ids: Sequence[int] | None = None, decode: Decode | None = None
) -> tuple[Word, ...]:
    """Group tokens into sentences: each token is in exactly one, that of its first letter or sign.

    Args:
        tokens: what each token reads as.
        ids: their ids, and
        decode: what makes text of ids: needed where a character's bytes are in several tokens.
    """
    text = spelled(tokens, ids, decode)
    begins = _begins(text.text)
    places = [text.starts[n] + _blanks(text, n) for n in range(len(tokens))]
    numbers = [bisect.bisect_right(begins, place) - 1 for place in places]
    for n, whole in enumerate(text.whole):
        if n and not whole:  # the rest of a character
            numbers[n] = numbers[n - 1]
    found, stop = [], 0
    for _, some in itertools.groupby(numbers):
        start, stop = stop, stop + len(list(some))
        found.append(Word(text.part(start, stop), start, stop))
    return tuple(found)


def _begins(text: str) -> list[int]:
    """Where sentences begin in a text; blank lines belong to what is before them."""
    pieces = list(sentences(text))
    places = itertools.accumulate((len(piece) for piece in pieces), initial=0)
    return [0, *[place for place, piece in zip(places, pieces, strict=False) if piece.strip() and place]]


def _blanks(text: Spelled, token: int) -> int:
    """How many blanks a token begins with, before a letter or sign of its own."""
    stop = text.starts[token + 1] if token + 1 < len(text.starts) else len(text.text)
    own = text.text[text.starts[token] : stop]
    return len(own) - len(own.lstrip()) if own.strip() else 0


@explained
def by_word(values: Float[Tensor, answer * rest], words: Sequence[Word]) -> Float[Tensor, word * rest]:
    """Sum token values into word values; log-probabilities add up to those of the word.

    Raises:
        InputError: no words, or one that ends behind the values.
    """
    if not words or max(word.stop for word in words) > len(values):
        stop = max((word.stop for word in words), default=0)
        raise InputError(
            f"there are {len(values)} values, and {len(words)} words up to the token {stop}: they do not fit"
        )
    return torch.stack([values[word.start : word.stop].sum(0) for word in words])
