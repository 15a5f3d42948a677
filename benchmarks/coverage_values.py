"""How often intervals of R² hold what they say they do: `python benchmarks/coverage_values.py`.

As `coverage.py`, for values that ridge regression predicts: one feature is the value and as much noise, the others are
noise. An interval counts as held if it has the R² that the kept probe has on 20,000 new examples. The score is of
probes that were fitted to four fifths of the examples: by how much they are worse stands beside it.
"""

import argparse
import json
import math
import platform
from pathlib import Path

import torch

import lvlm_interp as li

NEW = 20_000
CASES = ((30, 8), (60, 8), (100, 8), (100, 64), (300, 8), (300, 64))  # examples, features
SITES = 5  # data sets that share values and folds, and are fitted together


def drawn(n: int, sites: int, dim: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Features `[example, site, dim]`, and values."""
    values = torch.randn(n, generator=generator)
    x = torch.randn(n, sites, dim, generator=generator)
    x[..., 0] += values[:, None]
    return x, values


def measured(n: int, dim: int, runs: int, seed: int) -> dict[str, float]:
    """The share of data sets that are held, of one kind."""
    held, error = [], []
    for run in range(runs):
        generator = torch.Generator().manual_seed(seed + run)
        x, values = drawn(n, SITES, dim, generator)
        found = li.fit_probes(x, values, permutations=0, seed=run)
        new, told = drawn(NEW, 1, dim, generator)
        missed = told[:, None] - (new[:, 0] @ found.coef[..., 0].T + found.intercept[:, 0])
        true = 1 - missed.square().mean(0) / told.var(unbiased=False)
        place = found.metrics.index("r2")
        held.append((found.low[place] <= true) & (true <= found.high[place]))
        error.append(found.values[place] - true)
    share, bias = (float(torch.cat(some).double().mean()) for some in (held, error))
    return {"examples": n, "dim": dim, "interval": round(share, 3), "score less the true one": round(bias, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=80, help=f"of {SITES} data sets each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage-values.json")
    options = parser.parse_args()
    report = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seed": options.seed,
        "data sets of each": SITES * options.runs,
        "standard error, of draws of values": round(math.sqrt(0.95 * 0.05 / options.runs), 4),
        "cases": [measured(n, dim, options.runs, options.seed) for n, dim in CASES],
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
