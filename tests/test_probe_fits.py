"""Fits, scores and p-values of probes are those of scikit-learn, or of slow loops."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, kstest, t
from sklearn import metrics
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from lvlm_interp import bootstrap
from lvlm_interp.probes import probe, statistics, validate
from lvlm_interp.probes.estimators import strengths
from lvlm_interp.probes.fit import BINARY, GAUSSIAN, MULTINOMIAL, TOLERANCE, Problem, Space, solve
from lvlm_interp.probes.least_squares import held_out_r2
from lvlm_interp.probes.probe import fit_probes
from lvlm_interp.probes.task import inner_folds, make_folds, task_of
from tests.probing import drawn, labelled

# --- the fits are scikit-learn's --------------------------------------------------------------------------------------


def batched(x, targets, likelihood, l2, tolerance=1e-6):
    space, strength = Space.of(x), torch.full((len(x),), l2)
    weights = solve(Problem(space.enter(x), targets[:, None], likelihood), strength, tolerance=tolerance)
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


def test_labels_without_a_second_class_have_no_slopes():
    """As control labels may be; the intercept has no end, and slopes shrink towards 0 without one."""
    x = drawn(3, 60, 4)
    coef, intercept = batched(x, torch.zeros(60, 1), BINARY, 1.0, tolerance=TOLERANCE)
    assert coef.abs().max() < 1e-2 and intercept.isfinite().all() and (intercept < -3).all()


def unequal(examples, dim, sites, seed=0, shares=(0.5, 0.25, 0.15, 0.1)):
    """Four classes of unequal size, which sites hold more and more of."""
    y = torch.multinomial(torch.tensor(shares), examples, True, generator=torch.Generator().manual_seed(seed))
    middles = drawn(sites, 4, dim, seed=seed + 1) * torch.linspace(0.1, 0.6, sites)[:, None, None]
    return drawn(sites, examples, dim, seed=seed + 2) + middles[:, y], y


@pytest.mark.parametrize(("l2", "dtype"), [(0.01, torch.float64), (0.1, torch.float32)])
@pytest.mark.parametrize("dim", [20, 576])
def test_little_l2_gives_what_a_converged_fit_does(dim, l2, dtype):
    """Where hardly anything holds coefficients back, a gradient that is nearly 0 is far from the minimum."""
    x, y = unequal(400, dim, sites=2)
    hot = torch.nn.functional.one_hot(y).to(dtype)
    coef, _ = batched(x.to(dtype), hot, MULTINOMIAL, l2, tolerance=TOLERANCE)
    for i in range(2):
        scaler = StandardScaler().fit(x[i].double())
        features = scaler.transform(x[i].double())
        oracle = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=1000, solver="newton-cholesky").fit(features, y)
        ours = coef[i].T.double().numpy() * scaler.scale_
        assert np.linalg.norm(ours - oracle.coef_) < 1e-3 * np.linalg.norm(oracle.coef_)


def chosen(x, y, tolerance):
    """The strengths that the inner folds of each outer fold choose at every site."""
    task = task_of(y)
    fold = make_folds(task, torch.arange(len(y)), 3, 0)
    targets = task.targets(task.truth)[:, None].to(x.dtype)
    inner = inner_folds(task, torch.arange(len(y)), fold, 0)
    plan = validate.Plan(task, targets, fold, inner, strengths(probe.L2), True, tolerance, tolerance)
    parts = [validate.validated(x[:, fold != f], targets[fold != f], inner[f], plan) for f in range(3)]
    return torch.stack([losses.argmin(1) for losses in parts])


def differing(x, y, tolerance):
    return int((chosen(x, y, tolerance) != chosen(x.double(), y, 1e-8)).sum())


@pytest.mark.parametrize(("examples", "dim", "sites"), [(400, 576, 2), (90, 30, 25), (60, 12, 25)])
def test_the_strength_is_what_converged_fits_choose(examples, dim, sites):
    assert not differing(*unequal(examples, dim, sites, seed=3), validate.INNER_TOLERANCE)


def test_loose_fits_choose_another_strength():
    """The control: weak strengths look better than they are where their fits stop on the way."""
    assert differing(*unequal(90, 30, 25, seed=3), 10.0)


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
        scores = statistics.class_scores(truth, right, torch.full((1, 200, 2), 0.5), weights, groups * 0)
        low, high = bootstrap.share_interval(scores["accuracy"], 0.95, len(of.unique()), 200)
        return float(high - low)

    assert width(groups) > 3 * width(torch.arange(200))


def mean_interval(values, groups, confidence=0.95, samples=2000, **options):
    weights = bootstrap.bootstrap_weights(groups, samples, torch.Generator().manual_seed(0))
    count = len(groups.unique())
    return bootstrap.interval(values @ weights.T / weights.sum(1), confidence, count, **options)


def test_the_interval_of_a_mean_is_students():
    values = drawn(3, 12) * torch.tensor([[1.0], [3.0], [0.1]]) + 2
    low, high = mean_interval(values, torch.arange(12))
    expected = t.interval(0.95, 11, values.mean(1), values.std(1) / 12**0.5)
    assert torch.allclose(low, torch.tensor(expected[0], dtype=low.dtype), rtol=0.05)
    assert torch.allclose(high, torch.tensor(expected[1], dtype=high.dtype), rtol=0.05)
    wide = mean_interval(values, torch.arange(12), inflation=2.25)
    assert torch.allclose(wide[1] - wide[0], 1.5 * (high - low))


@pytest.mark.parametrize("right", [0, 1, 6, 29, 30])
def test_the_interval_of_a_share_is_wilsons(right):
    correct, groups = (torch.arange(30) < right).float()[None], torch.arange(30)
    weights = bootstrap.bootstrap_weights(groups, 4000, torch.Generator().manual_seed(0))
    low, high = bootstrap.share_interval(correct @ weights.T / weights.sum(1), 0.95, 30, 30)
    z, share = t.ppf(0.975, 29), right / 30
    middle, reach = share + z**2 / 60, z * (share * (1 - share) / 30 + z**2 / 3600) ** 0.5
    expected = [(middle + sign * reach) / (1 + z**2 / 30) for sign in (-1, 1)]
    assert [low.item(), high.item()] == pytest.approx(expected, abs=0.015)
    assert 0 <= low.item() <= share <= high.item() <= 1


def test_groups_that_score_alike_count_once_each():
    weights = bootstrap.bootstrap_weights(torch.arange(200) // 20, 100, torch.Generator().manual_seed(0))
    (low,), (high,) = bootstrap.share_interval(torch.ones(1, 101), 0.95, 10, 200)
    assert high == 1 and low.item() == pytest.approx(1 / (1 + t.ppf(0.975, 9) ** 2 / 10), abs=1e-3)
    assert all(edge.isnan().all() for edge in bootstrap.share_interval(weights[:1, :1], 0.95, 10, 200))
    assert all(edge.isnan().all() for edge in bootstrap.interval(torch.ones(1, 20), 0.95, 1))


@pytest.mark.parametrize("per_group", [1, 4])
def test_intervals_hold_the_accuracy_on_new_examples(per_group):
    """In 240 made-up data sets; `benchmarks/coverage.py` measures how often on many more."""
    held = []
    for seed in range(6):
        made = torch.Generator().manual_seed(seed)
        groups = torch.arange(80) // per_group
        y = torch.randint(2, (80 // per_group,), generator=made)[groups]
        shared = torch.randn(80 // per_group, 40, 12, generator=made)[groups]
        x = (torch.randn(80, 40, 12, generator=made) + (shared if per_group > 1 else 0)) / (
            2 if per_group > 1 else 1
        ) ** 0.5
        x[..., 0] += (2 * y[:, None] - 1) * 0.8
        found = fit_probes(x, y, groups=groups, permutations=0, bootstrap=300, l2=(100.0, 10.0), seed=seed)
        weight, start = found.coef[..., 0], found.intercept[:, 0]
        along, length = 0.8 * weight[:, 0], weight.norm(dim=1)
        accuracy = (torch.special.ndtr((along + start) / length) + torch.special.ndtr((along - start) / length)) / 2
        held.append((found.low[0] <= accuracy) & (accuracy <= found.high[0]))
    assert 0.88 <= torch.stack(held).float().mean() <= 0.995


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


def lonely(folds=5, most=7):
    """Groups of which no two in a fold have one size, each of one label."""
    groups = torch.arange(folds * most).repeat_interleave(torch.arange(1, most + 1).repeat(folds))
    fold = torch.arange(folds).repeat_interleave(most)[groups]
    return groups, fold, torch.randperm(folds * most, generator=torch.Generator().manual_seed(0)) % 2


def test_a_perfect_probe_is_found_where_no_two_groups_have_one_size():
    groups, fold, label = lonely()
    y = label[groups].float()[:, None]
    x = drawn(2, len(groups), 4)
    x[0, :, 0] += 20 * y[:, 0]
    orders = statistics.exchanges(fold, groups, 199, torch.Generator().manual_seed(0), y)
    assert (orders[0] == torch.arange(len(groups))).all() and (fold[orders] == fold).all()
    p = p_values(x, y, fold, groups, orders)
    assert p[0] <= 0.05 < p[1]
    assert all(len(torch.stack([groups, y[order, 0].long()]).unique(dim=1).T) == 35 for order in orders)
    by_size = statistics.exchanges(fold, groups, 199, torch.Generator().manual_seed(0))
    assert p_values(x, y, fold, groups, by_size)[0] == 1  # those of one size alone cannot tell


def test_p_values_of_groups_of_many_sizes_are_uniform():
    groups, fold, label = lonely(most=5)
    y = label[groups].float()[:, None]
    own = drawn(400, 25, 5)[:, groups]  # a group looks alike
    orders = statistics.exchanges(fold, groups, 99, torch.Generator().manual_seed(0), y)
    p = p_values(own + 0.3 * drawn(400, len(groups), 5, seed=1), y, fold, groups, orders)
    assert (p <= 0.05).sum() < binom.ppf(0.999, 400, 0.05)
    assert (p_values(own, y, fold, torch.arange(len(y))) <= 0.05).sum() > binom.ppf(0.999, 400, 0.05)


@pytest.mark.parametrize("per_fold", [1, 4])
def test_labels_move_between_folds_that_are_single_groups(per_fold):
    groups = torch.arange(20 * per_fold) // per_fold
    y = (groups % 2).float()[:, None]
    x = drawn(2, len(groups), 3)
    x[0, :, 0] += 20 * y[:, 0]
    orders = statistics.exchanges(groups, groups, 199, torch.Generator().manual_seed(0), y)
    p = p_values(x, y, groups, groups, orders)
    assert p[0] <= 0.05 < p[1]


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
