"""Variants of talks: one source is replaced, and the answer changes where, and only where, it comes from there."""

from collections import Counter
from dataclasses import fields

import pytest

from lvlm_interp.reference import variants as room
from lvlm_interp.reference.knowledge import known
from lvlm_interp.reference.rule import Claim, says
from lvlm_interp.reference.scenes import TRAINING_SEEDS, make_scene
from lvlm_interp.reference.talk import KINDS, Plan, System, make_talk
from lvlm_interp.reference.talks import talks
from lvlm_interp.reference.things import is_held_out
from lvlm_interp.reference.variants import variants
from lvlm_interp.reference.wording import Asked

PART = {"image": "pictures", "context": "told", "question": "asked", "system": "system"}


@pytest.fixture(scope="module")
def many():
    return [(talk, variants(talk)) for seed in range(60) for talk in talks(seed)]


def test_one_source_is_replaced_and_the_rest_kept(many):
    for talk, found in many:
        for one in found:
            changed = {f.name for f in fields(Plan) if getattr(one.talk.plan, f.name) != getattr(talk.plan, f.name)}
            assert changed == {PART[one.source]}


def test_variants_are_a_function_of_the_talk(many):
    assert all(variants(talk) == found for talk, found in many[:60])


def test_the_answer_follows_the_source_that_decides(many):
    """What decides has a variant with another answer; what does not, has none."""
    moved = Counter()
    for talk, found in many:
        for one in found:
            if one.source in ("image", "context") and one.source != talk.decides:
                assert one.talk.answer == talk.answer, (talk, one)
            if one.name == "another" and one.source == talk.decides:
                assert one.talk.answer != talk.answer
                moved[talk.kind] += 1
    assert set(moved) == set(KINDS) - {"natural", "knowledge"}


def test_whatever_decides_can_be_replaced(many):
    for talk, found in many:
        if talk.decides != "knowledge":
            assert any(one.source == talk.decides and one.name == "another" for one in found), talk


def test_every_source_of_a_talk_has_variants(many):
    missing = Counter()
    for talk, found in many:
        have = {"image": talk.pictures, "context": talk.context, "system": talk.system, "question": True}
        missing.update(source for source, there in have.items() if there and source not in {v.source for v in found})
    assert not missing - Counter(system=len(many) // 20)  # a description has no form in one word


def test_what_a_picture_leaves_open_stays_open(many):
    for talk, found in many:
        value = says("image", talk.plan.asked, talk.plan.given)
        told = [says("image", v.talk.plan.asked, v.talk.plan.given) for v in found if v.source == "image"]
        assert all((other is None) == (value is None) for other in told if talk.pictures) or value is not None
        shown = [v.talk.pictures for v in found if v.source == "image" and v.name == "another"]
        assert talk.pictures not in shown


def test_a_variant_that_changed_more_would_be_found(monkeypatch):
    """The control: with pictures that are not held to say something else, answers of other sources change too."""
    monkeypatch.setattr(room, "_says_otherwise", lambda plan, other: True)
    scene = make_scene(4, objects=["banana", "cat"], colors=["grey", None])
    talk = make_talk(Plan(Asked("color", "banana"), (scene,), (Claim("color", "banana", "purple"),)))
    assert any(v.talk.answer != talk.answer for v in variants(talk, 8) if v.source == "image")


def test_layouts_are_kept_where_the_value_can_change_on_them():
    scene = make_scene(4, objects=["banana", "cat"], colors=["purple", None])
    talk = make_talk(Plan(Asked("color", "banana"), (scene,), (Claim("color", "banana", "red"),)))
    found = variants(talk)
    shown = [v.talk.pictures[0] for v in found if v.source == "image" and v.name == "another"]
    assert len(shown) == 2 and all(other.layout == scene.layout for other in shown)
    assert len({v.talk.answer for v in found if v.source == "image"}) > 1
    (left_out,) = [v for v in found if v.name == "none" and v.source == "image"]
    assert (left_out.talk.decides, left_out.talk.answer) == ("context", "Red.")
    assert [v.name for v in found if v.source == "context"] == ["another", "another", "none"]


def test_a_cloth_stays_where_what_is_under_it_is_asked():
    scene = make_scene(4, objects=["banana", "cat"], colors=["covered", None])
    cover = scene.items[0].cover
    talk = make_talk(Plan(Asked("under", cover), (scene,), (Claim("under", cover, "pig"),)))
    others = [v.talk.pictures[0] for v in variants(talk, 6) if v.source == "image" and v.name == "another"]
    assert others and all(cover in [item.shown for item in other.items] for other in others)


def test_a_plain_question_is_asked_of_something_else():
    """So that an answer which stands in it can be seen to go along."""
    for question in ("What is the capital of Malaysia?", "What do chickens lay?"):
        talk = make_talk(Plan(Asked("plain", of=question)))
        others = [v.talk.question for v in variants(talk) if v.source == "question"]
        family = known()[question].family
        there = sum(one.held_out and one.family == family for one in known().values()) - known()[question].held_out
        alike = [known()[other].family == family for other in others if other in known()]
        assert len(others) == 2 and sum(alike) == min(2, there)


def test_another_system_message():
    named = System(tells=Claim("self", "", "Max"))
    found = variants(make_talk(Plan(Asked("self"), system=named)))
    assert all(v.talk.answer != "Max." for v in found if v.source == "system")
    assert not any(v.name == "none" for v in found)  # nobody told it a name
    found = variants(make_talk(Plan(Asked("color", "banana"), system=System("word"))))
    assert {v.talk.answer for v in found if v.source == "system"} == {"Yellow.", "The banana is yellow."}


def test_training_scenes_are_replaced_by_pairs_that_may_be_shown():
    for seed in range(TRAINING_SEEDS.start, TRAINING_SEEDS.start + 12):
        for talk in talks(seed):
            for one in variants(talk):
                assert not any(is_held_out([item.noun for item in scene.items]) for scene in one.talk.pictures)
