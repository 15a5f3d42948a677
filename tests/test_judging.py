"""Definitions of credit, judged: on examples whose deciding source, and whose credit, are made by hand."""

import dataclasses

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.attribution.definitions import DEFINITIONS, Definition, definition_of
from lvlm_interp.attribution.judging import BY_KIND, CONSTANT
from lvlm_interp.errors import InputError
from lvlm_interp.report import figures
from tests.swapping import made_test, split_of, swapped

WORTH = {"prior": -1.0, "question": 2.0, "context": 0.5, "image": 3.0}


def test_the_source_that_has_most_is_named():
    odds = definition_of("odds, answer")
    assert odds.names(split_of(WORTH)) == "image" and odds.names(split_of({"prior": 9.0})) == "knowledge"
    assert list(odds.nats(split_of(WORTH)).items())[:2] == [
        ("image", pytest.approx(3.0)),
        ("question", pytest.approx(2.0)),
    ]


def test_once_asked_the_question_is_a_part_of_what_was_known():
    """Its nats are the prior's: the same split, another name."""
    worth = {"prior": 2.0, "question": 2.0, "image": 3.0}
    assert definition_of("odds, answer").names(split_of(worth)) == "image"
    asked = definition_of("odds, answer, once asked")
    assert asked.names(split_of(worth)) == "knowledge" and asked.nats(split_of(worth))["knowledge"] == pytest.approx(4)


def test_a_question_that_asks_is_named_where_it_holds_the_answer():
    """What a question brings is knowledge, or where the answer stands in it, its own; together, always its own."""
    worth = {"prior": 1.0, "question": 4.0, "image": 3.0}
    asked, together = definition_of("odds, answer"), definition_of("odds, answer, together")
    assert asked.names(split_of(worth, quoting=(False,))) == "knowledge"
    assert asked.names(split_of(worth, quoting=(True,))) == "question"
    assert {together.names(split_of(worth, quoting=(quoted,))) for quoted in (True, False)} == {"question"}
    told, before = definition_of("as a diagnosis says"), definition_of("as a diagnosis says, together")
    assert told.names(split_of(worth, quoting=(False,))) == "knowledge"
    assert before.names(split_of(worth, quoting=(False,))) == "question"


def test_another_value_may_name_another_source():
    """The values of `full` are 9 nats more, whatever is seen: that is the prior's."""
    assert definition_of("full, answer").names(split_of(WORTH)) == "knowledge"


def test_a_diagnosis_groups_the_prompt_first():
    worth = {"image": 3.0, "question": 2.0, "context": 2.0}
    told = definition_of("as a diagnosis says")
    assert definition_of("odds, answer").names(split_of(worth)) == "image" and told.names(split_of(worth)) == "question"
    assert told.names(split_of({"prior": -1.0})) == ""  # nothing speaks for it


def test_hiding_one_alone_is_not_shapley():
    """Two sources that stand in for each other lose nothing when one is hidden; Shapley shares between them."""
    split = split_of({})
    seen = torch.arange(16)
    both = ((seen & 2 > 0) | (seen & 8 > 0)).double() * 4.0  # context or image
    split = dataclasses.replace(split, numbers=(both + 0.5).expand(2, 1, 16).contiguous())
    hidden, shapley = definition_of("odds, answer, one hidden"), definition_of("odds, answer")
    assert hidden.names(split) == "knowledge" and hidden.nats(split)["image"] == 0
    assert shapley.names(split) in ("image", "context") and shapley.nats(split)["image"] == pytest.approx(2.0)


# --- judged -----------------------------------------------------------------------------------------------------------


def worlds(count=10):
    """Examples that the image, the hint and knowledge decide, credited rightly but for one."""
    right = [
        swapped(source, {"prior": 0.1, own: 3.0}, f"{source} {i}", source, f"{source} {i}")
        for source, own in (("image", "image"), ("context", "context"), ("knowledge", "prior"))
        for i in range(count)
    ]
    wrong = swapped("context", {"image": 2.0, "context": 1.5}, "wrong", "context", "wrong")
    return made_test(*right, wrong)


def test_a_definition_is_right_where_it_names_what_decides():
    found = li.judged(worlds(), ["odds, answer"])
    assert found.of("odds, answer") == pytest.approx(30 / 31) and found.of("odds, answer", "context") == pytest.approx(
        10 / 11
    )
    assert found.of("odds, answer", "image") == 1.0 and found.counts.tolist() == [31, 10, 11, 10]
    (miss,) = found.misses
    assert (miss.example, miss.decides, miss.named, miss.first, miss.second) == (
        *("wrong", "context", "image", "image", "context"),
    )
    assert (miss.first_value, miss.second_value) == (pytest.approx(2.0), pytest.approx(1.5))
    assert found.missed()["example"].tolist() == ["wrong"]


