"""Probes find what was put there and nothing else; every promise has a case in which its check fails."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lvlm_interp import wrap
from lvlm_interp.errors import InputError, OutputError, SiteError
from lvlm_interp.probes import probe, validate
from lvlm_interp.probes.estimators import PointProbe, Probe
from lvlm_interp.probes.features import collect_features, stack_features
from lvlm_interp.probes.fit import Space
from lvlm_interp.probes.probe import fit_probes
from lvlm_interp.probes.result import ProbeResult
from tests.families import tiny_example, tiny_model
from tests.probing import QUICK, drawn, labelled
from tests.tiny import tiny_inputs, tiny_llava

# --- nothing leaks ----------------------------------------------------------------------------------------------------


def held_out_margin(x, y, example):
    """The margin that an example gets from the probes that were fitted without its fold."""
    found = fit_probes(x, y, folds=np.arange(len(y)) // 20, permutations=0, bootstrap=0, l2=(100.0, 0.01))
    return found.margins[:, example]


def leaks():
    """Whether a held-out example's margin changes when its companions in the fold do."""
    x, y = labelled(examples=60, sites=2, dim=30, holds=(0, 1))
    changed_x, changed_y = x.clone(), y.clone()
    changed_x[:19] = changed_x[:19] * 40 + 7
    changed_y[:19] = 1 - changed_y[:19]
    return not torch.equal(held_out_margin(x, y, 19), held_out_margin(changed_x, changed_y, 19))


def test_what_a_fold_holds_out_teaches_nothing():
    assert not leaks()


def test_leaking_standardisation_is_caught(monkeypatch):
    cross_validated, of = validate.cross_validated, Space.of

    def leaky(x, plan):
        monkeypatch.setattr(validate.Space, "of", lambda part, standardize: of(x, standardize))
        return cross_validated(x, plan)

    monkeypatch.setattr(validate, "cross_validated", leaky)
    assert leaks()


def test_leaking_choice_of_l2_is_caught(monkeypatch):
    cross_validated, validated = validate.cross_validated, validate.validated

    def leaky(x, plan):
        targets = plan.targets[:, :1]
        monkeypatch.setattr(validate, "validated", lambda *_: validated(x, targets, plan.fold, plan))
        return cross_validated(x, plan)

    monkeypatch.setattr(validate, "cross_validated", leaky)
    assert leaks()


@pytest.mark.parametrize("labels", [torch.arange(90) % 3, drawn(90, 2)], ids=["classes", "values"])
def test_groups_never_straddle_folds(labels):
    groups = torch.randint(25, (90,), generator=torch.Generator().manual_seed(0))
    found = fit_probes(drawn(90, 1, 2), labels, groups=groups, **QUICK)
    assert len(found.fold.unique()) == 5
    assert all(len(found.fold[found.groups == g].unique()) == 1 for g in found.groups.unique())
    with pytest.raises(InputError, match="split a group"):
        fit_probes(drawn(90, 1, 2), labels, groups=groups, folds=np.arange(90) % 5, **QUICK)


def test_classes_are_spread_evenly():
    _, y = labelled(examples=100, classes=4)
    found = fit_probes(drawn(100, 1, 2), y, **QUICK)
    assert all((y[found.fold == f].bincount() == 5).all() for f in range(5))


def test_l2_is_chosen_by_held_out_likelihood():
    x, y = labelled(examples=100, sites=2, dim=40, holds=(1,))
    x[:, 1, 2:] = 0
    found = fit_probes(x, y, permutations=0, bootstrap=0, l2=(1000.0, 0.1))
    assert found.l2.tolist() == [1000.0, pytest.approx(0.1)]


# --- control tasks ----------------------------------------------------------------------------------------------------


def test_selectivity_tells_reading_from_learning_by_heart():
    types = torch.arange(240) % 12
    y = types % 2
    told = drawn(240, 2, 12)
    told[torch.arange(240), 0, types] += 6  # knows the type, and so any label of it
    told[torch.arange(240), 1, y] += 6  # knows the label alone
    found = fit_probes(told, y, types=types, **QUICK)
    assert (found.values[0] > 0.9).all()
    assert found.control[0] > 0.9 and found.selectivity[1] > found.selectivity[0] + 0.2
    assert fit_probes(told, y, **QUICK).selectivity.isnan().all()


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colors():
    x, y = labelled(classes=3)
    names = np.array(["blue", "green", "red"])[y]
    frame = pd.DataFrame({"image": np.arange(120), "said": names})
    sites = [f"blocks.{i}.hook_resid_post" for i in range(6)]
    return x, names, fit_probes(x, names, sites=sites, metadata=frame, permutations=150, bootstrap=60, seed=3)


def test_a_result_is_saved_and_read_back(colors, tmp_path):
    x, _, found = colors
    again = ProbeResult.load(found.save(tmp_path / "probes.safetensors"))
    pd.testing.assert_frame_equal(again.to_frame(), found.to_frame())
    pd.testing.assert_frame_equal(again.examples(3), found.examples(3))
    assert again.classes == ("blue", "green", "red") and again.sites == found.sites and again.notes == found.notes
    assert (again.predict(x[:, 3], 3) == found.predict(x[:, 3], 3)).all()
    assert again.provenance.method == "probe" and again.provenance.seed == 3
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(OutputError):
        ProbeResult.load(tmp_path / "broken.safetensors")


