"""Directions, beside plain formulas; and pushes along them, beside random ones."""

import dataclasses

import numpy as np
import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.interventions import Steer, intervene
from lvlm_interp.interventions.dose import _at_random
from lvlm_interp.report import figures
from tests.tiny import tiny_inputs, tiny_llava

COUNT = 12


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def examples(vlm):
    return [tiny_inputs(vlm, seed=seed) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def found(vlm, examples):
    return li.collect_features(vlm, examples, {"stream": "blocks.*.hook_resid_post", "heads": "blocks.*.attn.hook_z"})


LABELS = [n % 3 == 0 for n in range(COUNT)]


def test_mean_differences_by_hand(found):
    values = np.asarray(found["stream"].values, dtype=np.float64)
    made = li.mean_difference(found["stream"], LABELS)
    chosen = np.array(LABELS)
    by_hand = values[chosen].mean(0) - values[~chosen].mean(0)
    assert np.allclose(made.direction, by_hand, atol=1e-5) and made.sites == found["stream"].sites
    unit = by_hand[1] / np.linalg.norm(by_hand[1])
    assert float(made.spread[1]) == pytest.approx((values[:, 1] @ unit).std(ddof=1), rel=1e-4)
    assert not np.allclose(li.mean_difference(found["stream"], LABELS[::-1]).direction, by_hand, atol=1e-3)


def test_principal_directions_by_scikit_learn(vlm, examples, found):
    from sklearn.decomposition import PCA

    bad = li.collect_features(
        vlm, [tiny_inputs(vlm, seed=s + 50) for s in range(COUNT)], {"a": "blocks.*.hook_resid_post"}
    )
    made = li.principal_direction(found["stream"], bad["a"])
    apart = np.asarray(found["stream"].values, float) - np.asarray(bad["a"].values, float)
    fitted = PCA(1).fit(apart.reshape(COUNT, -1))
    sign = 1 if fitted.components_[0] @ fitted.mean_ >= 0 else -1
    expected = (sign * fitted.components_[0] + fitted.mean_).reshape(apart.shape[1:])
    assert np.allclose(made.direction, expected, atol=1e-4)
    other = (-sign * fitted.components_[0] + fitted.mean_).reshape(apart.shape[1:])
    assert not np.allclose(made.direction, other, atol=1e-2)


def test_the_image_s_difference_is_that_of_plain_passes(vlm, examples):
    """Hidden by transformers' own mask, and with another picture."""
    some = examples[:2]
    at = some[0].answer_start - 1
    site = "blocks.1.hook_mlp_out"
    for without in ("hidden", "noise"):
        apart = []
        for x in some:
            other = x.prompt
            if without == "hidden":
                mask = other.model_inputs["attention_mask"] * ~other.where("image")
                other = other.with_model_inputs(attention_mask=mask)
            else:
                other = li.counterfactuals.applied(li.counterfactuals.noise(), vlm, other, 4)
            apart.append((vlm.capture(x.prompt, site)[site] - vlm.capture(other, site)[site])[0, at])
        made = li.image_difference(vlm, some, without, seed=4)
        assert torch.allclose(made.direction[1], torch.stack(apart).mean(0), atol=1e-4)
        assert made.provenance.parameters["without"] == without and made.examples == 2


def test_probed_directions_are_the_best_probes_own(found):
    values = np.asarray(found["heads"].values)
    probes = li.fit_probes(values, LABELS, groups=range(COUNT), permutations=0, l2=1.0, folds=3)
    made = li.probed_directions(probes, found["heads"], 3)
    order = np.argsort(-probes.values[0].numpy(), kind="stable")[:3]
    assert set(made.sites) == {found["heads"].sites[n] for n in order}
    for name, direction in zip(made.sites, made.direction, strict=True):
        number = found["heads"].sites.index(name)
        unit = probes.direction(number)
        assert torch.allclose(direction / direction.norm(), unit, atol=1e-4)
        along = values[:, number].astype(float) @ unit.double().numpy()
        assert float(direction.norm()) == pytest.approx(along.std(ddof=1), rel=1e-4)
    turned = dataclasses.replace(found["heads"], values=values[::-1].copy())
    with pytest.raises(InputError, match="rows in another order"):
        li.probed_directions(probes, turned, 3)
    double = li.fit_probes(values.astype(float), LABELS, permutations=0, l2=1.0, folds=3)
    assert double.fitted_to(values) and not probes.fitted_to(values + 1e-3)
    means = li.probed_directions(probes, found["heads"], 3, by="means")
    assert not torch.allclose(means.direction, made.direction, atol=1e-3)


def test_pushes_go_where_directions_say(vlm, examples, found):
    """One push for each site, and each head's own direction in its place only."""
    made = li.mean_difference(found["heads"], LABELS)
    x, name = examples[0], "blocks.1.attn.hook_z.2"
    push = made.steer(2.0, sites=[name], positions="question")
    plain = vlm.capture(x, "blocks.1.attn.hook_z")["blocks.1.attn.hook_z"]
    with li.intervening(vlm, x, push):
        pushed = vlm.capture(x, "blocks.1.attn.hook_z")["blocks.1.attn.hook_z"]
    expected = torch.zeros_like(plain)
    expected[:, x.where("question"), 2] = 2 * made.direction[made.sites.index(name)]
    assert torch.allclose(pushed - plain, expected, atol=1e-4)
    stream = li.mean_difference(found["stream"], LABELS)
    both = intervene(vlm, x, stream.steer(0.5, sites=stream.sites[:2]))
    first, second = (Steer(stream.sites[n], direction=stream.direction[n], alpha=0.5) for n in (0, 1))
    by_hand = first + second
    assert torch.allclose(both.logprob, intervene(vlm, x, by_hand).logprob, atol=1e-5)


def test_doses_are_interventions_one_by_one(vlm, examples, found):
    made = li.mean_difference(found["stream"], LABELS)
    some = examples[:3]
    doses = li.dose_response(vlm, some, made, alphas=[-1, 0, 1], random=2, seed=3, write=3)
    for n, alpha in enumerate((-1, 1)):
        each = [float(intervene(vlm, x, made.steer(alpha), unit="answer").values[1, 0]) for x in some]
        assert float(doses.mean[2 * n]) == pytest.approx(np.mean(each), abs=1e-4)
    untouched = [float(li.score(vlm, x, x.everything[None]).logprob.sum()) for x in some]
    assert float(doses.mean[1]) == pytest.approx(np.mean(untouched), abs=1e-4)
    other = _at_random(made, torch.Generator().manual_seed(3))
    each = [float(intervene(vlm, x, other.steer(1), unit="answer").values[1, 0]) for x in some]
    assert float(doses.random[0, 2]) == pytest.approx(np.mean(each), abs=1e-4)
    assert torch.allclose(other.direction.norm(dim=-1), made.direction.norm(dim=-1), rtol=1e-5)
    assert not torch.allclose(doses.random[0], doses.random[1], atol=1e-3)
    assert doses.length.tolist() == [3, 3, 3] and doses.yes_rate.tolist() == [0, 0, 0]
    assert doses.slope == pytest.approx(float(doses.mean[2] - doses.mean[0]) / 2, rel=1e-4)


def test_a_direction_that_does_something_is_steeper_than_random_ones(vlm, examples):
    """The unembedding of a token, less that of another, behind the last block: its own lead grows."""
    x = examples[0]
    rows = vlm.readout.weight
    way = (rows[int(x.answer_ids[0])] - rows[11])[None].float()
    made = li.Directions(
        ("blocks.2.hook_resid_post",), way, torch.zeros(1), 1, "probes", provenance=vlm.provenance("made", x)
    )
    doses = li.dose_response(vlm, examples[:4], made, alphas=[-1, 0, 1], random=4, unit="token", positions="last")
    assert doses.slope > 2 * float(doses.random_slopes.abs().max()) and doses.mean[2] > doses.mean[1] > doses.mean[0]
    assert "0 of 4 random directions" in doses.note
    back = li.dose_response(
        vlm,
        examples[:4],
        dataclasses.replace(made, direction=-way),
        alphas=[-1, 0, 1],
        random=1,
        unit="token",
        positions="last",
    )
    assert back.slope == pytest.approx(-doses.slope, rel=1e-4)


def test_it_is_kept_and_drawn(vlm, examples, found, tmp_path):
    made = li.mean_difference(found["stream"], LABELS)
    doses = li.dose_response(vlm, examples[:2], made, alphas=[0, 1], random=1)
    for one in (made, doses):
        assert li.load_result(one.save(tmp_path / "a.safetensors")) == one
    assert len(made.to_frame()) == 3 and len(doses.to_frame()) == 2 and doses.length.isnan().all()
    ax = figures.dose_curve(doses)
    assert [*ax.lines[1].get_ydata()] == doses.mean.tolist()


def test_what_cannot_be_a_direction(vlm, examples, found):
    stream = found["stream"]
    with pytest.raises(InputError, match="some true"):
        li.mean_difference(stream, [True] * COUNT)
    with pytest.raises(InputError, match="12 labels"):
        li.mean_difference(stream, [True, False])
    with pytest.raises(InputError, match="pairs"):
        li.principal_direction(stream, found["heads"])
    with pytest.raises(SiteError, match="has heads"):
        li.image_difference(vlm, examples[:1], sites="blocks.*.attn.hook_z")
    made = li.mean_difference(stream, LABELS)
    with pytest.raises(InputError, match="there are directions of"):
        made.steer(sites=["blocks.9.hook_resid_post"])
    with pytest.raises(InputError, match="not all 0"):
        dataclasses.replace(made, direction=torch.zeros_like(made.direction)).steer()
    with pytest.raises(InputError, match="finite number"):
        made.steer(float("nan"))
    for options in ({"alphas": [1, 2]}, {"alphas": [0]}, {"alphas": [0, 1, 1]}, {"random": 0}):
        with pytest.raises(InputError, match="with 0 among them"):
            li.dose_response(vlm, examples[:1], made, **options)
    probes = li.fit_probes(np.asarray(stream.values), LABELS, groups=range(COUNT), permutations=0, l2=1.0, folds=3)
    with pytest.raises(InputError, match="fitted to these features"):
        li.probed_directions(probes, found["heads"], 2)
    with pytest.raises(InputError, match="count is 1 to 3"):
        li.probed_directions(probes, stream, 4)
