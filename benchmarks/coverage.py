"""How often intervals of probes hold what they say they do: `python benchmarks/coverage.py`.

Data sets are drawn from two normal distributions, one for each class. In each a probe is fitted as by default (five
folds, L2 by inner folds, 95% intervals), and counts as held if the interval of its accuracy has the accuracy that the
probe, fitted to all examples, has on 20,000 new ones. Besides, what other intervals would hold is told: the quantiles
of the bootstrap, and Wilson's without the factor for what training sets share.

With groups, half of the variance of every feature is the group's own. Labels are those of the group, or differ within
it. "left out" has groups that the fit is not told of, which no interval can make up for.
"""

import argparse
import json
import math
import platform
from pathlib import Path

import torch

import lvlm_interp as li
from lvlm_interp.bootstrap import bootstrap_weights, share_interval
from lvlm_interp.errors import InputError

NEW = 20_000
GROUPS = ("none", "one label", "several labels", "left out")
APART = (0.7, 1.0, 2.0)  # how far the classes' middles are from 0, in standard deviations
PER_GROUP = 4  # examples of a group, on average
SITES = 20  # data sets that share labels and folds, and are fitted together


def drawn(n: int, dim: int, groups: str, apart: float, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Features `[example, site, dim]`, labels, groups."""
    count = n if groups == "none" else max(n // PER_GROUP, 12)
    group = torch.arange(n) if groups == "none" else torch.randint(count, (n,), generator=generator)
    group = group.unique(return_inverse=True)[1]
    several = groups == "several labels"
    label = torch.randint(2, (n if several else count,), generator=generator)
    label = label if several else label[group]
    own = torch.randn(n, SITES, dim, generator=generator)
    shared = torch.randn(count, SITES, dim, generator=generator)[group]
    x = own if groups == "none" else (own + shared) / math.sqrt(2)
    x[..., 0] += apart * (2 * label[:, None] - 1)
    return x, label, group


def accuracy(found: li.ProbeResult, apart: float, generator: torch.Generator) -> torch.Tensor:
    """Of every site's probe on new examples."""
    label = torch.randint(2, (NEW,), generator=generator)
    new = torch.randn(NEW, found.coef.shape[1], generator=generator)
    new[:, 0] += apart * (2 * label - 1)
    return (((new @ found.coef[..., 0].T + found.intercept[:, 0]) > 0) == label[:, None]).float().mean(0)


def others(
    found: li.ProbeResult, told: torch.Tensor, generator: torch.Generator
) -> dict[str, tuple[torch.Tensor, ...]]:
    """Intervals that are not ours."""
    weights = bootstrap_weights(told, 1000, generator)
    correct = ((found.margins[..., 0] > 0) == found.truth).float()
    scores = correct @ weights.T / weights.sum(1)
    low, high = scores[:, 1:].quantile(torch.tensor([0.025, 0.975]), 1)
    plain = share_interval(scores, 0.95, int(told.max()) + 1, len(told))
    return {"quantiles": (low, high), "without the factor": plain}


def measured(n: int, dim: int, groups: str, apart: float, runs: int, seed: int) -> dict[str, float] | None:
    """The share of data sets that are held, of one kind."""
    held: dict[str, list[torch.Tensor]] = {}
    width, error, reached, refused = [], [], [], 0
    for run in range(runs):
        generator = torch.Generator().manual_seed(seed + run)
        x, label, group = drawn(n, dim, groups, apart, generator)
        told = torch.arange(n) if groups == "left out" else group
        try:
            found = li.fit_probes(x, label, groups=told, permutations=0, seed=run)
        except InputError:  # too few groups of a class for five folds
            refused += 1
            continue
        true = accuracy(found, apart, generator)
        edges = {"interval": (found.low[0], found.high[0]), **others(found, told, generator)}
        for name, (low, high) in edges.items():
            held.setdefault(name, []).append((low <= true) & (true <= high))
        width.append(found.high[0] - found.low[0])
        error.append(found.values[0] - true)
        reached.append(true)
    if not width:
        return None
    told_of = {name: round(float(torch.cat(some).float().mean()), 3) for name, some in held.items()}
    bias, size, mean = (round(float(torch.cat(some).mean()), 3) for some in (error, width, reached))
    return {
        **told_of,
        "accuracy": mean,
        "bias": bias,
        "width": size,
        "data sets": SITES * len(width),
        "refused": refused,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help=f"of {SITES} data sets each")
    parser.add_argument("--examples", type=int, nargs="+", default=[30, 100, 300])
    parser.add_argument("--dim", type=int, nargs="+", default=[10, 64, 256])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    options = parser.parse_args()
    cases = []
    for n in options.examples:
        for dim in options.dim:
            for groups in GROUPS:
                for apart in APART:
                    found = measured(n, dim, groups, apart, options.runs, options.seed)
                    if found is not None:
                        cases.append({"examples": n, "dim": dim, "groups": groups, "apart": apart, **found})
                        print(json.dumps(cases[-1]), flush=True)
    report = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seed": options.seed,
        "new examples": NEW,
        "standard error of a share": round(math.sqrt(0.95 * 0.05 / (SITES * options.runs)), 4),
        "means": {groups: _mean(cases, groups) for groups in GROUPS},
        "cases": cases,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "cases"}, indent=2))


def _mean(cases: list[dict], groups: str) -> dict[str, float]:
    some = [case for case in cases if case["groups"] == groups]
    names = ("interval", "quantiles", "without the factor") if some else ()
    means = {name: round(sum(case[name] for case in some) / len(some), 3) for name in names}
    return {
        **means,
        **({f"{f.__name__} interval": f(case["interval"] for case in some) for f in (min, max)} if some else {}),
    }


if __name__ == "__main__":
    main()
