"""What cannot be probed is refused, and what a reader should know is noted."""

import numpy as np
import pandas as pd
import pytest
import torch

from lvlm_interp.errors import InputError, LvlmInterpError
from lvlm_interp.probes import probe, statistics
from lvlm_interp.probes.probe import fit_probes
from tests.probing import QUICK, drawn, labelled


def with_nan():
    x, y = labelled()
    x[7, 4, 0] = torch.nan
    return x, y


X, Y = labelled()


@pytest.mark.parametrize(
    ("features", "labels", "options", "message"),
    [
        (X, Y * 0, {}, "at least two classes"),
        (X, drawn(120) * 0 + 0.5, {"task": "regress"}, "all labels are equal"),
        (X, torch.stack([drawn(120), torch.ones(120)], 1), {}, "output 1 are equal"),
        (X, torch.full((120,), torch.nan), {}, "120 labels are NaN"),
        (X[:4], Y[:4], {"folds": 5}, "from 2 to 4 folds"),
        (X, Y, {"folds": 1}, "from 2 to 120 folds"),
        (X, (torch.arange(120) < 3).long(), {}, "class 1 has only 3 examples"),
        (X, Y, {"groups": [7] * 120}, "all 120 examples are of one group, and groups are held out whole"),
        (X, Y, {"groups": torch.arange(120) % 3}, "in 3 groups: give from 2 to 3"),
        (X, (torch.arange(120) < 24).long(), {"groups": torch.arange(120) // 24}, r"examples of \[1\] fall into fold"),
        (X, Y, {"folds": np.zeros(120)}, "nothing is left to train on"),
        (X, Y[:-1], {}, "120 examples but 119 labels"),
        (X, Y, {"groups": [1]}, "120 examples but 1 groups"),
        (X, Y, {"types": [1]}, "120 examples but 1 types"),
        (X, Y, {"metadata": pd.DataFrame({"a": [1]})}, "120 examples but 1 metadata"),
        (X, Y, {"folds": [0, 1]}, "120 examples but 2 folds"),
        (X, ["a", None] * 60, {}, "60 labels are NaN or infinite, or missing"),
        (X, ["a", "b", float("nan")] * 40, {}, "40 labels are"),
        (X, Y, {"groups": ["a", "b", None, "c", "d", "e"] * 20}, "20 groups are"),
        (X, Y, {"types": ["a", "b", "c", None] * 30}, "30 types are"),
        (X, ["a", "b"] * 60, {"task": "regress"}, "'a' are no numbers"),
        (X, np.array([["a"], ["b"]] * 60), {}, r"of shape \(120, 1\), they are rows"),
        (X, drawn(120, 2), {"task": "classify"}, "one for each example"),
        (X, [[1.0], [1.0, 2.0]] * 60, {}, "not all of one shape"),
        (X, Y, {"confidence": 95}, "a share between 0 and 1, got 95"),
        (X, Y, {"alpha": 5}, "a share between 0 and 1, got 5"),
        (X, Y, {"permutations": -1}, "0 for none, got -1"),
        (X, Y, {"seed": -1}, "from 0 to"),
        (X, Y, {"sites": ["a", "b"]}, "6 sites need as many"),
        (X, Y, {"l2": 0.0}, "above 0"),
        (X[:, 0], Y, {}, "features are"),
        (X[:, :, :0], Y, {}, "none empty"),
        (X, [7, "7"] * 60, {}, r"several kinds, 7 \(number\) and '7' \(text\)"),
        (X, [True, 1, 0] * 40, {}, "several kinds, .*number.*truth value"),
        (X, Y, {"groups": [1, "1"] * 60}, "groups are of several kinds"),
        (X, Y, {"tolerance": 1e9}, "tolerance is a share"),
        (X, Y, {"tolerance": float("nan")}, "tolerance is a share"),
        (X, Y, {"tolerance": 0}, "tolerance is a share"),
        (X, Y, {"bootstrap": 1}, "tells no interval"),
        (X, Y, {"l2": ["13"]}, "l2 is a number|l2=…"),
        (X, Y, {"sites": [1, 2, 3, 4, 5, 6]}, "sites are names|sites=…"),
        (X.to(torch.complex64), Y, {}, "real numbers; got complex64"),
        (X.numpy().astype(complex), Y, {}, "real numbers; got complex128"),
        (X.numpy().astype(str), Y, {}, "real numbers; got <U"),
        (X.numpy().astype(object), Y, {}, "real numbers; got object"),
        ([[[1.0]], [[1.0, 2.0]]] * 60, Y, {}, "features are not all of one shape"),
        (X, "ab" * 60, {}, "labels are a list or an array"),
        (X, {i: i % 2 for i in range(120)}, {}, "labels are a list or an array"),
        (X, (i % 2 for i in range(120)), {}, "labels are a list or an array"),
        (X, 3, {}, "labels are a list or an array"),
        (X, [b"a", b"b"] * 60, {}, "labels are texts, numbers or truth values; got b'"),
        (X, [1e300, 2e300, 1.5] * 40, {"task": "regress"}, "the labels are too large"),
        (X, [[1e300, 1.5], [2e300, 2.5]] * 60, {}, "of output 0 are too large"),
        (X, [1e-30, 2e-30, 1.5e-30] * 40, {"task": "regress"}, "too small"),
        (*with_nan(), {"sites": list("abcdef")}, "NaN or infinite values at e, first in example 7"),
    ],
)
def test_what_cannot_be_probed_is_refused(features, labels, options, message):
    with pytest.raises(LvlmInterpError, match=message):
        fit_probes(features, labels, **{**QUICK, **options})


@pytest.mark.parametrize("given", ["no", "13", 2, None])
def test_whether_features_are_scaled_is_a_truth(given):
    """Of any other kind, what is not empty would be taken as true."""
    with pytest.raises(InputError, match="standardize"):
        fit_probes(X, Y, **QUICK, standardize=given)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (X[:, 0, :3], r"\[example, 5\]; got \[120, 3\]"),
        (X[:, :2], r"got \[120, 2, 5\]"),
        (X[0, 0], r"got \[5\]"),
        (X[:0, 0], r"got \[0, 5\]"),
        (with_nan()[0][:, 4], "NaN or infinite values, first in example 7"),
        ([["a"] * 5], "real numbers"),
        (X[:, 0].to(torch.complex64), "real numbers"),
    ],
)
def test_what_cannot_be_predicted_from_is_refused(features, message):
    found = fit_probes(X, Y, **QUICK)
    with pytest.raises(InputError, match=message):
        found.predict(features, 3)
    assert (found.predict(X[:, 3], 3) == found.predict(X[:, 3].numpy(), 3)).all()


