"""A way to decode that only says yes more often is told apart from one that is right more often."""

import dataclasses

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.bootstrap import bootstrap_weights
from lvlm_interp.errors import InputError
from lvlm_interp.generation import CONTROLS, Contrastive, Greedy, Way
from lvlm_interp.generation.yes_no import NO, OTHER, YES, _read, scored, yes_and_no
from lvlm_interp.reference import make_scene
from tests.tiny import tiny_inputs, tiny_llava

COUNT = 300


@pytest.fixture(scope="module")
def planted():
    """A model that says no too often, and is right more often than not where it is sure."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(COUNT) % 2 == 0
    margins = truth.double() - 1 + torch.randn(COUNT, generator=generator, dtype=torch.float64)
    return truth, margins


def numbers(said, planted, groups=None):
    truth, margins = planted
    groups = torch.arange(COUNT) if groups is None else groups
    drawn = bootstrap_weights(groups, 300, torch.Generator().manual_seed(1)).double()
    return scored(said, truth, margins, drawn, 0.95, int(groups.max()) + 1)


def test_always_yes_gains_nothing(planted):
    """It is right more often than the untouched model, and no more than that would be if it said yes as often."""
    _, margins = planted
    greedy = numbers((margins > 0).long(), planted)
    always = numbers(torch.full((COUNT,), YES), planted)
    assert always["yes_rate"] == 1 and always["recall"] == 1 and always["matched"] == always["accuracy"] == 0.5
    assert always["gain"] == 0 and greedy["gain"] == 0
    more = numbers((margins > -0.5).long(), planted)
    assert more["accuracy"] > greedy["accuracy"] and more["gain"] == pytest.approx(0, abs=1e-12)


def test_insight_gains(planted):
    """One that knows the truth of a third of the examples, and says yes as often as before or not."""
    truth, margins = planted
    said = torch.where(torch.arange(COUNT) % 3 == 0, truth.long(), (margins > 0).long())
    found = numbers(said, planted)
    assert found["gain"] > 0.03 and found["gain_low"] > 0
    assert found["gain"] == pytest.approx(found["accuracy"] - found["matched"])


def test_matched_by_hand(planted):
    truth, margins = planted
    said = torch.zeros(COUNT, dtype=torch.long)
    said[:40] = YES
    found = numbers(said, planted)
    surest = set(margins.argsort(descending=True)[:40].tolist())
    right = sum((n in surest) == bool(truth[n]) for n in range(COUNT))
    assert found["matched"] == pytest.approx(right / COUNT)
    assert found["precision"] == pytest.approx(0.5) and found["recall"] == pytest.approx(20 / 150)
    assert found["f1"] == pytest.approx(2 * 20 / (40 + 150))


def test_what_is_neither_is_wrong(planted):
    found = numbers(torch.full((COUNT,), OTHER), planted)
    assert found["accuracy"] == 0 and found["other_rate"] == 1 and torch.tensor(found["precision"]).isnan()
    never = numbers(torch.full((COUNT,), NO), planted)
    assert never["yes_rate"] == 0 and never["gain"] == 0


def test_examples_of_one_picture_are_drawn_together(planted):
    _, margins = planted
    said = (margins > 0).long()
    alone, together = numbers(said, planted), numbers(said, planted, torch.arange(COUNT) // 30)
    assert together["accuracy"] == alone["accuracy"]
    assert together["high"] - together["low"] != pytest.approx(alone["high"] - alone["low"], rel=0.01)


def test_first_words_are_read():
    said = ["Yes.", " yes, it is", "No", "NO!", "Not at all", "Nothing", "", "...", "I know"]
    assert _read(said).tolist() == [YES, YES, NO, NO, OTHER, OTHER, OTHER, OTHER, OTHER]


def test_on_the_reference_model(reference):
    scene = make_scene(4, objects=["banana", "cat"], colors=["purple", None])
    asked = [reference.prepare(f"Is there a {noun} in the image?", scene.image) for noun in ("banana", "cup")]
    yes, no = yes_and_no(reference)
    assert {text.strip().lower() for text in reference.token_strings(yes.tolist())} == {"yes"} and len(no) > 1
    found = li.compare_decodings(
        reference, asked, [True, False], {"vcd": Way(Contrastive(), "noise"), "greedy again": Greedy()}, samples=10
    )
    assert found.ways == (*CONTROLS, "vcd", "greedy again") and len(found.to_frame()) == 6
    rows = found.to_frame().set_index("way")
    assert rows.loc["greedy", "accuracy"] == rows.loc["greedy again", "accuracy"] == 1
    assert rows.loc["greedy", "gain"] == 0 and found.answers[0] == found.answers[-1]
    with pytest.raises(InputError, match="controls"):
        li.compare_decodings(reference, asked, [True, False], {"greedy": Greedy()})
    for examples, truth, options in (([], [], {}), (asked, [True], {}), (asked, [True, False], {"groups": [1]})):
        with pytest.raises(InputError, match="each example has a truth"):
            li.compare_decodings(reference, examples, truth, {"mine": Greedy()}, **options)


def test_an_intervention_is_in_force_meanwhile(reference):
    """Nothing of the image is read: the answer is the text's own."""
    scene = make_scene(4, objects=["banana", "cat"], colors=["purple", None])
    asked = [reference.prepare("Is there a banana in the image?", scene.image)]
    blind = Way(interventions=li.Knockout(["question", "template"], "image"), without="noise")
    found = li.compare_decodings(reference, asked, [True], {"blind": blind}, samples=2, max_new_tokens=2)
    with li.intervening(reference, asked[0], blind.interventions):
        assert found.answers[-1][0] == str(reference.generate(asked[0], 2))


def test_a_model_without_words():
    vlm = li.wrap(tiny_llava())
    with pytest.raises(InputError, match="no tokens that read 'yes' and 'no'"):
        li.compare_decodings(vlm, [tiny_inputs(vlm)], [True], {"mine": Greedy()})
    assert dataclasses.replace(Way(), without="noise").choosing == Greedy()