def test_a_result_says_of_which_model_and_seed_it_is():
    vlm = wrap(tiny_llava())
    vlm.revision = "abc"
    about = fit_probes(*labelled(examples=24), folds=2, seed=5, vlm=vlm, **QUICK).provenance
    assert (about.method, about.seed, about.revision, about.weights) == ("probe", 5, "abc", vlm.fingerprint)


def test_a_result_shows_its_numbers(colors):
    _, names, found = colors
    frame = found.to_frame()
    assert frame["accuracy"].idxmax() == 3 and (frame["accuracy_low"] <= frame["accuracy_high"]).all()
    assert "blocks.3.hook_resid_post" in found._repr_html_() and "coef" not in found.to_dict()
    examples = found.examples("blocks.3.hook_resid_post")
    assert (examples["said"] == names).all() and (examples["label"] == examples["said"]).all()
    assert (examples["label"] == examples["predicted"]).mean() == pytest.approx(frame["accuracy"][3])
    assert dict(zip(found.metrics, found.baseline.tolist(), strict=True)) == pytest.approx(
        {"accuracy": 1 / 3, "balanced_accuracy": 1 / 3, "auroc": 0.5, "macro_f1": 1 / 6}
    )


def test_a_direction_raises_its_label(colors):
    x, names, found = colors
    for label in ("blue", "green", "red"):
        along = x[:, 3] @ found.direction(3, label)
        assert along[names == label].mean() > along[names != label].mean() + 1
    assert found.direction(3, "red").norm().item() == pytest.approx(1)
    with pytest.raises(InputError, match="no direction of None"):
        found.direction(3)
    with pytest.raises(SiteError, match="no probe at 'blocks"):
        found.direction("blocks.9", "red")


def test_two_classes_have_opposite_directions():
    x, y = labelled()
    found = fit_probes(x, y.tolist(), **QUICK)
    assert torch.equal(found.direction(3), found.direction(3, 1)) and torch.equal(
        found.direction(3, 0), -found.direction(3)
    )
    assert (found.predict(x[:, 3], 3) == y.numpy()).mean() > 0.95
    assert (found.predict(x[:, 3] - 20 * found.direction(3), 3) == 0).all()


def test_points_are_read_off():
    x = drawn(150, 3, 6)
    points = x[:, 1, :2] * 20 + 56
    found = fit_probes(x, points, permutations=99, bootstrap=50)
    assert found.kind == "regress" and found.metrics == ("r2", "pixel_error")
    assert found.of("r2").argmax() == 1 and found.of("pixel_error")[1] < 2 and found.baseline[1] > 20
    assert found.baseline[0].item() == pytest.approx(0, abs=1e-5) and found.significant.tolist() == [False, True, False]
    assert np.abs(found.predict(x[:, 1], 1) - points.numpy()).max() < 5 and len(found.direction(1, 0)) == 6
    assert list(found.examples(1))[-2:] == ["label_1", "predicted_1"]


@pytest.mark.parametrize(("unit", "zero"), [([1e-6, 1e-6], 0), ([1e3, 1e-4], 0), ([1, 1], 1e4)])
def test_points_are_read_off_in_any_unit(unit, zero):
    x, unit = drawn(150, 3, 6), torch.tensor(unit)
    points = x[:, 1, :2] + drawn(150, 2, seed=5) / 2
    plain = fit_probes(x, points, permutations=49, bootstrap=50)
    found = fit_probes(x, points * unit + zero, permutations=49, bootstrap=50)
    for name in ("p", "l2"):
        assert torch.equal(getattr(found, name), getattr(plain, name))
    for name in ("values", "low", "high"):
        assert torch.allclose(getattr(found, name)[0], getattr(plain, name)[0], atol=1e-3)
    assert torch.allclose(found.coef[1] / unit, plain.coef[1], atol=1e-3)
    assert torch.allclose((found.intercept[1] - zero) / unit, plain.intercept[1], atol=2e-3)
    assert torch.allclose((found.margins[1] - zero) / unit, plain.margins[1], atol=2e-3)
    single = PointProbe(l2=float(plain.l2[1]), tolerance=1e-5).fit(x[:, 1], points * unit + zero)
    assert (single.coef_.T / unit.numpy()).flatten() == pytest.approx(plain.coef[1].flatten().numpy(), abs=1e-3)


def test_layers_and_heads_keep_their_shape():
    x, y = labelled(sites=6, holds=(5,))
    flat, shaped = fit_probes(x, y, **QUICK), fit_probes(x.view(120, 2, 3, 5), y, **QUICK)
    assert shaped.of("accuracy").shape == (2, 3) and shaped.sites[5] == "1.2"
    assert torch.equal(shaped.of("accuracy").flatten(), flat.of("accuracy"))
    with pytest.raises(InputError, match="no metric"):
        flat.of("luck")