def test_what_is_broken_at_the_last_site_is_found_before_the_first_is_fitted(monkeypatch):
    x, y = with_nan()
    monkeypatch.setattr(probe, "BLOCK", 4 * x[:, 0].numel())
    monkeypatch.setattr(probe, "fit_block", lambda *_: pytest.fail("a site was fitted"))
    with pytest.raises(InputError, match="NaN or infinite values at 4"):
        fit_probes(x, y, **QUICK)


def test_constant_features_are_harmless_and_noted():
    x, y = labelled()
    x[:, 0], x[:, 3, 4] = 0.1, 1e4
    found = fit_probes(x, y, permutations=150, bootstrap=20)
    assert found.coef[0].abs().max() == 0 and found.coef[3, 4].abs().max() == 0 and found.coef.isfinite().all()
    assert found.values[:, 0].tolist() == pytest.approx(found.baseline.tolist()) and found.p[0] == 1
    assert "constant features, which get coefficient 0, at 0 (5), 3 (1)" in found.notes
    with pytest.raises(InputError, match="no direction"):
        found.direction(0)


def test_a_site_that_tells_nothing_has_p_1_whatever_rounding_does():
    x = torch.zeros(300, 1, 3)
    for seed in range(5):
        y = torch.randint(3, (300,), generator=torch.Generator().manual_seed(seed))
        assert fit_probes(x, y, permutations=50, bootstrap=0, l2=1.0, seed=seed).p.item() == 1


