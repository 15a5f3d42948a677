"""Sweeps: each value is that of the intervention alone, whatever of it was taken from the untouched pass."""

import dataclasses
import math

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.engine import resumed
from lvlm_interp.engine.score import score_answers
from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.interventions import Ablate, Knockout, Patch, Region, Scale, Steer, sweep, windows
from lvlm_interp.interventions.axes import cells_of
from lvlm_interp.interventions.intervention import ledger_of
from lvlm_interp.interventions.readings import change_of, readings_of
from lvlm_interp.report import figures
from tests.families import FAMILIES, tiny_example, tiny_model
from tests.tiny import hooks_of, tiny_inputs, tiny_llava

EXACT = 2e-5
Z, MLP = "blocks.*.attn.hook_z", "blocks.*.hook_mlp_out"


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


@pytest.fixture(scope="module")
def other(vlm):
    return tiny_inputs(vlm, seed=5)


def farthest(vlm, x, intervention, over, **asked):
    """The largest difference between a sweep and its interventions one by one."""
    found, (_, cells) = sweep(vlm, x, intervention, over, **asked), cells_of(vlm, x, intervention, over)
    assert [cell.label for cell in cells] == list(found.labels)
    touched = found.changed > 0  # alone, what touches nothing is an error
    acting = [cell.intervention for cell, some in zip(cells, touched, strict=True) if some]
    alone = [li.intervene(vlm, x, one, **asked) for one in acting]
    values, kl = (torch.stack([getattr(one, name) for one in alone]) for name in ("values", "kl"))
    assert torch.allclose(found.untouched, alone[0].values[0], atol=EXACT)
    assert float(found.change.abs().max()) > 1e-3
    return max(float((found.values[touched] - values[:, 1]).abs().max()), float((found.kl[touched] - kl).abs().max()))


def interventions(x, other):
    way = torch.linspace(-1, 1, 32)
    return {
        "knockout in windows": (Knockout("last", "image"), "layers"),
        "routes": (
            Knockout(),
            {"layers": "each", "rows, keys": {"i → q": ("question", "image"), "self": ("last", [9])}},
        ),
        "head by head": (Patch(Z, source=other), "heads"),
        "removed at some positions": (Ablate(Z, "question", by="mean"), "heads"),
        "mlp": (Ablate(MLP, by="noise", seed=3), "layers"),
        "back-patching": (Patch("blocks.0.hook_resid_post", "image"), {"source_site": ["blocks.2.hook_resid_post"]}),
        "pushed": (Steer(direction=way), {"layers": "each", "positions": ["image", "question", "predicting"]}),
        "how far": (Steer(direction=way, layers=1), {"alpha": [-2.0, -1.0, 1.0, 2.0]}),
        "read less": (Scale(keys="image", by="scores"), {"factor": {"less": -0.5, "more": 0.5}}),
        "outside of the blocks": (Ablate("projector.hook_out", by="mean"), {"neurons": [[0], [1, 2]]}),
        "two together": (Ablate(heads=[(0, 1)]) + Steer(direction=way, positions="last"), {"alpha": [1.0, 2.0]}),
    }


@pytest.mark.parametrize("name", interventions(None, None))
def test_a_sweep_is_its_interventions_one_by_one(vlm, x, other, name):
    intervention, over = interventions(x, other)[name]
    assert farthest(vlm, x, intervention, over, unit="answer") < EXACT


@torch.no_grad()
def test_alternatives_of_several_tokens_follow_their_own_passes(vlm, x):
    rivals, cut = ((11, 12), (13,)), Knockout("last", "image")
    readings = readings_of(vlm, x, ["odds"], "answer")
    readings._rivals = (rivals,)
    found = readings.under(change_of(ledger_of(vlm, x, cut))).values[0]
    with li.intervening(vlm, x, cut):
        answers = [x.answer_ids, *map(torch.tensor, rivals)]
        scored = [score_answers(vlm, x, x.everything[None], [ids])[0] for ids in answers]
    own, *others = (one.logprob.double().sum() for one in scored)
    assert float((found - (own - torch.stack(others).logsumexp(0) + math.log(2))).abs().max()) < EXACT


def test_the_check_fails_where_a_row_too_late_is_gone_on_from(vlm, x, other, monkeypatch):
    """What tells a right resumption from a wrong one: rows, and blocks, that the change reaches."""
    late = resumed.Resumed._first
    monkeypatch.setattr(resumed.Resumed, "_first", lambda self, change: max(late(self, change), x.answer_start - 1))
    assert farthest(vlm, x, Patch(Z, source=other), "heads", unit="answer") > 100 * EXACT


