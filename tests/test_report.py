"""What a diagnosis says: its numbers, its sentences, and how it is kept."""

import dataclasses
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lvlm_interp as li
from lvlm_interp.attribution.credit import shares
from lvlm_interp.errors import ImageError, InputError, OutputError
from lvlm_interp.inputs.example import Answer
from lvlm_interp.report import explorer, export, sentences
from tests.made import made, with_odds
from tests.pages import Page

diagnosing = importlib.import_module("lvlm_interp.report.diagnose")


@pytest.fixture(scope="module")
def banana(reference):
    from lvlm_interp.reference import make_scene

    scene = make_scene(2, objects=["banana"], colors=["purple"])
    return li.diagnose(reference, scene.image, "What color is the banana?")


# --- the diagnosis --------------------------------------------------------------------------------------------------


def test_the_purple_banana(banana):
    """The answer is seen, not known: the banana is purple in the picture and yellow everywhere else."""
    assert banana.answer == "Purple." and banana.answer_generated and banana.answer_finished
    assert banana.words == ("Purple", ".")
    purple, stop = banana.reports
    assert purple.source == "image" and purple.odds["image"] > purple.odds["prior"]
    assert sum(purple.credits.values()) == pytest.approx(purple.odds["total"], abs=1e-4)
    with_image, without = purple.likely
    assert with_image > without and math.log(with_image / without) == pytest.approx(purple.delta_nats, abs=1e-4)
    assert len(banana.sentences) == 1 and banana.sentences[0].startswith('"Purple" came ')
    assert not stop.word.is_content


def test_a_diagnosis_says_what_the_methods_say(reference, banana):
    x = reference.prepare(
        "What color is the banana?", banana.image, answer=Answer("Purple.", banana_ids(banana, reference))
    )
    row = banana.to_frame().iloc[0]
    contrast, credit = li.contrast(reference, x), li.credit(reference, x, unit="word")
    assert row["delta_nats"] == pytest.approx(float(contrast.delta_nats[:2].sum()), abs=1e-4)
    assert row["credit[image]"] == pytest.approx(float(credit.image[0]), abs=1e-4)
    assert row["full[prior]"] == pytest.approx(float(credit.with_value("full").prior[0]), abs=1e-4)
    assert row["peak_nats"] == pytest.approx(float(li.attribute(reference, x).values[:2].sum(0).max()), abs=1e-4)


def banana_ids(banana, reference):
    return reference.answered(reference.prepare("Q?", banana.image), banana.answer).answer_ids.tolist()


def test_given_answer_context_and_system(reference, banana):
    found = li.diagnose(reference, banana.image, "What is it?", "Tom", "Its name is Tom.", "Be brief.", against=["Max"])
    assert (found.answer_generated, found.context, found.system) == (False, "Its name is Tom.", "Be brief.")
    assert list(found.reports[0].credits) == ["prior", "question", "context", "system", "image"]
    assert found.reports[0].alternatives == ("Max",)
    assert "Its name is Tom." in explorer.page(found)


def test_an_answer_that_is_cut_off_is_said_to_be(reference, banana, monkeypatch):
    monkeypatch.setattr(reference, "generate", lambda x, most: Answer("Purple", [28353, 1072][:most], finished=False))
    found = li.diagnose(reference, banana.image, "What color is it?", max_new_tokens=1)
    assert not found.answer_finished and "cut off" in explorer.page(found) and "Cut off" in found._repr_html_()
    monkeypatch.setattr(reference, "generate", lambda x, most: Answer("", [], finished=True))
    with pytest.raises(InputError, match="answered with nothing"):
        li.diagnose(reference, banana.image, "What color is it?")


