"""Fits, scores and p-values of probes are those of scikit-learn, or of slow loops."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, kstest
from sklearn import metrics
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from lvlm_interp import bootstrap
from lvlm_interp.probes import statistics, validate
from lvlm_interp.probes.fit import BINARY, GAUSSIAN, MULTINOMIAL, Problem, Space, held_out_r2, solve
from lvlm_interp.probes.probe import fit_probes
from tests.probing import drawn, labelled

# --- the fits are scikit-learn's --------------------------------------------------------------------------------------


def batched(x, targets, likelihood, l2):
    space = Space.of(x)
    weights = solve(Problem(space.enter(x), targets[:, None], likelihood), torch.full((len(x),), l2), tolerance=1e-6)
    coef, intercept = space.leave(weights)
    return coef[:, :, 0], intercept[:, 0]


def gap(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("dim", [7, 150])
@pytest.mark.parametrize("l2", [0.3, 30.0])
def test_logistic_regression_is_that_of_a_slow_loop(classes, dim, l2):
    x = drawn(4, 100, dim) @ drawn(dim, dim, seed=1) + 5  # correlated features, off centre; 150 of 100 examples
    y = torch.randint(classes, (100,), generator=torch.Generator().manual_seed(2))
    hot = torch.nn.functional.one_hot(y).float()
    coef, intercept = batched(x, hot[:, 1:] if classes == 2 else hot, BINARY if classes == 2 else MULTINOMIAL, l2)
    for i in range(len(x)):
        scaler = StandardScaler().fit(x[i].double())
        oracle = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=10_000).fit(scaler.transform(x[i].double()), y)
        ours = coef[i].T.double().numpy() * scaler.scale_
        assert gap(ours, oracle.coef_) < 1e-3
        margins = scaler.transform(x[i].double()) @ oracle.coef_.T + oracle.intercept_
        assert gap((x[i] @ coef[i] + intercept[i]).numpy(), margins) < 1e-3
        other = LogisticRegression(C=0.5 / l2, max_iter=10_000).fit(scaler.transform(x[i].double()), y)
        assert gap(ours, other.coef_) > 1e-2  # the comparison can tell another strength


def test_ridge_is_that_of_a_slow_loop():
    x, y = drawn(3, 80, 6) * 4 + 2, drawn(80, 2, seed=1) * 50 + 56
    coef, intercept = batched(x, y, GAUSSIAN, 7.0)
    for i in range(3):
        scaler = StandardScaler().fit(x[i].double())
        oracle = Ridge(alpha=7.0).fit(scaler.transform(x[i].double()), y.double())
        assert gap(coef[i].T.double().numpy() * scaler.scale_, oracle.coef_) < 1e-3
        predicted = oracle.predict(scaler.transform(x[i].double()))
        assert gap((x[i] @ coef[i] + intercept[i]).numpy(), predicted) < 1e-3


def test_several_targets_are_fitted_as_if_alone():
    x, y = drawn(2, 60, 4), (drawn(60, 3, 1, seed=1) > 0).float()
    together = solve(Problem(Space.of(x).enter(x), y, BINARY), torch.ones(2), tolerance=1e-6)
    for i in range(3):
        alone = solve(Problem(Space.of(x).enter(x), y[:, i : i + 1], BINARY), torch.ones(2), tolerance=1e-6)
        assert torch.allclose(together[:, :, i], alone[:, :, 0], atol=1e-4)


# --- scores are scikit-learn's ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_are_those_of_scikit_learn(classes):
    truth = torch.randint(classes, (90,), generator=torch.Generator().manual_seed(0))
    logits = drawn(2, 90, classes).round(decimals=1)  # with ties
    logits[0] += 2 * torch.nn.functional.one_hot(truth, classes)
    probabilities = logits.softmax(-1)
    times = torch.randint(4, (90,), generator=torch.Generator().manual_seed(1))
    weights = torch.stack([torch.ones(90), times.float()])
    fold = torch.zeros(90, dtype=torch.long)
    found = statistics.class_scores(truth, probabilities.argmax(-1), probabilities, weights, fold)
    for sample, again in enumerate((torch.ones(90, dtype=torch.long), times)):
        y = truth.repeat_interleave(again).numpy()
        for site in range(2):
            p = probabilities[site].repeat_interleave(again, 0).numpy()
            expected = {
                "accuracy": metrics.accuracy_score(y, p.argmax(1)),
                "balanced_accuracy": metrics.balanced_accuracy_score(y, p.argmax(1)),
                "auroc": metrics.roc_auc_score(y, p[:, 1] if classes == 2 else p, multi_class="ovr"),
                "macro_f1": metrics.f1_score(y, p.argmax(1), average="macro"),
            }
            assert {k: float(v[site, sample]) for k, v in found.items()} == pytest.approx(expected, abs=1e-5)


def test_auroc_compares_within_folds_only():
    truth, fold = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    p = torch.tensor([0.1, 0.2, 0.8, 0.9])  # right in each fold; the second fold has another zero
    both = torch.stack([1 - p, p], -1)[None]
    ones = torch.ones(1, 4)
    assert statistics.class_scores(truth, (p > 0.5).long()[None], both, ones, fold)["auroc"].item() == 1
    assert statistics.class_scores(truth, (p > 0.5).long()[None], both, ones, fold * 0)["auroc"].item() == 0.75


def test_point_scores_are_those_of_scikit_learn():
    truth, predicted = drawn(50, 2) * 30 + 1e5, drawn(1, 50, 2, seed=1) * 30 + 1e5
    found = statistics.point_scores(truth, predicted, torch.ones(1, 50))
    assert found["r2"].item() == pytest.approx(
        metrics.r2_score(truth.double().numpy(), predicted[0].double().numpy()), abs=1e-4
    )
    distance = np.linalg.norm(truth - predicted[0], axis=1).mean()
    assert found["pixel_error"].item() == pytest.approx(distance, rel=1e-5)


def test_intervals_know_that_a_group_is_one_observation():
    groups = torch.arange(200) // 20
    right = (groups % 2 == 0).long()[None]  # whole groups are right or wrong
    truth = torch.ones(200, dtype=torch.long)

    def width(of):
        weights = bootstrap.bootstrap_weights(of, 400, torch.Generator().manual_seed(0))
        assert (weights[0] == 1).all() and torch.allclose(weights.sum(1).mean(), torch.tensor(200.0), rtol=0.05)
        low, high = bootstrap.interval(
            statistics.class_scores(truth, right, torch.full((1, 200, 2), 0.5), weights, groups * 0)["accuracy"], 0.95
        )
        return float(high - low)

    assert width(groups) > 3 * width(torch.arange(200))


# --- significance -----------------------------------------------------------------------------------------------------


def test_exactly_the_sites_that_hold_the_label_are_significant():
    x, y = labelled(sites=8, holds=(1, 5))
    found = fit_probes(x, y, permutations=400, bootstrap=50, l2=(100.0, 1.0))
    assert found.significant.tolist() == [i in (1, 5) for i in range(8)]
    assert set(found.of("accuracy").topk(2).indices.tolist()) == {1, 5} and not found.notes


def p_values(x, y, fold, groups, orders=None, count=99, seed=0):
    orders = (
        statistics.exchanges(fold, groups, count, torch.Generator().manual_seed(seed)) if orders is None else orders
    )
    return statistics.permutation_p(held_out_r2(x, y, orders, fold, validate.SHRINKAGE))


def p_of_held_out_labels_only(x, y, fold, count=99):
    """The tempting short cut: only the labels that predictions are compared with are permuted."""
    predicted = torch.zeros(len(x), len(y))
    for number in fold.unique():
        test = fold == number
        space = Space.of(x[:, ~test])
        weights = solve(Problem(space.enter(x[:, ~test]), y[~test][:, None], GAUSSIAN), torch.full((len(x),), 50.0))
        predicted[:, test] = (space.enter(x[:, test]) @ weights.flatten(2))[..., 0]
    orders = statistics.exchanges(fold, torch.arange(len(y)), count, torch.Generator().manual_seed(0))
    centred = y[:, 0] - y.mean()
    return statistics.permutation_p(torch.stack([predicted @ centred[order] for order in orders], 1))


def test_p_values_are_uniform_when_labels_are_shuffled():
    sites, fold = 400, torch.arange(60) % 3
    x, y = drawn(sites, 60, 6), (torch.randperm(60, generator=torch.Generator().manual_seed(1)) % 2).float()[:, None]
    p = p_values(x, y, fold, torch.arange(60))
    assert kstest(p, "uniform").pvalue > 0.01 and (p <= 0.05).sum() < binom.ppf(0.999, sites, 0.05)
    short_cut = p_of_held_out_labels_only(x, y, fold)
    assert (short_cut <= 0.05).sum() > binom.ppf(0.999, sites, 0.05)


def test_permutations_keep_groups_together():
    sites, groups = 200, torch.arange(80) // 8
    fold, y = groups % 2, ((groups // 2) % 2).float()[:, None]
    x = drawn(sites, 10, 6)[:, groups] + 0.3 * drawn(sites, 80, 6, seed=1)  # a group looks alike and has one label
    p = p_values(x, y, fold, groups)
    assert (p <= 0.05).sum() < binom.ppf(0.999, sites, 0.05)
    assert (p_values(x, y, fold, torch.arange(80)) <= 0.05).sum() > binom.ppf(0.999, sites, 0.05)


def test_permutations_keep_what_they_should():
    fold, groups = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0]), torch.tensor([0, 0, 1, 2, 2, 3, 3, 4])
    orders = statistics.exchanges(fold, groups, 200, torch.Generator().manual_seed(0))
    assert (orders[0] == torch.arange(8)).all() and (orders.sort(1).values == torch.arange(8)).all()
    assert (fold[orders] == fold).all()
    size = groups.bincount()[groups]
    assert (size[orders] == size).all()
    assert {tuple(o) for o in orders[:, 3:7].tolist()} >= {(5, 6, 3, 4), (4, 3, 5, 6), (6, 5, 4, 3)}


def test_false_discoveries_stay_at_the_level():
    runs, any_p, any_q = 80, 0, 0
    for seed in range(runs):
        x, y = drawn(6, 40, 3, seed=seed), (torch.arange(40) % 2).float()[:, None]
        p = p_values(x, y, (torch.arange(40) // 2) % 4, torch.arange(40), seed=seed, count=199)
        any_p, any_q = any_p + bool((p <= 0.05).any()), any_q + bool((statistics.false_discovery_q(p) <= 0.05).any())
    assert any_q <= binom.ppf(0.999, runs, 0.05) < any_p


def test_a_group_is_drawn_as_one():
    groups = torch.tensor([0, 0, 0, 1, 2, 2])
    weights = bootstrap.bootstrap_weights(groups, 50, torch.Generator().manual_seed(0))
    assert torch.equal(weights[0], torch.ones(6))
    for members in ([0, 1, 2], [4, 5]):
        assert (weights[:, members] == weights[:, members[:1]]).all()
    drawn = weights[:, [0, 3, 4]]  # one of each group: as many groups are drawn as there are
    assert (drawn.sum(1) == 3).all() and (drawn[1:] != 1).any()
