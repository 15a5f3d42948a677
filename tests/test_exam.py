"""The exam counts what is right by what was asked, and what descriptions name."""

import inspect
import math

import pytest

from lvlm_interp.engine.score import score
from lvlm_interp.reference import exam
from lvlm_interp.reference.scenes import make_scene
from lvlm_interp.reference.talk import Plan, System, make_talk
from lvlm_interp.reference.talks import talks
from lvlm_interp.reference.wording import Asked


class Knowing:
    """A model that gives the right answer, or else another."""

    def __init__(self, right):
        self.right, self.asked = right, None

    def generate(self, x, max_new_tokens):
        return x.answer if self.right(x) else "No idea at all."


@pytest.fixture
def asked_as_they_are(monkeypatch):
    monkeypatch.setattr(exam.Talk, "inputs", lambda talk, vlm, answered: talk)


def test_every_group_is_asked_and_right_answers_count(asked_as_they_are):
    asked = exam.drawn(range(400), 2)
    given = list(inspect.unwrap(exam.examined)(Knowing(lambda talk: talk.kind != "fact"), asked))
    found = exam.shares(given)
    groups = {name: one for name, one in found.items() if name in exam.GROUPS}
    assert all(one["asked"] >= 2 for one in groups.values()), groups
    assert groups.pop("facts of context")["right"] == 0 and all(one["right"] == 1 for one in groups.values())
    assert found["descriptions"]["precision"] == found["descriptions"]["recall"] == 1
    assert found["descriptions"]["CHAIRi"] == found["descriptions"]["CHAIRs"] == 0


def test_what_is_not_there_is_counted():
    talk = next(talk for seed in range(99) for talk in talks(seed) if talk.kind == "description")
    there = sorted({item.shown for item in talk.pictures[0].items})
    absent = next(noun for noun in ("violin", "taxi", "volcano", "panda", "wrench") if noun not in there)
    told = exam.described([exam.Given(talk, talk.answer), exam.Given(talk, f"A {there[0]} and a {absent}.")])
    said, right = len(there) + 2, len(there) + 1
    assert told["precision"] == round(right / said, 4) and told["CHAIRs"] == 0.5
    assert told["recall"] == round(right / (2 * len(there)), 4)


def test_what_is_remembered_is_held_as_whole_words(asked_as_they_are):
    """An answer that only begins so is none: "red" is not in "Redwood"."""
    remembered = inspect.unwrap(exam.remembered)
    found = remembered(Knowing(lambda talk: True), "sentence")
    assert found["right"] == 1 and found["asked"] >= 60
    assert remembered(Knowing(lambda talk: False), "sentence")["right"] == 0
    assert exam._holds("It is red.", ["Red"]) and not exam._holds("A redwood.", ["Red"])


def test_a_hot_dog_is_no_dog():
    assert exam.mentioned("A hot dog is on the left. A red cat is on the right.") == {"hot dog", "cat"}


@pytest.mark.parametrize(
    ("form", "yes", "no"), [("word", "Purple", "It is purple."), ("sentence", "It is purple.", "Purple.")]
)
def test_forms_are_told_apart(form, yes, no):
    talk = make_talk(Plan(Asked("color", "banana"), system=System(form)))
    assert exam.Given(talk, yes).in_form and not exam.Given(talk, no).in_form


def test_nothing_asked_is_no_share():
    assert math.isnan(exam.shares([])["color"]["right"])


def test_what_is_believed_unseen_is_what_is_said_with_the_image_hidden(reference, monkeypatch):
    """A thing counts if its natural colour is the likeliest with the picture's tokens hidden; another does not."""
    monkeypatch.setattr(exam, "NATURAL_COLORS", {"banana": "yellow"})
    x = reference.prepare(
        "What color is the banana?", make_scene(0, objects=["banana"], colors=["red"]).image, answer="A"
    )
    hidden = score(reference, x, x.hidden("image")[None]).logits()[0, 0]
    likeliest = reference.decode([int(hidden.argmax())]).strip().lower()
    assert exam.believed(reference) == {"banana": likeliest == "yellow"}
    monkeypatch.setattr(exam, "NATURAL_COLORS", {"banana": likeliest})
    assert exam.believed(reference) == {"banana": True}