def test_sure_answers_keep_their_order():
    truth, margins = torch.tensor([0, 0, 1, 1]), torch.tensor([[[20.0], [21.0], [22.0], [23.0]]])
    task, ones = probe.task_of(truth), torch.ones(1, 4)
    assert task.scores(margins, truth, ones, torch.zeros(4, dtype=torch.long))["auroc"].item() == 1


def test_groups_may_be_whatever_can_be_told_apart():
    days = pd.Series(pd.date_range("2020-01-01", periods=12)).repeat(10)
    assert len(fit_probes(X, Y, **QUICK, groups=days).groups.unique()) == 12


def test_nested_lists_are_features():
    assert torch.equal(fit_probes(X.tolist(), Y, **QUICK).values, fit_probes(X, Y, **QUICK).values)


def test_separable_classes_have_a_finite_answer_and_a_note():
    x, y = labelled(holds=())
    x[:, 2] = y[:, None] * 10.0
    found = fit_probes(x, y, sites=list("abcdef"), l2=1e-3, permutations=0, bootstrap=0)
    assert found.coef.isfinite().all() and found.of("accuracy")[2] == 1
    assert any("perfectly separable at c:" in note for note in found.notes)
    assert not any("separable" in note for note in fit_probes(X[:, :2], Y, **QUICK).notes)


def test_too_few_permutations_are_noted():
    notes = fit_probes(X, Y, permutations=19, bootstrap=0, l2=1.0).notes
    assert any("fewer than 6 sites can never be significant" in note for note in notes)


def test_labels_that_can_hardly_change_places_are_noted():
    groups = torch.arange(10).repeat_interleave(12)
    labels = (groups // 5 + groups) % 2
    notes = fit_probes(X, labels, groups=groups, permutations=400, bootstrap=0, l2=1.0).notes
    assert any("can change places in about" in note for note in notes)
    assert not any("change places" in note for note in fit_probes(X, Y, permutations=400, bootstrap=0, l2=1.0).notes)


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        (["a", "b", "a"], "classify", ("a", "b")),
        ([2, 1, 2], "classify", (1, 2)),
        ([0.0, 1.0, 1.0], "classify", (0.0, 1.0)),
        ([True, False, True], "classify", (False, True)),
        ([0.5, 1.0, 1.7], "regress", (0,)),
        (torch.tensor([[1, 2], [3, 4]]), "regress", (0, 1)),
        (torch.tensor([0.5, 1.0, 1.75], dtype=torch.bfloat16), "regress", (0,)),
        (pd.Series([10, 2, 10], dtype=object), "classify", (2, 10)),
        (pd.Series([0.5, 1.0, 1.7], dtype="Float64"), "regress", (0,)),
    ],
)
def test_labels_of_all_kinds(labels, kind, classes):
    found = probe.task_of(labels)
    assert (found.kind, found.classes) == (kind, classes)


def test_labels_that_their_number_type_would_round_are_refused():
    """Seconds since 1970, minutes apart: in float32 they are 128 apart."""
    values = X[:, 0, 0].double().numpy()
    assert fit_probes(X, 1e4 + 300 * values, **QUICK).of("r2").max() > 0.5
    with pytest.raises(InputError, match="less a constant"):
        fit_probes(X, 1.7e9 + 300 * values, **QUICK)


@pytest.mark.parametrize(
    ("pair", "why"), [(("a", "a\0"), "ends with NUL"), ((2**53 + 1, 0.5), "is rounded beside fractions")]
)
def test_labels_that_numpy_would_change_are_refused(pair, why):
    with pytest.raises(InputError, match=why):
        probe.task_of([pair[n % 2] for n in range(20)])
    assert probe.task_of([str(pair[n % 2]).strip("\0") + f"{n % 2}" for n in range(20)]).classes  # the control


