"""Which source decides, from answers alone: each rule, with what would be said otherwise."""

import pytest

from lvlm_interp.attribution.deciding import moves, telling_word, verdict_of
from lvlm_interp.attribution.saying import said, stands_in
from lvlm_interp.errors import InputError
from tests.swapping import variant

HINT = {"context": "It is red."}
BARE = {"image": "", "context": "", "system": ""}
RED = variant("original", "Red.")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Red.", "red", True),
        ("A red banana.", "the red  banana", True),
        ("“Red”!", "Red", True),
        ("A", "the", False),  # articles are all there is
        ("-5", "5", False),
        ("3.50", "350", False),
        ("red and blue", "blue and red", False),
        ("Red", "Reddish", False),
    ],
)
def test_answers_are_compared_by_their_words(one, other, same):
    assert (said(one) == said(other)) is same
    assert moves(variant("original", one), variant("image", other)) is not same


def test_an_answer_stands_in_a_text_as_whole_words():
    assert stands_in("Red.", "Say “red”, please") and stands_in("a red cat", "Is the red cat here?")
    assert stands_in("红色", "请说红色。") and not stands_in("黄色", "请说红色。")
    spelt = {"Cafe\u0301": "Say Café.", "isn't": "It’s red, isn’t it?", "red": "Say ＲＥＤ", "Red": "Say re\u00add."}
    spelt |= {"e-mail": "Say e\u2011mail.", "\u22125": "Say -5.", "it's": "Say it´s."}
    signs = {"RED": "Say color:red", "the": "Say the.", "The": "Say a or the.", "C#": "Say C#.", "-5": "Say -5."}
    signs |= {"no": "Is it yes/no?"}
    for answer, text in (*spelt.items(), *signs.items()):
        assert stands_in(answer, text), (answer, text)
    for answer, text in (("C", "Say C#."), ("C", "Say C++."), ("5", "Say -5."), ("the", "Say a.")):
        assert not stands_in(answer, text), (answer, text)
    assert not stands_in("Red", "Is it reddish?") and not stands_in("red cat", "red or cat") and not stands_in("", "a")


@pytest.mark.parametrize(
    ("rows", "state"),
    [
        # something else in its place; taken away
        ([("Blue.", "b.png"), ("I cannot see.", "")], "decides"),
        ([("Blue.", "b.png"), ("Red.", "")], "overrules"),
        ([("Red.", "b.png"), ("I cannot see.", "")], "missed"),
        ([("Red.", "b.png"), ("Red.", "")], "idle"),
        # of one sort only
        ([("Blue.", "b.png")], "decides"),
        ([("Blue.", "")], "decides"),
        ([("Red.", "")], "idle"),
        # half of one sort are enough, fewer are not
        ([("Blue.", "b.png"), ("Red.", "c.png")], "decides"),
        ([("Blue.", "b.png"), ("Red.", "c.png"), ("Red.", "d.png")], "idle"),
    ],
)
def test_what_a_source_is_to_an_answer(rows, state):
    found = verdict_of([RED, *(variant("image", answer, image=shown) for answer, shown in rows)])
    assert found.states == {"image": state} and found.clear is (state in ("decides", "idle"))
    assert found.source == ("image" if state == "decides" else "knowledge")
    assert bool(found.why) is not found.clear


def test_pictures_that_show_the_answer_tell_nothing():
    """Of a wrong answer, every other picture may show just what was answered."""
    same = [variant("image", answer, image=f"{answer}.png", says="Red.") for answer in ("Red.", "Blue.")]
    gone = [variant("image", "Red.", image=""), variant("image", "I cannot see.", image="")]
    for without in gone:
        found = verdict_of([RED, *same, without])
        assert not found.clear and "says the answer too" in found.why
    other = variant("image", "Red.", image="b.png", says="Blue.")
    assert verdict_of([RED, *same, other, gone[0]]).clear


def test_two_that_decide_are_several():
    original = variant("original", "Red.", **HINT)
    moved = [variant("image", "Blue.", image="b.png", **HINT), variant("context", "Green.", context="It is green.")]
    found = verdict_of([original, *moved])
    assert (found.source, found.deciding) == ("several", ("image", "context"))
    one = verdict_of([original, moved[0], variant("context", "Red.", context="It is green.")])
    assert (one.source, one.deciding) == ("image", ("image",))


def test_two_that_stand_in_for_each_other_are_several():
    """Picture and hint say the same: each may go, not both; if both may go, it is knowledge."""
    each = [variant("original", "Red.", **HINT), variant("image", "Red.", image="", **HINT), variant("context", "Red.")]
    both = variant("image + context", "Yellow.", **BARE)
    assert verdict_of([*each, both]).source == "several"
    assert verdict_of([*each, both]).deciding == ("image", "context")
    assert verdict_of([*each, variant("image + context", "Red.", **BARE)]).source == "knowledge"


