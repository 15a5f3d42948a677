"""Captum runs on our scores, and is the oracle of our Shapley values and of occlusion."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.adapters.captum import captum_attribution, captum_forward
from lvlm_interp.attribution.asked import hidden_together
from lvlm_interp.errors import InputError
from tests.tiny import tiny_inputs, tiny_llava

ROLES = ("question", "context", "system", "image")


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


def log_probability(scores):
    return scores.logprob


@pytest.fixture(scope="module")
def players(x):
    return {role: x.where(role) for role in ROLES}


def test_exact_shapley_values_are_those_of_credit(vlm, x, players):
    theirs = captum_attribution(vlm, x, players, "ShapleyValues", log_probability)
    split = li.credit(vlm, x, value="full", asking=False)
    ours = torch.stack([split.of(role) for role in ROLES], 1)
    assert torch.allclose(theirs.double(), ours, atol=1e-5)
    others = captum_attribution(vlm, x, players, "ShapleyValues")  # by log-odds they are others
    assert not torch.allclose(others.double(), ours, atol=1e-2)


def test_sampled_shapley_values_are_the_same_for_a_seed(vlm, x, players):
    first, again, other = (captum_attribution(vlm, x, players, seed=seed, n_samples=3) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    exact = captum_attribution(vlm, x, players, "ShapleyValues")
    assert torch.allclose(first.sum(1), exact.sum(1), atol=1e-5)  # every order adds up to the whole


def test_ablation_of_patches_is_occlusion(vlm, x):
    view = x.images[0]
    patches = {}
    for n, tokens in enumerate(hidden_together(view, view.cells)):
        patches[str(n)] = torch.zeros(x.length, dtype=torch.bool)
        patches[str(n)][view.positions[tokens]] = True
    theirs = captum_attribution(vlm, x, patches, "FeatureAblation")
    ours = li.attribute(vlm, x, hide_from="all").values.flatten(1)
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert not torch.allclose(theirs, li.attribute(vlm, x, hide_from="text").values.flatten(1), atol=1e-3)


def test_a_coalition_is_scored_once(vlm, x, players, monkeypatch):
    from lvlm_interp.adapters import captum

    scored, score = [], captum.score
    monkeypatch.setattr(captum, "score", lambda *a, **k: scored.append(len(a[2])) or score(*a, **k))
    forward = captum_forward(vlm, x, players)
    rows = torch.tensor([[1, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]])
    found = forward(rows)
    assert torch.equal(found[0], found[1]) and scored == [2]
    assert torch.equal(forward(rows[:1]), found[:1]) and scored == [2]


def test_what_captum_cannot_do_here_is_refused(vlm, x, players):
    with pytest.raises(InputError, match="'LayerGradCam' is not one of captum's methods that can be run here"):
        captum_attribution(vlm, x, players, "LayerGradCam")
    with pytest.raises(InputError, match="no players were given"):
        captum_attribution(vlm, x, {})
    with pytest.raises(InputError, match="no answer"):
        captum_forward(vlm, tiny_inputs(vlm, answer=()), players)