def test_guesses_stand_beside():
    """The constant guess is as good as its source is frequent; by kind, it is right where a kind has one source."""
    found = li.judged(worlds(), ["odds, answer"])
    assert found.of(CONSTANT) == pytest.approx(11 / 31) and found.of(BY_KIND) == 1.0
    assert found.of(CONSTANT, "context") == 1.0 and found.of(CONSTANT, "image") == 0.0


def test_intervals_are_as_wide_as_groups_ask_for():
    """Ten questions about each of two pictures tell less than twenty pictures."""
    alone = [swapped("image", {"image": 1.0 if i < 10 else -1.0}, str(i), group=str(i)) for i in range(20)]
    paired = [dataclasses.replace(e, group="ab"[int(e.name) // 10]) for e in alone]
    wide, narrow = (li.judged(made_test(*some), ["odds, answer"]) for some in (paired, alone))
    assert wide.of("odds, answer") == narrow.of("odds, answer") == 0.5
    assert float(wide.high[0, 0] - wide.low[0, 0]) > 1.5 * float(narrow.high[0, 0] - narrow.low[0, 0])
    assert float(wide.low.min()) >= 0 and float(wide.high.max()) <= 1


def test_what_cannot_judge_is_left_out_and_said():
    several = swapped("image", WORTH, "s")
    moved = [dataclasses.replace(v, answer="Blue.") if v.source == "context" else v for v in several.variants]
    several = dataclasses.replace(several, variants=tuple(moved))
    uncredited = dataclasses.replace(swapped("image", WORTH, "u"), splits={}, failed="no")
    test = made_test(swapped("image", WORTH), several, uncredited)
    found = li.judged(test)
    assert found.left_out == {"decided by several": 1, "without credit": 1} and found.counts.tolist()[0] == 1
    assert "1 decided by several" in found.note
    with pytest.raises(InputError, match=r"none of the 1 examples can judge: \{'decided by several': 1\}"):
        li.judged(made_test(several))


def test_what_is_unclear_is_counted_if_it_is_asked_for():
    example = swapped("knowledge", {"prior": 1.0})
    away = dataclasses.replace(example.variants[1], image="", answer="Red.")
    over = dataclasses.replace(example.variants[1], answer="Blue.")
    unclear = dataclasses.replace(example, variants=(*example.variants[:1], away, over, *example.variants[2:]))
    test = made_test(unclear, swapped("image", WORTH, "clear"))
    assert li.judged(test).left_out == {"unclear": 1} and li.judged(test, unclear=True).counts.tolist()[0] == 2


def test_a_definition_of_ones_own():
    always = Definition("the question", of=lambda split: {"question": 1.0, "prior": 0.0})
    found = li.judged(worlds(), [always, "odds, answer"])
    assert found.definitions[:2] == ("the question", "odds, answer") and found.of("the question") == 0.0


def test_only_parts_that_were_credited_are_judged():
    word = {"word": split_of(WORTH)}
    test = made_test(dataclasses.replace(swapped("image", WORTH), splits=word))
    assert {definition_of(name).part for name in li.judged(test).definitions[:-2]} == {"word"}
    with pytest.raises(InputError, match=r"is of the answer, and this test has credit of \['word'\]"):
        li.judged(test, ["odds, answer"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"definitions": ["old"]}, "no definition 'old'; there are"),
        ({"definitions": ["odds, answer", "odds, answer"]}, "two definitions are called 'odds, answer'"),
        ({"confidence": 1.0}, "between 0 and 1"),
        ({"samples": 0}, "samples is 1 or more"),
        ({"seed": 2**70}, "seed"),
    ],
)
def test_what_cannot_be_asked(given, said):
    with pytest.raises(InputError, match=said):
        li.judged(made_test(), **given)
    with pytest.raises(InputError, match="'red' was not judged"):
        li.judged(made_test()).of("odds, answer", "red")


def test_the_same_seed_gives_the_same_table():
    assert li.judged(worlds()) == li.judged(worlds()) and set(DEFINITIONS) < set(li.judged(worlds()).definitions)


def test_the_figure_draws_each_definition_with_its_interval():
    found = li.judged(worlds(), ["odds, answer", "full, answer"])
    ax = figures.judged_definitions(found)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(found.definitions)
    (points,) = (line for line in ax.lines if line.get_label() == "right")
    assert points.get_xdata().tolist() == pytest.approx(found.right[:, 0].tolist())
    with pytest.raises(InputError, match="'red' was not judged"):
        figures.judged_definitions(found, "red")
