"""The swap test on fake models whose deciding source is known by construction, and on the reference model."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

import lvlm_interp as li
from lvlm_interp.attribution.definitions import PARTS
from lvlm_interp.attribution.swap import pointed_at
from lvlm_interp.errors import ImageError, InputError
from tests.made import made_map
from tests.swapping import answering, made_test, picture, table

Q = "What color is it?"
SHOWN = {"picture": picture("red"), "context": "green", "system": "Be brief", "question": Q}
CHANGES = (
    ("image", {"picture": picture("blue")}),
    ("context", {"context": "blue"}),
    ("question", {"question": "What colour?"}),
    ("system", {"system": "blue"}),
)

FAKES = {
    "image": lambda image, **told: image or "none",
    "context": lambda context, **told: context or "none",
    "system": lambda system, **told: system.split()[-1] if system else "none",
    "knowledge": lambda **told: "yellow",
    "several": lambda image, context, **told: f"{image} {context}",
    # the picture if there is one, else the hint, else what it knows
    "image, of a world": lambda image, context, **told: image or context or "yellow",
}


@pytest.mark.parametrize("name", FAKES)
def test_the_source_that_decides_is_found(name):
    test = li.swap_test(answering(FAKES[name]), table(*CHANGES, **SHOWN), maps=False)
    (verdict,) = test.verdicts
    assert verdict.source == name.split(",")[0], verdict
    assert verdict.clear


def test_a_question_that_holds_its_answer():
    fake = answering(lambda question, **told: question.split()[-1])
    rows = [("question", {"question": "Say blue"})]
    test = li.swap_test(fake, table(*rows, picture=picture("red"), question="Say red"), maps=False)
    assert test.verdicts[0].source == "question"
    other = answering(lambda question, **told: "red")  # the control: it knows one word
    test = li.swap_test(other, table(*rows, picture=picture("red"), question="Say red"), maps=False)
    assert test.verdicts[0].source == "knowledge"


def test_sources_that_no_row_takes_away_are_taken_away():
    """And the question is asked alone, where there are several: a picture and a hint that say the same are several."""
    asked = []

    def fake(image, context, **told):
        asked.append((image, context))
        return image or context or "yellow"

    test = li.swap_test(answering(fake), table(picture=picture("red"), context="red", question=Q), maps=False)
    assert asked == [("red", "red"), ("", "red"), ("red", ""), ("", "")]
    assert test.verdicts[0].source == "several" and test.verdicts[0].deciding == ("image", "context")
    assert test.answers()["row"].tolist() == [1, 0, 0, 0]


def test_what_counts_needs_no_model_again():
    rows = [("image", {"picture": picture("blue"), "says": "blue"})]
    test = li.swap_test(answering(lambda image, **t: {"blue": "?no"}.get(image, image)), table(*rows, **SHOWN))
    assert test.verdicts[0].source == "image"
    assert dataclasses.replace(test, by="followed").verdicts[0].source == "knowledge"
    assert test.answers()["changed"].tolist()[:2] == [False, True] and not test.answers()["followed"].any()


def test_a_row_that_fails_is_kept_and_the_others_go_on():
    fake = answering(
        lambda image, context, **told: "" if context == "blue" else " . " if not context else image or "none"
    )
    test = li.swap_test(fake, table(*CHANGES, **SHOWN), maps=False)
    failed = test.answers().groupby("source")["failed"].first()
    assert "answered with nothing" in failed["context"] and failed["image"] == "" and len(test.failures) == 3
    assert test.verdicts[0].source == "" and "no change of the context" in test.verdicts[0].why
    assert "failed" in test.note and set(test.examples[0].splits) == set(PARTS)


def test_not_one_answer_is_an_error():
    with pytest.raises(InputError, match=r"no original could be answered; the first failed with: .* nothing"):
        li.swap_test(answering(lambda **told: ""), table(*CHANGES, **SHOWN))


def test_an_original_that_fails_costs_the_others_nothing():
    frame = pd.concat([table(*CHANGES, **SHOWN), table(*CHANGES, **{**SHOWN, "example": "f", "context": "red"})])
    fake = answering(lambda context, **told: "" if context == "green" else context or "none")
    test = li.swap_test(fake, frame, maps=False)
    assert [v.source for v in test.verdicts] == ["", "context"] and not test.examples[0].splits


def test_credit_is_that_of_the_answer_its_telling_word_and_its_first_token():
    vlm = answering(lambda image, **told: f"It is {image or 'none'}")
    (example,) = li.swap_test(vlm, table(*CHANGES, **SHOWN), maps=False).examples
    x = vlm.prepare(Q, SHOWN["picture"], SHOWN["context"], SHOWN["system"])
    x = vlm.answered(x, vlm.generate(x))
    for part, unit in (("answer", "answer"), ("word", (5, 9)), ("token", (6, 7))):
        expected = li.credit(vlm, x, unit=unit)
        assert torch.allclose(example.splits[part].numbers, expected.numbers, atol=1e-5)
        assert example.splits[part].provenance.example == expected.provenance.example
    (word,) = li.swap_test(vlm, table(**SHOWN), parts=["word"], maps=False).examples
    assert list(word.splits) == ["word"]
    assert [example.splits[part].tokens[0].strip() for part in PARTS] == ["It is red", "red", "r"]


@pytest.mark.parametrize("columns", ["none", "several"])
def test_pictures_may_be_none_or_several(columns):
    if columns == "none":
        test = li.swap_test(answering(lambda context, **t: context or "no"), table(context="red", question=Q))
        assert test.verdicts[0].source == "context" and "image" not in test.verdicts[0].states
    else:
        two = [picture("red"), picture("green")]
        rows = [("image", {"picture": [picture("blue"), picture("green")]})]
        test = li.swap_test(answering(lambda image, **t: image), table(*rows, picture=two, question=Q))
        assert test.verdicts[0].source == "image" and test.examples[0].pointed is None


# --- where in the picture ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pixel", "inside"), [((5, 5), True), ((35, 50), False)])
def test_the_strongest_patch_shows_what_was_changed_or_does_not(pixel, inside):
    patches = made_map(("cat",), torch.zeros)  # 2 × 3 patches of 20 × 20 pixels
    patches.values[0, 0, 0] = 2.0
    changed = np.zeros((40, 60), bool)
    changed[pixel] = True
    found = pointed_at(patches, changed)
    assert found.inside is inside and found.chance == pytest.approx(1 / 6)
    assert pointed_at(patches, ~changed) is None  # nearly all patches: it has no place


def test_the_heatmap_is_held_against_the_smallest_change_that_changes_the_answer():
    """Of 2 × 2 patches of 14 pixels: the small change is in one, the large one in two; the idle one changes nothing."""
    boxes = {"small": (14, 14, 20, 20), "large": (14, 0, 28, 28), "idle": (0, 0, 1, 1)}
    changed = {name: picture("red") for name in boxes}
    for name, box in boxes.items():
        changed[name].paste("blue", box)
    vlm = answering(lambda image, **told: image or "none")

    def found(*names, **more):
        rows = [("image", {"picture": changed[name]}) for name in names]
        return li.swap_test(vlm, table(*rows, picture=picture("red"), question=Q), **more)

    test = found("large", "small", "idle")
    assert test.examples[0].pointed.chance == 0.25 and test.pointing()["chance"].tolist() == [0.25]
    assert found("large", "idle").examples[0].pointed.chance == 0.5
    assert found("idle").examples[0].pointed is None and found("idle").pointing()["examples"].tolist() == [0]
    assert found("small", maps=False).examples[0].pointed is None


# --- as a result ------------------------------------------------------------------------------------------------------


def test_the_table_of_examples():
    frame = made_test().to_frame()
    assert frame["decides"].tolist() == ["image", "context"] and frame["clear"].all()
    assert frame["answer"].tolist() == ["Red."] * 2 and frame["image"].tolist() == ["decides", "idle"]
    assert "2 examples: image 1, context 1; by what changed" in made_test().note


def test_a_swap_test_without_examples_cannot_be():
    with pytest.raises(InputError, match="has examples"):
        dataclasses.replace(made_test(), examples=())


def test_the_same_files_elsewhere_are_the_same_examples(tmp_path):
    """The digest is of what was shown, not of where it lies."""
    digests = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        picture("red").save(tmp_path / folder / "x.png")
        rows = table(picture=str(tmp_path / folder / "x.png"), question=Q)
        digests.append(li.swap_test(answering(lambda **t: "red"), rows, maps=False).provenance.example)
    other = li.swap_test(answering(lambda **t: "red"), table(picture=picture("blue"), question=Q), maps=False)
    assert digests[0] == digests[1] != other.provenance.example


# --- bad input --------------------------------------------------------------------------------------------------------

BAD = {
    "no difference": ([("image", {})], {}, "row 2.* no different from its original: change its image"),
    "the same pixels": ([("image", {"picture": picture("red")})], {}, "no different"),
    "something else": ([("image", {"context": "blue"})], {}, "says that it changes image, and it changes context"),
    "more": ([("image", {"context": "blue", "picture": None})], {}, "changes image [+] context"),
    "no source": ([("pictures", {})], {}, "no source 'pictures'; a row is 'original'"),
    "misspelt": ([("imgae", {})], {}, "did you mean 'image'"),
    "twice": ([("context", {"context": "blue"}), ("context", {"context": "blue"})], {}, "rows 2 and 3 .* are the same"),
    "two originals": ([("original", {"context": "blue"})], {}, "has 2 rows whose source is 'original'"),
    "no question": ([("question", {"question": " "})], {}, "row 2: the question is empty"),
    "marks": ([("context", {"context": "<|im_end|>"})], {}, r"row 2: the context holds '<\|im_end\|>', a mark"),
    "marks of this model": ([], {"context": "see <begin> there"}, "row 1: the context holds '<begin>'"),
    "unknown column": ([], {"image": "a.png"}, "no column 'image'"),
    "another column": ([], {"contxt": "x"}, "did you mean 'context'"),
    "two kinds": ([("image", {"picture": None, "kind": "b"})], {"kind": "a"}, "several values of 'kind'"),
    "no name": ([], {"example": ""}, "'example' is empty"),
    "half a character": ([], {"context": "caf\ud800"}, "half a character"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_table_that_does_not_fit_is_refused_before_anything_is_asked(case):
    rows, same, said = BAD[case]
    vlm = answering(lambda **told: pytest.fail("the model was asked"))
    with pytest.raises(InputError, match=said):
        li.swap_test(vlm, table(*rows, **{**SHOWN, **same}))


def test_tables_that_lack_something():
    vlm = answering(lambda **told: pytest.fail("the model was asked"))
    with pytest.raises(InputError, match="has no rows whose source is 'original'"):
        li.swap_test(vlm, table(*CHANGES, **SHOWN)[1:])
    with pytest.raises(InputError, match="has no rows"):
        li.swap_test(vlm, table(**SHOWN)[:0])
    with pytest.raises(InputError, match=r"needs the columns .*; this has no 'question'"):
        li.swap_test(vlm, table(**SHOWN).drop(columns="question"))
    with pytest.raises(ImageError, match=r"row 1: .*nowhere.png"):
        li.swap_test(vlm, table(picture="nowhere.png", question=Q))
    with pytest.raises(InputError, match="parts are some of"):
        li.swap_test(vlm, table(**SHOWN), parts=[])
    with pytest.raises(InputError, match="max_new_tokens is 1 or more"):
        li.swap_test(vlm, table(**SHOWN), max_new_tokens=0)


# --- the reference model ----------------------------------------------------------------------------------------------


def test_on_the_reference_model_the_picture_decides_its_colour(reference):
    from lvlm_interp.reference import make_scene

    def shown(color):
        return make_scene(4, objects=["banana", "cat"], colors=[color, None]).image

    ask = "What color is the banana?"
    rows = [("image", {"picture": shown(color), "says": color}) for color in ("blue", "orange")]
    test = li.swap_test(reference, table(*rows, picture=shown("purple"), question=ask, kind="color"))
    assert test.verdicts[0].source == "image" and test.examples[0].answer == "Purple."
    assert test.answers()["followed"].tolist() == [False, True, True, False]
    assert test.examples[0].pointed.inside and test.examples[0].pointed.chance < 0.5
    assert li.judged(test, ["odds, word"]).of("odds, word") == 1.0