def test_columns_of_the_users_own_are_kept():
    frame = pd.DataFrame({"label": ["mine"] * len(X), "place": range(len(X))})
    found = fit_probes(X, Y, metadata=frame, **QUICK).examples(0)
    assert set(found["label (given)"]) == {"mine"} and list(found["label"]) == list(Y) and "place" in found
    with pytest.raises(InputError, match="names of their own"):
        fit_probes(X, Y, metadata=frame.set_axis(["a", "a"], axis=1), **QUICK)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_shares_whatever_the_default_dtype_is(dtype):
    """26 of 40 are .65, which half precision does not hold."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 1, 4, generator=generator), [0, 1] * 20
    expected = fit_probes(x, y, permutations=20, bootstrap=20).to_frame()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = fit_probes(x, y, permutations=20, bootstrap=20).to_frame()
    finally:
        torch.set_default_dtype(before)
    pd.testing.assert_frame_equal(found, expected)


LAYOUTS = {
    "backwards": lambda x: x[..., ::-1],
    "big-endian": lambda x: x.astype(">f4"),
    "long": lambda x: x.astype("g"),
}


@pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS)
def test_arrays_in_any_layout_are_features_and_labels(change):
    """Turned around, of another machine's order of bytes, or longer than doubles."""
    x, y = labelled()
    given = change(x.numpy())
    expected = fit_probes(torch.tensor(np.ascontiguousarray(given, np.float32)), y, **QUICK)
    assert torch.allclose(fit_probes(given, y, **QUICK).margins.float(), expected.margins, atol=1e-3)
    rows = y.double().numpy() * 0.5 + 0.25
    assert fit_probes(x, change(rows[:, None])[:, 0], task="regress", **QUICK).margins.isfinite().all()


def test_features_by_name_are_told_how_to_be_given():
    with pytest.raises(InputError, match=r"found\[name\]\.values"):
        fit_probes({"resid": X}, Y)


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1e160, "float64"), (1e-200, "float64"), (1e25, "float32"), (1e-25, "float32")]
)
def test_features_whose_squares_no_number_holds_are_refused(scale, dtype):
    features = X[:, :1].double().numpy() * scale
    with pytest.raises(InputError, match=f"squares are 0 or infinite in {dtype}"):
        fit_probes(features.astype(dtype), X[:, 0, 0] > 0, **QUICK)
    assert fit_probes(X[:, :1].double().numpy() * 1e-12, X[:, 0, 0] > 0, **QUICK).of("accuracy").max() > 0.8


def test_sure_answers_of_any_class_keep_their_order():
    """Probabilities of 1 tie, log-odds do not: which class is named second decides nothing."""
    margins = torch.linspace(70, 77, 40)[None, :, None]
    truth = (torch.arange(40) >= 20).long()
    ones, fold = torch.ones(1, 40, dtype=torch.float64), torch.zeros(40, dtype=torch.long)
    two, swapped = (probe.task_of(names) for names in (truth.tolist(), (1 - truth).tolist()))
    area = two.scores(margins, truth, ones, fold)["auroc"]
    assert torch.allclose(area, swapped.scores(-margins, 1 - truth, ones, fold)["auroc"])
    ties = statistics.class_scores(truth, two.predicted(margins), two.probabilities(margins.double()), ones, fold)
    assert area != ties["auroc"]  # the control
    three = probe.task_of([0, 1, 2] * 4)
    drawn = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(three.surer(drawn).sigmoid(), drawn.softmax(-1))


def test_what_is_masked_is_missing():
    """numpy hands on what stands behind a mask."""
    masked = np.ma.masked_array(X.numpy(), mask=np.arange(X.numel()).reshape(X.shape) == 7)
    labels = np.ma.masked_array(np.arange(len(Y)) % 2, mask=np.arange(len(Y)) == 3)
    for features, given, what in ((masked, Y, "features"), (X, labels, "labels")):
        with pytest.raises(InputError, match=f"{what}.*masked"):
            fit_probes(features, given, permutations=0)
    with pytest.raises(InputError, match=r"groups.*masked"):
        fit_probes(X, Y, groups=labels, permutations=0)