def test_what_is_only_missed_does_not_make_several():
    original = variant("original", "Red.", **HINT)
    rows = [variant("image", "Hm.", image="", **HINT), variant("image", "Red.", image="b.png", **HINT)]
    found = verdict_of([original, *rows, variant("context", "Red."), variant("image + context", "Hm.", **BARE)])
    assert found.source == "knowledge" and not found.clear and "needed for the answer" in found.why


def test_a_source_that_is_not_there_decides_nothing():
    """A hint would overrule; the answer came without any, and is not in doubt."""
    found = verdict_of([RED, variant("image", "Red.", image=""), variant("context", "Blue.", context="It is blue.")])
    assert (found.source, found.states["context"], found.clear) == ("knowledge", "overrules", True)


# --- the question -----------------------------------------------------------------------------------------------------


def asked(*rows, answer="Red."):
    """The verdict where the picture is idle, of questions and their answers."""
    (question, *others) = rows
    variants = [variant("original", answer, question=question), variant("image", answer, image="", question=question)]
    return verdict_of([*variants, *(variant("question", said, question=other) for other, said in others)])


def test_another_question_with_another_answer_proves_nothing():
    assert asked("What color is blood?", ("What color is grass?", "Green.")).source == "knowledge"


def test_a_question_decides_what_stands_in_it_and_goes_along():
    repeats = ("Say red.", ("Say blue.", "Blue."))
    assert asked(*repeats).source == "question" and asked(*repeats).clear
    # the control: its words do not carry the answer
    stays = asked("Say red.", ("Say blue.", "Red."))
    assert stays.source == "knowledge" and stays.clear


def test_a_question_that_holds_the_answer_alone_may_be_either():
    """It may have been read there, or known: others of its kind are answered from what is known."""
    found = asked("Is blood red?", ("Is the sea deep?", "Yes."), answer="Red.")
    assert found.source == "knowledge" and not found.clear and "words that they do not hold" in found.why


def test_a_question_that_holds_the_answer_and_never_changes_is_in_doubt():
    found = asked("Say red.")
    assert found.source == "knowledge" and not found.clear and "no row changes it" in found.why


def test_what_another_source_decides_is_not_the_questions():
    held = {"question": "Is it red or blue?"}
    rows = [variant("image", "Blue.", image="b.png", **held), variant("question", "Green.", question="Red or green?")]
    assert verdict_of([variant("original", "Red.", **held), *rows]).source == "image"


# --- the word that tells ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "others", "word"),
    [
        ("It is red .", [("image", "It is blue.")], "red"),
        ("The red cat", [("image", "The red dog"), ("context", "The red cow"), ("context", "A blue cat")], "cat"),
        ("The blood is red", [], "is"),  # nothing changes: the first that is not asked about
        ("A", [], "A"),
        ("It is red", [("question", "No")], "is"),
    ],
)
def test_the_word_that_tells_is_the_one_that_changes_do_away_with(answer, others, word):
    asked = {"question": "What color has the blood, it has?"}
    variants = [variant("original", answer, **asked), *(variant(source, said) for source, said in others)]
    words = answer.split()
    assert words[telling_word(words, variants)] == word


def test_no_words_tell_nothing():
    with pytest.raises(InputError, match="no words"):
        telling_word([], [RED])


# --- what the variant says, and what fails ----------------------------------------------------------------------------


def test_changed_to_anything_or_to_what_is_said():
    rows = [variant("image", "I do not know.", image="b.png", says="Blue")]
    assert verdict_of([RED, *rows]).source == "image"
    assert verdict_of([RED, *rows], "followed").source == "knowledge"
    assert verdict_of([RED, variant("image", "blue", image="b.png", says="Blue")], "followed").source == "image"


def test_a_picture_that_says_the_same_proves_nothing():
    same = variant("image", "Red.", image="b.png", says="red")
    assert verdict_of([RED, same]).source == "" and "could tell" in verdict_of([RED, same]).why
    assert verdict_of([RED, same, variant("image", "Blue.", image="c.png", says="blue")]).source == "image"


def test_rows_that_failed_are_left_out():
    failed = variant("image", "", image="b.png")
    object.__setattr__(failed, "failed", "nothing was said")
    assert verdict_of([RED, failed]).source == ""
    assert verdict_of([RED, failed, variant("image", "Blue.", image="c.png")]).source == "image"
    lost = variant("original", "")
    object.__setattr__(lost, "failed", "nothing was said")
    assert "the original failed" in verdict_of([lost, RED]).why


@pytest.mark.parametrize("variants", [[], [variant("image", "Red.")]])
def test_without_an_original_nothing_is_told(variants):
    with pytest.raises(InputError, match="told by an original"):
        verdict_of(variants)
