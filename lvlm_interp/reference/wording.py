"""How the reference world is spoken of: what can be asked, the words of questions, answers and statements.

A question is data (`Asked`), and so is what an answer says (a value: `purple`, `yes`, `top left`, `cat, dog`). One
table gives the words of both, in three forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lvlm_interp.reference.knowledge import sentence_of
from lvlm_interp.reference.things import capital, is_plural, listed, verb, with_article

About = Literal[
    "there", "relation", "color", "place", "name", "objects", "description", "which",
    "under", "price", "called", "owner", "age", "plain", "word", "self",
]  # fmt: skip
"""What can be asked about, or be told."""
Form = Literal["short", "word", "sentence"]
"""How an answer is given: `Purple.`, `Purple`, `The banana is purple.`"""
FORMS: tuple[Form, ...] = get_args(Form)
ORDINALS = ("first", "second")
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
RELATION = {"left": "to the left of", "right": "to the right of", "top": "above", "bottom": "below"}


@dataclass(frozen=True)
class Asked:
    """A question as data.

    Attributes:
        about: what is asked.
        noun: of which thing; empty where it is asked of no thing.
        of: what else the question names: a place (`name`), a side (`relation`), a word (`word`), or the whole question
            (`plain`).
        other: the thing that it is compared with (`relation`).
        picture: which picture it is asked of, from 0.
        it: whether the thing is called "it", since the turn before named it.
    """

    about: About
    noun: str = ""
    of: str = ""
    other: str = ""
    picture: int = 0
    it: bool = False


@dataclass(frozen=True)
class Wording:
    """The words for what is asked about: questions, the short answer, the sentence, and statements that tell it."""

    questions: tuple[str, ...]
    sentence: str
    short: str = "{value}"
    told: tuple[str, ...] = ()


_HEARD = ("{}.", "I think {}.", "Someone told me that {}.", "My friend says that {}.")


def _heard(said: str) -> tuple[str, ...]:
    """A statement, and ways to have heard it."""
    return tuple(way.format(said) for way in _HEARD)


WORDINGS: dict[About, Wording] = {
    "there": Wording(("{Are} there {a} in {image}?",), "{value}, there {are} {some} in {image}."),
    "relation": Wording(
        ("{Are} {the} {relation} the {other}?",), "{value}, {the} {are} {negation}{relation} the {other}."
    ),
    "color": Wording(("What color {are} {the}?",), "{The} {are} {value}.", told=_heard("{the} {are} {value}")),
    "place": Wording(("Where {are} {the}?",), "{The} {are} on the {value}."),
    "name": Wording(("What is on the {of}?",), "There {value_are} {a_value} on the {of}.", "{a_value}"),
    "objects": Wording(("What is in {image}?",), "{Image} shows {a_value}.", "{a_value}"),
    "description": Wording(
        ("Describe {image}.", "Describe what {image} shows.", "Please describe {image}."), "{value}", "{value}"
    ),
    "which": Wording(("Which image shows {a}?",), "The {value} image shows {a}.", "The {value} image"),
    "under": Wording(
        ("What is under the {noun}?",),
        "There {value_are} {a_value} under the {noun}.",
        "{a_value}",
        _heard("there {value_are} {a_value} under the {noun}"),
    ),
    "price": Wording(
        ("How much {do} {the} cost?",),
        "{The} {cost} {value}.",
        told=("{The} {cost} {value}.", "The price of {the} is {value}.", "In this shop {the} {cost} {value}."),
    ),
    "called": Wording(
        ("What is the name of {the}?",),
        "The name of {the} is {value}.",
        told=("The name of {the} is {value}.", "{The} is called {value}.", "They call {the} {value}."),
    ),
    "owner": Wording(
        ("Who owns {the}?",),
        "{value} owns {the}.",
        told=("{value} owns {the}.", "{The} {belong} to {value}.", "The owner of {the} is {value}."),
    ),
    "age": Wording(
        ("How old {are} {the}?",),
        "{The} {are} {value} old.",
        told=("{The} {are} {value} old.", "The age of {the} is {value}."),
    ),
    "plain": Wording(("{of}",), "{known}"),
    "word": Wording(("Say the word {of}.", "Repeat the word {of}.", "Write the word {of}."), "The word is {value}."),
    "self": Wording(
        ("What is your name?", "Who are you?"),
        "My name is {value}.",
        told=("Your name is {value}.", "You are a robot called {value}.", "You are {value}, a helpful assistant."),
    ),
}


def question_text(asked: Asked, pictures: int = 1, phrasing: int = 0) -> str:
    """The words of a question; with several pictures it says which one is meant."""
    found = WORDINGS[asked.about].questions
    template = found[phrasing % len(found)]
    text = template.format_map(_fields(asked, "", pictures))
    if pictures < 2 or "{image}" in template or asked.about == "which":
        return text
    named = f"in the {ORDINALS[asked.picture]} image"
    if phrasing % 2:
        return f"{capital(named)}, {text[0].lower()}{text[1:]}"
    return f"{text[:-1]} {named}{text[-1]}"


def answer_text(asked: Asked, value: str, form: Form = "short", pictures: int = 1) -> str | None:
    """The words of an answer; None where the value does not go into one word."""
    wording, fields = WORDINGS[asked.about], _fields(asked, value, pictures)
    if form == "word":
        return None if " " in value else capital(value)
    text = capital((wording.sentence if form == "sentence" else wording.short).format_map(fields))
    return text if text.endswith(".") else f"{text}."


def told_text(about: About, noun: str, value: str, phrasing: int = 0) -> str:
    """A statement that tells a value."""
    found = WORDINGS[about].told
    return capital(found[phrasing % len(found)].format_map(_fields(Asked(about, noun), value, 1)))


def names_of(value: str) -> Sequence[str]:
    """The nouns of a value that names things."""
    return value.split(", ")


def _fields(asked: Asked, value: str, pictures: int) -> dict[str, str]:
    """What templates may hold."""
    noun, plural = asked.noun, is_plural(asked.noun)
    the = ("they" if plural else "it") if asked.it else f"the {noun}"
    image = "the image" if pictures < 2 else f"the {ORDINALS[asked.picture]} image"
    return {
        "noun": noun,
        "the": the,
        "The": capital(the),
        "a": with_article(noun) if noun else "",
        "are": verb(noun),
        "Are": capital(verb(noun)),
        "some": with_article(noun) if value == "yes" and noun else f"no {noun}",
        "negation": "not " if value == "no" else "",
        "relation": RELATION.get(asked.of, ""),
        "other": asked.other,
        "of": asked.of,
        "image": image,
        "Image": capital(image),
        "value": value,
        "a_value": listed([with_article(name) for name in names_of(value)]) if value else "",
        "value_are": verb(value),
        "known": sentence_of(asked.of, value) if asked.about == "plain" else "",
        **{word: word if plural else f"{word}s" for word in ("cost", "belong")},
        "do": "do" if plural else "does",
    }
