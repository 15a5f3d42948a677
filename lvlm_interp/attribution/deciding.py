"""Which source decides an answer, told by which changes of the real input change it.

Of an example, a0 is the answer to the original. A version *moves* the answer if it is answered by something else than
a0 (`by="changed"`), or by what the changed source says (`by="followed"`, where the table tells what that is). Of a
source among image, context and system message,

- it decides, if putting something else in its place moves the answer, and taking it away does too: at least half of
  the versions of either sort, of the sorts that there are;
- it overrules, if something else in its place would move the answer, but without it the answer stays: something else
  says the same, or it only speaks in other versions;
- it is missed, if the answer moves without it, whatever else stands in its place: it is needed, for what it does not
  say;
- it is idle, if neither moves the answer.

This is *given the question*: another question nearly always has another answer. The question itself decides only what
stands in it: no other source decides, the answer is among its words, and in at least half of its versions the answer
goes along, to words of the other question. What no source decides, and what stays when picture, context and system
message are all gone, is knowledge. Where two sources decide, or only their change together moves the answer, it is
several.

An answer that stands in the question, and that other questions are given too, is knowledge. Where those are given
others, which do not stand in them ("What do hens lay?", "Hens."; "What do bees make?", "Honey."), it may be either: it
is unclear. So it is where a source would overrule it or is missed; and where all that was put in the place of a source
says what was answered, as of a wrong answer it may: then only taking it away tells, which alone misleads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lvlm_interp.attribution.saying import ARTICLES, said, stands_in
from lvlm_interp.attribution.variants import GIVEN, ORIGINAL, Variant
from lvlm_interp.errors import InputError
from lvlm_interp.given import explained

By = Literal["changed", "followed"]
State = Literal["decides", "overrules", "missed", "idle"]

KNOWLEDGE, SEVERAL = "knowledge", "several"
NAMED = ("image", "context", "question", "system", KNOWLEDGE)
"""What one source can be that decides; `several` is no source that a credit could name."""


@dataclass(frozen=True)
class Verdict:
    """Which source decides an answer.

    Attributes:
        source: image, context, question, system, knowledge or several; empty where it cannot be told.
        deciding: the sources that decide, or that do so together.
        states: of each of image, context and system message that was tested.
        clear: whether nothing speaks for another source.
        why: in a few words, what is unclear, or why it cannot be told; empty where all is clear.
    """

    source: str
    deciding: tuple[str, ...]
    states: dict[str, State]
    clear: bool
    why: str = ""


@explained
def verdict_of(variants: Sequence[Variant], by: By = "changed") -> Verdict:
    """Which source decides, from the answers to an original, which stands first, and to its variants.

    Raises:
        InputError: no variants, or the first is no original.
    """
    if not variants or variants[0].source != ORIGINAL:
        raise InputError("which source decides is told by an original, which stands first, and its variants")
    original, *others = variants
    if original.failed:
        return _untold(f"the original failed: {original.failed}")
    others = [other for other in others if not other.failed]
    states: dict[str, State] = {}
    for source in GIVEN:
        alone = [other for other in others if other.source == source]
        if state := _state(source, original, alone, by):
            states[source] = state
        elif source in original.present:
            return _untold(f"no change of the {source} that could tell was answered")
    return _verdict(original, others, states, by)


def _verdict(original: Variant, others: Sequence[Variant], states: dict[str, State], by: By) -> Verdict:
    here = {source: state for source, state in states.items() if source in original.present}
    deciding = tuple(source for source, state in here.items() if state == "decides")
    source = deciding[0] if deciding else KNOWLEDGE
    doubts = [f"the {name} {_DOUBTS[state]}" for name, state in here.items() if state in _DOUBTS]
    doubts += [
        f"whatever stands in place of the {name} says the answer too" for name in here if _alike(name, original, others)
    ]
    if len(deciding) > 1:
        source = SEVERAL
    elif not deciding and (together := _together(original, others, here, by)):
        source, deciding = SEVERAL, together
    elif not deciding and stands_in(original.answer, original.question):
        source, deciding, doubt = _of_question(original, others)
        doubts += doubt
    return Verdict(source, deciding, states, not doubts, "; ".join(doubts))


_DOUBTS = {
    "overrules": "would overrule the answer, which stays without it",
    "missed": "is needed for the answer, whatever it shows or says",
}


def _untold(why: str) -> Verdict:
    return Verdict("", (), {}, clear=False, why=why)


def _state(source: str, original: Variant, alone: Sequence[Variant], by: By) -> State | None:
    """What a source is to the answer; None where no version tells."""
    replaced = [other for other in alone if not other.removes and _tells(original, other)]
    removed = [other for other in alone if other.removes]
    if not replaced and not removed:
        return None
    moves, needed = (_half(original, some, by) for some in (replaced, removed))
    if not replaced or not removed:
        found = moves or needed
        return ("decides" if source in original.present else "overrules") if found else "idle"
    return _STATES[moves, needed]


_STATES: dict[tuple[bool, bool], State] = {
    (True, True): "decides",
    (True, False): "overrules",
    (False, True): "missed",
    (False, False): "idle",
}


def _alike(source: str, original: Variant, others: Sequence[Variant]) -> bool:
    """Whether all that was put in the place of a source says what was answered, so that none of it can move that."""
    replaced = [other for other in others if other.source == source and not other.removes]
    return bool(replaced) and not any(_tells(original, other) for other in replaced)


def _tells(original: Variant, other: Variant) -> bool:
    """Whether its source says something else than the answer; a picture that shows the same proves nothing."""
    return not other.says or said(other.says) != said(original.answer)


@explained
def moves(original: Variant, other: Variant, by: By = "changed") -> bool:
    """Whether a variant moves the answer."""
    if said(other.answer) == said(original.answer):
        return False
    return by == "changed" or not other.says or said(other.answer) == said(other.says)


@explained
def telling_word(words: Sequence[str], variants: Sequence[Variant]) -> int:
    """The number of the word of an answer that tells what decided: the one that most changes do away with.

    Of equals, and where none changes the answer, the first that does not stand in the question. Articles tell nothing
    where there is something else. Other questions do away with all words, and are not counted.

    Args:
        words: of the answer to the original.
        variants: the original first.

    Raises:
        InputError: no words.
    """
    if not words:
        raise InputError("an answer of no words has none that tells")
    original, *others = variants
    moved = [o for o in others if "question" not in o.sources and not o.failed and moves(original, o)]

    def rank(number: int) -> tuple[bool, bool, int, bool, int]:
        word = words[number]
        gone = sum(not stands_in(word, other.answer) for other in moved)
        return not said(word), word.strip().casefold() in ARTICLES, -gone, stands_in(word, original.question), number

    return min(range(len(words)), key=rank)


def _half(original: Variant, others: Sequence[Variant], by: By) -> bool:
    """Whether at least half of some versions, of which there are any, move the answer."""
    count = sum(moves(original, other, by) for other in others)
    return bool(others) and 2 * count >= len(others)


def _together(original: Variant, others: Sequence[Variant], states: dict[str, State], by: By) -> tuple[str, ...] | None:
    """The sources whose change together moves the answer, where that of none does; not those that are only missed."""
    for other in others:
        several = len(other.sources) > 1 and "question" not in other.sources
        missed = other.removes and any(states.get(source) == "missed" for source in other.sources)
        if several and not missed and moves(original, other, by):
            return other.sources
    return None


def _of_question(original: Variant, others: Sequence[Variant]) -> tuple[str, tuple[str, ...], list[str]]:
    """Whether a question that holds the answer decides it, and what is unclear about that."""
    asked = [other for other in others if other.source == "question"]
    along = [moves(original, other) and stands_in(other.answer, other.question) for other in asked]
    if not asked:
        return KNOWLEDGE, (), ["the question holds the answer, and no row changes it"]
    if 2 * sum(along) >= len(along):
        return "question", ("question",), []
    doubt = "the question holds the answer, and others are answered in words that they do not hold"
    return KNOWLEDGE, (), [doubt] * _half(original, asked, "changed")
