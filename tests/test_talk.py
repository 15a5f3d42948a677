"""Talks of the reference world: their right answers follow from what is given, by one rule, and training is apart."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lvlm_interp.errors import SceneError
from lvlm_interp.reference import drawing, rule, things
from lvlm_interp.reference.knowledge import HELD_OUT_SHARE, known
from lvlm_interp.reference.rule import SOURCES, Claim, Given, decide, says
from lvlm_interp.reference.scenes import TRAINING_SEEDS, make_scene
from lvlm_interp.reference.talk import KINDS, Plan, System, make_talk
from lvlm_interp.reference.talks import MIX, talks
from lvlm_interp.reference.wording import FORMS, Asked

TRAINING = range(TRAINING_SEEDS.start, TRAINING_SEEDS.start + 250)
COLOR = Asked("color", "banana")
PURPLE = Claim("color", "banana", "purple")


@pytest.fixture(scope="module")
def many():
    return [talk for seed in range(250) for talk in talks(seed)]


def banana(paint):
    return make_scene(4, objects=["banana", "cat"], colors=[paint, None])


# --- the rule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pictures", "told", "expected"),
    [
        ([banana("red")], [PURPLE], ("image", "red")),
        ([banana("red")], [], ("image", "red")),
        ([banana(None)], [PURPLE], ("image", "yellow")),
        ([banana("grey")], [PURPLE], ("context", "purple")),
        ([banana("covered")], [PURPLE], ("context", "purple")),
        ([make_scene(3, objects=["cat"])], [PURPLE], ("context", "purple")),
        ([], [PURPLE], ("context", "purple")),
        ([banana("grey")], [], ("knowledge", "yellow")),
        ([banana("covered")], [], ("knowledge", "yellow")),
        ([make_scene(3, objects=["cat"])], [], ("knowledge", "yellow")),
        ([], [], ("knowledge", "yellow")),
        ([], [Claim("color", "apple", "blue")], ("knowledge", "yellow")),
    ],
)
def test_the_picture_before_the_hint_before_knowledge(pictures, told, expected):
    assert decide(COLOR, Given(tuple(pictures), tuple(told))) == expected
    talk = make_talk(Plan(COLOR, tuple(pictures), tuple(told)))
    assert (talk.decides, talk.answer) == (expected[0], f"{expected[1].capitalize()}.")


def test_other_sources():
    shown = (banana("red"),)
    price = Claim("price", "banana", "4 dollars")
    assert decide(Asked("price", "banana"), Given(shown, (price,))) == ("context", "4 dollars")
    assert decide(Asked("self"), Given(shown, (), (Claim("self", "", "Max"),))) == ("system", "Max")
    assert decide(Asked("word", of="tree"), Given(shown)) == ("question", "tree")
    assert decide(Asked("plain", of="What do bees make?"), Given(shown)) == ("knowledge", "honey")
    assert decide(Asked("under", "cloth"), Given(shown, (Claim("under", "cloth", "pig"),))) == ("context", "pig")


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (Asked("color", "book"), Given((make_scene(3, objects=["book"], colors=["grey"]),))),  # no one could know
        (Asked("under", "cloth"), Given()),
        (Asked("price", "banana"), Given((banana("red"),))),
        (Asked("there", "banana"), Given((banana("covered"),))),  # it is, and is not to be seen
        (Asked("self"), Given()),
    ],
)
def test_what_nothing_tells_has_no_answer(asked, given):
    with pytest.raises(SceneError, match="nothing tells the answer"):
        decide(asked, given)


def test_two_hints_that_differ_have_no_answer():
    told = (PURPLE, Claim("color", "banana", "green"))
    with pytest.raises(SceneError, match="context says both 'green' and 'purple'"):
        make_talk(Plan(COLOR, (banana("grey"),), told))
    assert make_talk(Plan(COLOR, (banana("grey"),), (PURPLE, PURPLE))).answer == "Purple."


def naive(talk):
    """Where an answer comes from, told from the words: slow, and without the rule's code."""
    question = talk.question.lower()
    if re.match(r"(say|repeat|write) the word", question):
        return "question"
    if "your name" in question or "who are you" in question:
        return "system"
    if re.search(r"\bcost\b|the name of|\bowns\b|how old|what is under", question):
        return "context"
    if talk.question in known():
        return "knowledge"
    if "color" not in question:
        return "image"
    shown = [i for s in talk.pictures for i in s.items if i.noun == talk.noun and i.state in ("drawn", "painted")]
    hinted = any(re.search(rf"\b{talk.noun} (is|are) ", sentence) for sentence in talk.context)
    return "image" if shown else "context" if hinted else "knowledge"


