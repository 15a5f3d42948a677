"""Data sets for probes say what their scenes show, and cannot be answered without looking."""

from collections import Counter

import pytest

from lvlm_interp.errors import SceneError
from lvlm_interp.reference.questions import LEVELS, examples, words
from lvlm_interp.reference.scenes import COLORS, TRAINING_SEEDS


@pytest.mark.parametrize("level", LEVELS)
def test_a_data_set_is_a_function_of_its_seed(level):
    assert list(examples(level, 5, seed=9)) == list(examples(level, 5, seed=9)) != list(examples(level, 5, seed=10))
    assert all(e.group == e.scene.seed not in TRAINING_SEEDS for e in examples(level, 5))


def test_labels_are_true():
    for e in examples("presence", 40):
        assert (e.label == "yes") == (e.type in [item.noun for item in e.scene.items]) == (e.centre is not None)
    for e in examples("object", 40):
        assert [item.noun for item in e.scene.items] == [e.label]
    for e in examples("attribute", 40):
        assert e.scene.item(e.type).color == e.label and e.type in e.question
    for e in examples("relation", 40):
        (other,) = [item for item in e.scene.items if item.noun != e.type]
        left, top, right, bottom = other.box
        x, y = e.centre
        inside = {"left": x < left, "right": x > right, "above": y < top, "below": y > bottom}
        assert inside[e.label]


@pytest.mark.parametrize(("level", "classes"), [("presence", 2), ("object", 8), ("attribute", 7), ("relation", 4)])
def test_no_label_is_rare_and_none_can_be_guessed(level, classes):
    counted = Counter(e.label for e in examples(level, 300))
    assert len(counted) == classes
    assert min(counted.values()) > 150 / classes and max(counted.values()) < 600 / classes


def test_questions_do_not_tell_the_answer():
    for level in ("presence", "relation"):
        assert not any(e.label in e.question.lower().split() for e in examples(level, 40))
    assert not any(color in e.question for e in examples("attribute", 40) for color in COLORS if color != "orange")


def test_words_end_true_answers():
    read = list(words(40, seed=9))
    assert read == list(words(40, seed=9)) and {len(e.scene.items) for e in read} == {1, 2, 3, 4}
    for e in read:
        (whole,) = [q.answer for q in e.scene.questions() if q.kind == "objects"]
        left, top, right, bottom = e.scene.item(e.label).box
        assert whole.startswith(e.answer) and e.answer.lower().endswith(e.label)
        assert e.centre == ((left + right) / 2, (top + bottom) / 2)
    assert any(e.label != e.scene.items[0].noun for e in read)


def test_an_unknown_level_is_refused():
    with pytest.raises(SceneError, match="no level 'mood'"):
        examples("mood", 1)