def test_an_image_without_a_grid_has_no_map(reference, banana, monkeypatch, tmp_path):
    def no_grid(*args, **kwargs):
        raise ImageError("its tokens have no place in the picture")

    monkeypatch.setattr(diagnosing, "attribute", no_grid)
    monkeypatch.setattr(diagnosing, "credit", lambda *args, **kwargs: banana.credit)
    found = li.diagnose(reference, banana.image, "What color is the banana?", "Purple.")
    assert found.patches is None and found.to_frame()["peak_left"].isna().all()
    page = explorer.page(found)
    assert "No heatmap: its tokens have no place" in page and not Page(page).of("rect")
    assert "No heatmap" in found._repr_html_()
    export.write(found, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.png"))
    with np.load(tmp_path / "out" / "heatmaps.npz", allow_pickle=False) as arrays:
        assert arrays["values"].shape == (2, 0, 0)


def test_words_are_decoded_as_wholes(reference, banana):
    """One token may hold a part of a letter."""
    found = li.diagnose(reference, banana.image, "What is it?", "日本 café.")
    assert "<0x" in "".join(found.contrast.tokens)
    assert found.words == ("日", "本", "café", ".") and found.credit.tokens == found.words == found.patches.tokens
    assert [report.word.stop for report in found.reports][-1] == len(found.contrast.tokens)
    assert "�" not in str(found.credit.alternatives) + "".join(found.sentences)


def test_save_and_load(tmp_path):
    before = made(context="Some context.", roles=("question", "context", "image"))
    after = li.Diagnosis.load(before.save(tmp_path / "d.safetensors"))
    assert torch.equal(after.picture, before.picture) and torch.equal(after.credit.odds, before.credit.odds)
    assert after.credit.odds.dtype == torch.float64
    assert after.words == before.words and after.provenance == before.provenance
    assert after.sentences == before.sentences and explorer.page(after) == explorer.page(before)
    without = li.Diagnosis.load(made(patches=None, no_map="none").save(tmp_path / "n.safetensors"))
    assert without.patches is None and without.no_map == "none"
    with pytest.raises(OutputError, match="not a PatchMap"):
        li.PatchMap.load(tmp_path / "d.safetensors")


def test_a_question_that_asks_and_one_that_is_a_player():
    """Coalition 1 of (question, image) sees the question alone, coalition 3 sees both."""
    split = with_odds(made(("Yes",)), 1.0, 2.0, 3.0, 5.0)
    report = dataclasses.replace(split, credit=dataclasses.replace(split.credit, quoting=(False,))).reports[0]
    assert report.odds == pytest.approx({"prior": 2.0, "question": 0.0, "image": 3.0, "total": 5.0})
    assert report.together == pytest.approx({"prior": 1.0, "question": 1.5, "image": 2.5, "total": 5.0})
    assert report.source == "image" and "60% from the image" in report.sentence


def test_to_dict_is_json():
    told = json.loads(json.dumps(made().to_dict(), allow_nan=False))
    assert told["words"] == ["Purple", "."] and told["image"]["size"] == [60, 40] and "picture" not in told
    assert len(told["credit"]["odds"][0]) == 4 and told["by_word"][0]["word"] == "Purple"
    assert told["provenance"]["method"] == "diagnosis"


# --- sentences ------------------------------------------------------------------------------------------------------


def told(credits, peak=None):
    return sentences.sentence("Red", credits, shares(credits), peak)


@pytest.mark.parametrize(
    ("credits", "expected"),
    [
        ({"prior": 3.0, "question": 1.0, "image": 0.0}, '"Red": the language model knew already (75%).'),
        ({"prior": 1.0, "question": 0.0, "image": 3.0}, '"Red" came 75% from the image.'),
        ({"prior": 0.0, "question": 4.0, "image": 0.0}, '"Red" came 100% from the prompt (the question).'),
        (  # two halves of the prompt outweigh the image, though each is less
            {"prior": 0.0, "question": 3.0, "context": 3.0, "image": 4.0},
            '"Red" came 60% from the prompt (the question 30%, the context 30%).',
        ),
        (
            {"prior": -2.0, "question": 1.0, "image": 3.0},
            '"Red" came 75% from the image; what the language model knew (−2.0 nats) spoke against it.',
        ),
        (
            {"prior": 1.0, "question": 0.0, "image": -3.0},
            '"Red" is not what the model would say: −2.0 nats against the words it is compared with; '
            "the image (−3.0 nats) spoke against it.",
        ),
    ],
)
def test_sentences(credits, expected):
    assert told(credits) == expected


def test_a_sentence_names_a_patch_only_if_one_matters():
    seen, box = {"prior": 0.0, "question": 0.0, "image": 1.0}, (56.0, 28.0, 70.0, 42.0)
    assert told(seen, (box, 0.5)) == '"Red" came 100% from the image, strongest at the patch (56, 28)–(70, 42).'
    assert "no single patch" in told(seen, (box, 0.001))
    assert "patch" not in told({"prior": 1.0, "image": 0.0}, (box, 0.5))


def test_numbers_do_not_claim_certainty():
    assert [sentences.percent(p) for p in (0, 0.001, 0.5, 0.999, 1)] == ["0%", "<1%", "50%", ">99%", "100%"]
    assert [sentences.signed(v) for v in (1.26, -1.26, 0.01, -0.01)] == ["+1.3", "−1.3", "0.0", "0.0"]


# --- what to look at first -----------------------------------------------------------------------------------------


def test_words_that_tell_come_first_and_those_that_hold_together_not():
    tokens = ("The", " cat", " is", " on", " the", " red", " sofa", ".")
    diagnosis = made(tokens)
    ranked = diagnosis.ranked
    assert {report.text for report in ranked} == {"cat", "red", "sofa"}
    assert [abs(r.delta_nats) for r in ranked] == sorted((abs(r.delta_nats) for r in ranked), reverse=True)
    assert [report.text for report in made(("The", " the")).ranked] != []  # nothing else is said
    assert made((".", "!")).ranked == ()
    assert {report.text for report in made(("Yes", ",", " left", " of", " it")).ranked} == {"Yes", "left"}


def test_words_are_the_tokens_that_they_were_made_of(tmp_path):
    """What tokens read as by themselves may not tell the words; older files have no spans."""
    diagnosis = made(("<0xE7>", "<0x8C>", "<0xAB>"))
    credit = dataclasses.replace(
        diagnosis.credit, tokens=("猫",), numbers=diagnosis.credit.numbers[:, :1], alternatives=((),)
    )
    one = dataclasses.replace(diagnosis, words=("猫",), spans=((0, 3),), credit=credit, patches=None)
    read = li.Diagnosis.load(one.save(tmp_path / "diagnosis.safetensors"))
    assert [(r.text, r.word.start, r.word.stop) for r in read.reports] == [("猫", 0, 3)]
    assert read.reports[0].delta_nats == pytest.approx(float(one.contrast.delta_nats.sum()), abs=1e-5)
    assert made().spans == () and len(made().reports) == 2


def test_who_loses_sight_is_looked_at_before_anything_is_computed():
    """In a process of its own: here types of arguments are checked, and such a text would not come so far."""
    code = (
        "import lvlm_interp as li\nfrom tests.tiny import tiny_llava\nvlm = li.wrap(tiny_llava())\n"
        "vlm.prepare = lambda *_: print('computing')\n"
        "try:\n    li.diagnose(vlm, 'What?', 'a.png', hide_from='x')\nexcept ValueError as error:\n    print(error)"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout == "hide_from is 'all' or 'text', got 'x'\n", done.stderr