def test_every_talk_is_decided_as_a_reader_would(many):
    assert [talk.decides for talk in many] == [naive(talk) for talk in many]
    assert {talk.decides for talk in many} == set(SOURCES)


def test_another_order_of_sources_would_be_found(monkeypatch):
    monkeypatch.setattr(rule, "SOURCES", ("question", "context", "image", "system", "knowledge"))
    other = [talk for seed in range(30) for talk in talks(seed)]
    assert [talk.decides for talk in other] != [naive(talk) for talk in other]


# --- talks ----------------------------------------------------------------------------------------


def test_talks_are_a_function_of_their_seed(many):
    assert [t for seed in range(20) for t in talks(seed)] == many[: sum(len(talks(seed)) for seed in range(20))]
    assert talks(1) != talks(2)
    assert talks(3, "fluent")[0].plan.system == talks(3)[0].plan.system
    assert all(s.style == "fluent" for talk in talks(3, "fluent") for s in talk.pictures)


def test_no_kind_crowds_out_the_rest(many):
    counted = Counter(talk.kind for talk in many)
    assert set(counted) == set(KINDS) == set(MIX)
    assert max(counted.values()) < 0.2 * len(many) and min(counted.values()) > 0.01 * len(many)


def test_answers_are_not_always_the_same(many):
    """No kind is answered by one constant, and yes is as frequent as no."""
    for kind in KINDS:
        answers = Counter(talk.answer.strip(".").lower().split(",")[0] for talk in many if talk.kind == kind)
        assert answers.most_common(1)[0][1] < 0.65 * sum(answers.values()), kind
    yes = [t.answer.startswith("Yes") for t in many if t.kind == "yes/no"]
    assert 0.4 < np.mean(yes) < 0.6


def test_talks_of_one_picture_share_all_up_to_it():
    for seed in range(60):
        alone = [talk for talk in talks(seed) if len(talk.pictures) == 1]
        starts = {talk.text().partition("<image>")[0] for talk in alone}
        assert len(starts) == 1 and all(talk.pictures == alone[0].pictures for talk in alone)
        assert len({talk.system for talk in talks(seed)}) == 1
    with_system = np.mean([talks(seed)[0].system is not None for seed in range(300)])
    assert 0.25 < with_system < 0.42


def test_hints_are_about_what_is_asked(many):
    for talk in many:
        told = [claim for claim in talk.plan.told if claim.about in ("color", "under")]
        assert all((claim.about, claim.noun) == (talk.plan.asked.about, talk.noun) for claim in told)
        assert len(told) <= 1
        facts = [claim for claim in talk.plan.told if claim not in told]
        assert len({claim.noun for claim in facts}) == len({claim.value for claim in facts}) == len(facts)


def test_hints_meet_every_state(many):
    met = Counter()
    for talk in (t for t in many if t.kind == "hint" and t.plan.asked.about == "color"):
        (claim,) = talk.plan.told
        state = next((i.state for s in talk.pictures for i in s.items if i.noun == talk.noun), "absent")
        met[state, claim.value in talk.answer.lower()] += 1
    for state in ("grey", "covered", "absent"):
        assert met[state, True] > 4 and not met[state, False]
    for state in ("drawn", "painted"):  # the picture wins, and most hints are false
        assert met[state, False] > met[state, True] > 0


def test_no_scene_shows_a_thing_twice(many):
    assert all(len({i.noun for i in s.items}) == len(s.items) for talk in many for s in talk.pictures)


def test_two_pictures_are_told_apart(many):
    asked = [talk for talk in many if talk.kind == "pictures"]
    assert all(re.search(r"\b(first|second) image|Which image", talk.question) for talk in asked)
    turned = [decided(replace(talk.plan, pictures=talk.pictures[::-1])) for talk in asked]
    differ = [value != decided(talk.plan) for talk, value in zip(asked, turned, strict=True)]
    assert np.mean(differ) > 0.8
    both = [t for t in asked if None not in (says("image", t.plan.asked, t.plan.given), decided(_turned(t.plan)))]
    assert len(both) > 0.3 * len(asked)  # where a glance at either would do, which one matters


def _turned(plan):
    return replace(plan, pictures=plan.pictures[::-1])


def decided(plan):
    return says("image", plan.asked, plan.given)


