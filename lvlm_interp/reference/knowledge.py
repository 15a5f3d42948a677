"""Plain questions that a small language model may know without any picture, in a training and a held-out part.

They are kept in `knowledge.json` by families: the words of question and sentence with `{0}`, and rows of what goes
there and the right answer; further answers behind it are right too.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

from lvlm_interp.reference.things import capital, share_of

HELD_OUT_SHARE = 0.45


@dataclass(frozen=True)
class Known:
    """A question of plain knowledge.

    Attributes:
        question: its words.
        family: the words of all questions of its kind, with `{0}`.
        answers: those that are right, the usual one first.
        sentence: how the answer is said in a full sentence, with `{1}` where it stands.
        held_out: whether it is kept from training.
        base: whether the base language model named an answer when it was asked (`base_answers.json` says how).
    """

    question: str
    family: str
    answers: tuple[str, ...]
    sentence: str
    held_out: bool
    base: bool


@functools.cache
def known() -> Mapping[str, Known]:
    """All questions of plain knowledge, by their words."""
    rows = ((family, row) for family in _read("knowledge.json") for row in family["rows"])
    found = (_known(family["question"], family["sentence"], *row) for family, row in rows)
    return MappingProxyType({one.question: one for one in found})


def _read(name: str) -> Any:
    return json.loads(resources.files("lvlm_interp.reference").joinpath(name).read_text(encoding="utf-8"))


@functools.cache
def _base() -> frozenset[str]:
    return frozenset(_read("base_answers.json")["right"])


def sentence_of(question: str, value: str) -> str:
    """The full sentence that says a value in answer to a question of plain knowledge."""
    one = known().get(question)
    return capital(one.sentence.replace("{1}", value)) if one else value


def _known(question: str, sentence: str, subject: str, *answers: str) -> Known:
    words = question.replace("{0}", subject)
    held_out = share_of(f"knowledge:{words}") < HELD_OUT_SHARE
    return Known(words, question, answers, sentence.replace("{0}", subject), held_out, words in _base())
