"""Routes of attention over examples: each number is that of a cut alone; controls are what they say."""

import math
from dataclasses import replace

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError
from lvlm_interp.interventions import Knockout, attention_routes, windows
from lvlm_interp.interventions.controls import MISSED, Route
from lvlm_interp.report import figures
from tests.tiny import tiny_inputs, tiny_llava


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def examples(vlm):
    return [tiny_inputs(vlm, seed=seed) for seed in range(4)]


@pytest.fixture(scope="module")
def found(vlm, examples):
    return attention_routes(vlm, examples, widths=(1, 3))


def test_a_mean_is_that_of_cuts_one_by_one(vlm, examples, found):
    for route, keys in (("image → last", "image"), ("question → last", "question")):
        cut = Knockout("last", keys, layers=windows(vlm, 3)[2])
        alone = [float(li.intervene(vlm, x, cut).change[0]) for x in examples]
        at = found.change[found.routes.index(route), 0, 1, 2]
        assert float(at) == pytest.approx(sum(alone) / len(alone), abs=1e-5)
    plain = [float(li.score(vlm, x, x.everything).logprob[0, 0]) for x in examples]
    assert found.untouched == pytest.approx(sum(plain) / len(plain), abs=1e-5)


def test_the_same_again_from_its_seed(vlm, examples, found):
    assert attention_routes(vlm, examples, widths=(1, 3)) == found
    assert attention_routes(vlm, examples, widths=(1, 3), seed=1) != found  # other keys in the controls


def test_intervals_hold_the_mean(found):
    there = ~found.change.isnan()
    assert there[:, 0].all() and bool((found.low <= found.change)[there].all())
    assert bool((found.change <= found.high)[there].all()) and int(found.counts[:, 0].min()) == 4


def test_controls_are_as_large_and_as_heavy(vlm, examples):
    x = examples[0]
    pattern = torch.stack([v[0] for n, v in vlm.capture(x, "blocks.*.attn.hook_pattern").items() if n != "logits"])
    last, layers = x.answer_start - 1, range(1, 3)
    read = pattern[1:, :, last].sum((0, 1))
    route = Route(vlm, x, "last", "question", seed=0)
    size, mass = route.cut("equal size", layers), route.cut("equal mass", layers)
    assert route.cut("route", layers).keys == "question"
    assert int(size.keys.sum()) == int(x.where("question").sum())
    for control in (size, mass):
        assert not (control.keys & x.where("question")).any() and not control.keys[last:].any()
    own = float(read[x.where("question")].sum())
    assert float(read[mass.keys].sum()) == pytest.approx(own, rel=MISSED)


def test_where_there_is_nothing_to_compare_with_it_is_told(vlm, examples):
    """All but one of the keys that the last row sees are cut: no control has as many others."""
    keys = range(examples[0].answer_start - 2)
    found = attention_routes(vlm, examples[:2], widths=[1], layers=0, routes={"all": ("last", keys)})
    row = found.to_frame().set_index("kind").loc["equal size"]
    assert row["counts"] == 0 and math.isnan(row["change"]) and not math.isnan(found.change[0, 0, 0, 0])
    assert found.kinds == ("route", "equal size", "equal mass")


def test_an_object_and_the_rest_are_routes_of_their_own(vlm, examples):
    side, patches = 14, ((0, 0, 14, 14), (14, 0, 28, 14), (0, 14, 14, 28), (14, 14, 28, 28))
    placed = [replace(x, images=(replace(x.images[0], patches=patches),)) for x in examples[:2]]
    found = attention_routes(vlm, placed, [(0, 0, side, side)] * 2, widths=[3], layers=[1], controls=False)
    assert found.routes[3:] == ("object → question", "rest of image → question", "object → last")
    region = li.Region((0, 0, side, side))
    alone = [float(li.intervene(vlm, x, Knockout("question", region)).change[0]) for x in placed]
    assert float(found.change[3, 0, 0, 0]) == pytest.approx(sum(alone) / 2, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"examples": []}, "0 examples"),
        ({"boxes": [(0, 0, 1, 1)]}, "a box for each example"),
        ({"widths": []}, "at least one of each"),
        ({"routes": {}}, "at least one of each"),
        ({"widths": [0]}, "1 layer or more"),
        ({"groups": [1]}, "a group for each of the 4"),
        ({"confidence": 1.0}, "between 0 and 1"),
    ],
)
def test_what_is_asked_wrongly_is_told_before_a_pass(vlm, examples, change, said, monkeypatch):
    monkeypatch.setattr(type(vlm), "call", lambda *args: pytest.fail("the model ran"))
    with pytest.raises(InputError, match=said):
        attention_routes(vlm, **{"examples": examples, **change})


def test_lines(found):
    ax = figures.route_lines(found)
    assert len(ax.get_legend().get_texts()) == 3 and "3 layers, 4 examples" in ax.get_title("left")
    assert len(figures.route_lines(found, 1, controls=False).lines) == 4
    with pytest.raises(InputError, match="not of 9"):
        figures.route_lines(found, 9)