class OnDisk:
    """Like a zarr array: a shape, and slices that are read when asked for."""

    def __init__(self, values):
        self.values, self.shape, self.read = values, values.shape, []

    def __getitem__(self, key):
        self.read.append(self.values[key].shape)
        return self.values[key]


def test_features_are_read_in_blocks(monkeypatch):
    x, y = labelled()
    disk = OnDisk(x.numpy())
    whole = fit_probes(x, y, permutations=20, bootstrap=20)
    monkeypatch.setattr(probe, "BLOCK", 2 * 4 * x[:, 0].numel())
    found = fit_probes(disk, y, permutations=20, bootstrap=20)
    assert disk.read == [(120, 2, 5)] * 3
    assert torch.allclose(found.values, whole.values) and torch.allclose(found.p, whole.p)


def test_captures_become_features():
    vlm = wrap(tiny_llava())
    sites = ["blocks.*.attn.hook_z", "blocks.1.attn.hook_q"]
    captures = [vlm.capture(tiny_inputs(vlm, seed=s), sites, reduce="last") for s in (1, 2)]
    x, names = stack_features(captures)
    assert x.shape == (2, 16, 8) and len(names) == 16
    head = names.index("blocks.2.attn.hook_z.3")
    assert torch.equal(x[1, head], captures[1]["blocks.2.attn.hook_z"][0, 3])
    with pytest.raises(InputError, match="reduce"):
        stack_features([vlm.capture(tiny_inputs(vlm), sites)])
    with pytest.raises(InputError, match="different widths"):
        stack_features([vlm.capture(tiny_inputs(vlm), ["*.hook_z", "blocks.0.hook_resid_post"], reduce="last")])
    with pytest.raises(InputError, match="a number for each key"):
        stack_features([vlm.capture(tiny_inputs(vlm), "*.hook_pattern", reduce="last")])
    with pytest.raises(InputError, match="no captures"):
        stack_features([])


def test_heads_of_cross_attention_become_features():
    vlm = wrap(tiny_model("mllama"))
    x = tiny_example(vlm, "mllama")
    found = collect_features(vlm, [x, x], {"heads": "blocks.*.cross_attn.hook_z"})["heads"]
    assert found.by_head.shape == (2, 2, 4, 8) and found.sites[5] == "blocks.3.cross_attn.hook_z.1"
    alone = vlm.capture(x, "blocks.3.cross_attn.hook_z", reduce="last")["blocks.3.cross_attn.hook_z"]
    assert torch.allclose(found.values[0, 5], alone[0, 1], atol=1e-5)


def test_features_are_those_of_each_example_alone():
    """Read in batches, of which the last is smaller and examples are of different lengths."""
    vlm = wrap(tiny_llava())
    examples = [tiny_inputs(vlm, answer, seed=s) for s, answer in enumerate([(7,), (7, 8), (9,)])]
    sites = {"heads": "blocks.*.attn.hook_z", "layers": "blocks.*.hook_resid_post"}
    found = collect_features(vlm, iter(examples), sites, batch=2)
    heads = len(found["heads"].sites) // len(found["layers"].sites)
    assert found["heads"].by_head.shape[:3] == (3, len(found["layers"].sites), heads)
    assert found["layers"].by_head.shape[2] == 1
    for row, x in enumerate(examples):
        alone = vlm.capture(x, list(sites.values()))
        for number, site in enumerate(found["layers"].sites):
            assert torch.allclose(found["layers"].values[row, number], alone[site][0, -1], atol=2e-4)
        z = alone["blocks.1.attn.hook_z"][0, -1]
        assert torch.allclose(found["heads"].by_head[row, 1], z, atol=2e-4)
    assert not torch.allclose(found["layers"].values[0], found["layers"].values[1], atol=1e-3)
    with pytest.raises(InputError, match="no examples"):
        collect_features(vlm, [], sites)
    with pytest.raises(SiteError, match="nothing"):
        collect_features(vlm, examples, {"none": "nothing"})


# --- scikit-learn's conventions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Probe", "PointProbe"])
def test_estimators_keep_the_conventions(name):
    """scikit-learn's own checks, in a process without our type checks: they hand in wrong types on purpose."""
    code = (
        "from sklearn.utils.estimator_checks import check_estimator\n"
        f"from lvlm_interp.probes.estimators import {name}\n"
        f"print(len(check_estimator({name}())))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 40


def test_a_probe_goes_into_a_pipeline(colors):
    x, names, found = colors
    frozen = found.probe(3)
    assert isinstance(frozen, Probe) and frozen.score(x[:, 3].numpy(), names) > 0.9
    assert frozen.predict_proba(x[:, 3].numpy()).sum(1) == pytest.approx(np.ones(120))
    copied = clone(frozen).set_params(l2=5.0)
    assert copied.get_params() == {"l2": 5.0, "standardize": True, "tolerance": 1e-6} and not hasattr(copied, "coef_")
    assert cross_val_score(make_pipeline(StandardScaler(), copied), x[:, 3].numpy(), names).mean() > 0.9