def test_most_is_taken_from_the_untouched_pass(vlm, x):
    """Rows × blocks that are computed, of those of whole passes; a cut of the last row computes that alone."""
    last = sweep(vlm, x, Knockout("last", "image"), unit="answer")
    assert last.share == pytest.approx((1 + 2 / 3 + 1 / 3) / 3 * 3 / (x.length - 1), rel=1e-6)
    assert sweep(vlm, x, Steer(direction=torch.ones(32)), unit="answer").share == pytest.approx(2 / 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_families(family):
    vlm = li.wrap(tiny_model(family), name=family)
    x, other = tiny_example(vlm, family), tiny_example(vlm, family, seed=2)
    width = vlm.capture(x, "blocks.0.hook_resid_post")["blocks.0.hook_resid_post"].shape[-1]
    push = Steer(direction=torch.linspace(-1, 1, width), layers=[0, 1])
    places = {"positions": [[0], [x.answer_start - 2], "last"]}
    assert farthest(vlm, x, push, places, unit="answer") < EXACT
    assert farthest(vlm, x, Patch("blocks.*.hook_resid_post", source=other), "layers", unit="answer") < EXACT
    crosses = any("cross_attn" in name for name in vlm.sites)
    if not crosses and not vlm.recurrent:
        assert farthest(vlm, x, Knockout("last", "image"), {"layers": windows(vlm, 2)}, unit="answer") < EXACT


def test_windows_are_those_of_the_paper(vlm):
    assert windows(vlm, 1) == {0: range(1), 1: range(1, 2), 2: range(2, 3)}
    assert windows(vlm, 3) == {0: range(2), 1: range(3), 2: range(1, 3)}
    assert windows(vlm, 2)[1] == range(2)


def test_what_touches_nothing_is_told(vlm, x):
    """A route that is masked already, beside one that is not."""
    routes = {"rows, keys": {"back": ([2], [5]), "forth": ([5], [2])}}
    found = sweep(vlm, x, Knockout(), routes, unit="answer")
    assert found.changed.tolist()[0] == 0 < found.changed.tolist()[1] and "1 touch nothing" in found.note
    assert torch.allclose(found.values[0], found.untouched, atol=EXACT)
    with pytest.raises(InputError, match="touches nothing"):
        sweep(vlm, x, Knockout([2], [5]))


def test_columns_tell_what_was_swept(vlm, x, other):
    frame = sweep(vlm, x, Patch(Z, source=other), "heads").to_frame()
    assert list(frame.columns[:6]) == ["layer", "head", "part", "value", "change", "kl"]
    assert len(frame) == 3 * 4 * 3 and frame["head"].max() == 3
    named = sweep(vlm, x, Knockout(), {"layers": {"low": [0], "high": [1, 2]}, "keys": [[1, 2], "question"]})
    assert named.axes == ("layers", "keys")
    assert named.labels == (("low", "1, 2"), ("low", "question"), ("high", "1, 2"), ("high", "question"))


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("layer", "has no 'layer' to go over; it has"),
        ({"layers": []}, "at least one value"),
        ({"layers": "all"}, "several in a list, or 'each'"),
        ("heads, layers", "is meant of layers, heads and positions"),
        ({"rows, keys": {"one": ("last",)}}, "has 2 parts"),
        ({"layers": [0], "heads": [[(0, 1)]], "rows": ["last"], "keys": []}, "at least one value"),
    ],
)
def test_what_cannot_be_swept_is_told_before_a_pass(vlm, x, over, said, monkeypatch):
    monkeypatch.setattr(type(vlm), "call", lambda *args: pytest.fail("the model ran"))
    with pytest.raises(InputError, match=said):
        sweep(vlm, x, Knockout(), over)


def test_a_layer_that_is_not_there(vlm, x):
    with pytest.raises(SiteError, match="no layer 9"):
        sweep(vlm, x, Knockout(), {"layers": [0, 9]})


def test_a_model_is_as_it_was(vlm, x, other):
    before, hooks = vlm.run(x), hooks_of(vlm.model)
    with pytest.raises(InputError):
        sweep(vlm, x, Knockout(), {"layers": [0, 1], "keys": ["image", [0, *range(1, x.answer_start)]], "rows": [[5]]})
    assert torch.equal(vlm.run(x), before) and hooks_of(vlm.model) == hooks
    assert not any("forward" in vars(module) for module in vlm.model.modules())


def test_sources_are_run_once(vlm, x, other, monkeypatch):
    captured = []
    own = type(vlm).capture
    monkeypatch.setattr(
        type(vlm), "capture", lambda self, one, *args, **kwargs: captured.append(one) or own(self, one, *args, **kwargs)
    )
    sweep(vlm, x, Patch(Z, source=other), "heads", unit="answer")
    assert captured.count(other) == 1


def test_figures(vlm, x, other):
    line = figures.sweep_map(sweep(vlm, x, Knockout("last", "image"), unit="answer"))
    assert line.get_xlabel() == "layer" and "logprob" in line.get_title("left")
    found = sweep(vlm, x, Patch(Z, source=other), "heads", unit="answer")
    drawn = figures.sweep_map(found).images[0].get_array()
    assert torch.allclose(torch.as_tensor(drawn.data).float(), found.change.view(3, 4))
    crowded = dataclasses.replace(found, axes=("a", "b", "c"), labels=tuple((*one, 0) for one in found.labels))
    with pytest.raises(InputError, match="one axis or two"):
        figures.sweep_map(crowded)


def test_a_region_of_the_picture_by_its_box(vlm, x):
    assert cells_of(vlm, x, Knockout(), {"keys": [Region((0, 0, 9, 9))]})[1][0].label == ("inside (0, 0, 9, 9)",)
