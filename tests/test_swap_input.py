"""What a swap test is given: words in any script's punctuation, cells that are no texts, arguments that are wrong."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import lvlm_interp as li
from lvlm_interp.attribution.saying import said
from lvlm_interp.attribution.swap import pointed_at
from lvlm_interp.attribution.variants import cases_of
from lvlm_interp.errors import InputError
from lvlm_interp.reference import swaps
from tests.swapping import answering, picture
from tests.test_report_letters import a_map


@pytest.mark.parametrize("around", ["**{}**", "„{}“", "«{}»", "「{}」", "{}।", "_{}_", "¿{}?", "({}).", "{}؟", "–{}–"])
def test_punctuation_of_any_script_is_no_change_of_an_answer(around):
    assert said(around.format("Purple")) == ("purple",)


@pytest.mark.parametrize(("one", "other"), [("-5", "5"), ("5%", "5"), ("C#", "C"), ("@a", "a"), ("it's", "its")])
def test_signs_that_make_another_word_stay(one, other):
    assert said(one) != said(other)


def rows(**changed):
    original = {
        "example": "a",
        "source": "original",
        "question": "What color?",
        "picture": picture("red"),
        "context": "",
    }
    return pd.DataFrame([original, {**original, "source": "image", "picture": picture("blue"), **changed}])


NO_TEXTS = (["x"], ("x",), {"x": 1}, b"x", np.ones(2), picture("red"))


@pytest.mark.parametrize("cell", NO_TEXTS, ids=lambda cell: type(cell).__name__)
def test_a_cell_that_is_no_text_is_refused(cell):
    with pytest.raises(InputError, match="row 2: context holds a"):
        cases_of(rows(context=cell))


@pytest.mark.parametrize("cell", [None, "", float("nan"), pd.NA, pd.NaT])
def test_cells_that_are_empty(cell):
    assert cases_of(rows(context=cell))[0].versions[1].told.context == ""


def test_a_picture_is_called_by_its_path(tmp_path):
    picture("red").save(tmp_path / "red.png")
    for given in (tmp_path / "red.png", str(tmp_path / "red.png"), Image.open(tmp_path / "red.png")):
        two = rows()
        two.at[0, "picture"] = given
        assert cases_of(two)[0].versions[0].told.image == str(tmp_path / "red.png")
        two["picture"] = [[given, picture("red")], [given, picture("blue")]]
        assert cases_of(two)[0].versions[1].told.image == f"{tmp_path / 'red.png'}, picture 1"


def test_a_blank_at_the_end_of_a_question_is_another_question():
    with pytest.raises(InputError, match="it changes image \\+ question"):
        cases_of(rows(question="What color? "))


@pytest.mark.parametrize("given", [{"by": "moved"}, {"parts": ["all"]}, {"parts": []}, {"max_new_tokens": 0}])
def test_wrong_arguments_are_refused_before_anything_is_asked(given):
    with pytest.raises(InputError, match=next(iter(given))):
        li.swap_test(answering(lambda **told: pytest.fail("the model was asked")), rows(), **given)


def test_a_patch_that_is_narrower_than_a_pixel_shows_one():
    patches = a_map("square")
    size = np.ones((1, 1), bool)
    narrow = patches.boxes / patches.boxes.max() * 0.4
    assert pointed_at(dataclasses.replace(patches, boxes=narrow), size) is None  # all of them show what was changed
    assert pointed_at(dataclasses.replace(patches, boxes=narrow), ~size).inside is False


def test_examples_of_the_world_have_names_of_their_own():
    table = swaps.swap_table(1, range(801_497, 802_200))
    originals = table[table["source"] == "original"]["example"]
    assert originals.is_unique and len(cases_of(table)) == len(originals)