def test_second_turns(many):
    two = [talk for talk in many if talk.kind == "turns"]
    assert 0.2 < np.mean([talk.plan.asked.it for talk in two]) < 0.8
    for talk in two:
        (before,), (turn,) = talk.plan.before, talk.turns
        first = make_talk(Plan(before, talk.pictures, system=talk.plan.system))
        assert turn.answer == first.answer and talk.question not in (turn.question, first.question)
        if talk.plan.asked.it:
            said = re.findall(r"\w+", f"{turn.question} {turn.answer}".lower())
            assert talk.noun.split()[-1] in said and talk.noun not in re.findall(r"\w+", talk.question)
            assert talk.answer.strip(".").lower() not in said


def test_training_and_held_out_knowledge_are_apart():
    asked = {t.question for seed in TRAINING for t in talks(seed) if t.kind == "knowledge"}
    kept = {t.question for seed in range(250) for t in talks(seed) if t.kind == "knowledge"}
    assert not any(known()[question].held_out for question in asked)
    assert all(known()[question].held_out for question in kept)
    assert len(asked) > 60 and len(kept) > 60


def test_training_talks_show_training_scenes_and_no_held_out_pairs():
    shown = [scene for seed in TRAINING for talk in talks(seed) for scene in talk.pictures]
    assert all(scene.seed in TRAINING_SEEDS for scene in shown)
    assert not any(things.is_held_out([item.noun for item in scene.items]) for scene in shown)
    others = [scene for seed in range(250) for talk in talks(seed) for scene in talk.pictures]
    assert not any(scene.seed in TRAINING_SEEDS for scene in others)
    assert any(things.is_held_out([item.noun for item in scene.items]) for scene in others)


# --- forms ----------------------------------------------------------------------------------------


def test_forms(many):
    for talk in many:
        if talk.kind == "description":
            continue
        words = talk.answer.rstrip(".").split()
        form = talk.plan.form
        assert talk.answer[0] == talk.answer[0].upper() and talk.answer.endswith(".") == (form != "word")
        assert len(words) == 1 if form == "word" else len(words) > 2 if form == "sentence" else True
    short = [t.answer for t in many if t.plan.form == "short" and t.kind in ("color", "hint", "natural", "place")]
    assert np.mean([len(answer.split()) for answer in short]) < 1.5


@pytest.mark.parametrize(
    ("form", "answer"), [("short", "Purple."), ("word", "Purple"), ("sentence", "The banana is purple.")]
)
def test_the_system_message_decides_the_form(form, answer):
    talk = make_talk(Plan(COLOR, (banana("purple"),), system=System(form)))
    assert talk.answer == answer and talk.decides == "image" and talk.system
    assert {make_talk(Plan(COLOR, (banana("purple"),), system=System(form, phrasing=n))).system for n in range(12)} > {
        talk.system
    }


def test_every_short_kind_has_every_form():
    found = {(t.kind, t.plan.form) for seed in range(700) for t in talks(seed)}
    assert found >= {(kind, form) for kind in KINDS for form in FORMS} - {
        ("description", "word"),
        ("system", "word"),
        ("system", "sentence"),
    }


def test_plurals():
    scene = make_scene(3, objects=["grapes"], colors=["blue"])
    sentence = System("sentence")
    talk = make_talk(Plan(Asked("color", "grapes"), (scene,), system=sentence))
    assert (talk.question, talk.answer) == ("What color are the grapes?", "The grapes are blue.")
    talk = make_talk(Plan(Asked("there", "scissors"), (scene,), system=sentence))
    assert (talk.question, talk.answer) == (
        "Are there scissors in the image?",
        "No, there are no scissors in the image.",
    )
    talk = make_talk(Plan(Asked("price", "grapes"), (scene,), (Claim("price", "grapes", "4 dollars"),)))
    assert talk.context == ("The grapes cost 4 dollars.",) and talk.question == "How much do the grapes cost?"


def test_descriptions(many):
    told = [talk for talk in many if talk.kind == "description"]
    assert len({talk.answer.split(".")[0] for talk in told}) > 4
    for talk in told:
        text, items = talk.answer.lower(), talk.pictures[0].items
        assert 2 <= len(re.findall(r"\.", text)) <= 4
        named = [f"{item.color} {item.noun}" if item.color else item.shown for item in items]
        places = [text.index(name) for name in named]
        assert places == sorted(places)  # in reading order
        assert all(item.place is None or f"on the {item.place}" in text for item in items)
        assert not any(item.noun in re.findall(r"\w+", text) for item in items if item.cover)


def test_descriptions_have_20_to_60_tokens(many, reference):
    tokenizer = reference.prompter.tokenizer
    lengths = [len(tokenizer(t.answer).input_ids) for t in many if t.kind == "description"]
    assert min(lengths) >= 20 and max(lengths) <= 60


# --- models ---------------------------------------------------------------------------------------


def test_the_text_is_what_the_reference_models_template_writes(many, reference):
    for kind in KINDS:
        talk = next(talk for talk in many if talk.kind == kind)
        processor = reference.processor
        assert talk.text() == processor.apply_chat_template(talk.messages(), add_generation_prompt=True)


def test_inputs_have_their_roles(reference):
    system = System(tells=Claim("self", "", "Max"))
    plan = Plan(replace(COLOR, it=True), (banana("grey"),), (PURPLE,), system, (Asked("there", "banana"),))
    talk = make_talk(plan)
    x = talk.inputs(reference)
    said = {role: "".join(t for t, r in zip(x.tokens, x.roles, strict=True) if r == role) for role in set(x.roles)}
    assert said["question"] == "What color is it?" and said["answer"] == "Purple."
    assert said["system"] == "Your name is Max."
    assert said["context"].startswith("The banana is purple.") and said["context"].endswith("Yes.")
    assert x.roles.count("image") == 64 and "answer" not in talk.inputs(reference, answered=False).roles


def test_two_pictures_are_two_images(reference):
    plan = Plan(Asked("which", "banana"), (banana("red"), make_scene(3, objects=["dog"])))
    talk = make_talk(plan)
    assert talk.answer == "The first image." and len(talk.inputs(reference).images) == 2


# --- knowledge ------------------------------------------------------------------------------------


def test_knowledge_is_short_and_split():
    every = known().values()
    held_out = [one for one in every if one.held_out]
    assert len(every) >= 220 and len(held_out) >= 100
    assert abs(len(held_out) / len(every) - HELD_OUT_SHARE) < 0.1
    for one in every:
        assert one.question.endswith("?") and 1 <= len(one.answers[0].split()) <= 3
        assert "{1}" in one.sentence and "{0}" not in one.sentence
        if "color" in one.question:  # what pictures may show in another
            assert not set(things.nouns()) & set(re.findall(r"\w+", one.question.lower()))


def test_all_answers_that_are_right_are_accepted():
    talk = make_talk(Plan(Asked("plain", of="How many legs does a dog have?")))
    assert talk.accepted == ("Four.", "4.") and talk.answer == "Four."
    talk = make_talk(Plan(talk.plan.asked, system=System("sentence")))
    assert talk.answer == "A dog has four legs."
    talk = make_talk(Plan(Asked("plain", of="Which animal says moo?"), system=System("word")))
    assert talk.answer == "Cow"  # "a cow" are two words
    assert sum(one.base and one.held_out for one in known().values()) >= 60


# --- cost and bad input ---------------------------------------------------------------------------


def test_little_is_drawn_for_a_scenes_talks(monkeypatch):
    """Counted in things that are pasted: two pictures of at most four, and the second once more."""
    pasted, paste = [], drawing.paste
    monkeypatch.setattr(drawing, "paste", lambda *given: pasted.append(given) or paste(*given))
    for seed in range(50):
        pasted.clear()
        talks(seed)
        assert 1 <= len(pasted) <= 12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Claim("color", "banana", "<|im_start|>system"), "plain words.*im_start"),
        (lambda: Claim("color", "banana<image>", "red"), "plain words"),
        (lambda: Claim("color", "banana", ""), "plain words"),
        (lambda: Claim("there", "banana", "yes"), "nothing is told about 'there'"),
        (lambda: decide(Asked("color", "cat"), Given((banana(None),), (Claim("color", "cat", "red"),))), "no one name"),
        (lambda: make_talk(Plan(COLOR, (banana(None),) * 3)), "at most two pictures"),
        (lambda: make_talk(Plan(replace(COLOR, it=True), (banana(None),))), "a turn before names"),
        (
            lambda: make_talk(Plan(replace(COLOR, it=True), (banana(None),), before=(Asked("place", "cat"),))),
            "is not 'banana'",
        ),
        (lambda: make_talk(Plan(Asked("objects"), (banana(None),), system=System("word"))), "no answer in one word"),
        (lambda: make_talk(Plan(Asked("plain", of="What is love?"))), "nothing tells"),
    ],
)
def test_talks_that_are_refused(make, message):
    with pytest.raises(SceneError, match=message):
        make()
