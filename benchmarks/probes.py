"""Probes at every head and layer against a loop of scikit-learn's: `python benchmarks/probes.py`.

The features are the reference model's: z of every head and the residual stream after every layer, at the last token of
the prompt, over scenes that it was not trained on. Both fit the same standardised features, in the same process, with
the same L2. Ours stops where coefficients are within a share of their length of the minimum, scikit-learn's where no
component of the gradient of the mean loss is larger than its tolerance; how far their coefficients are apart is told.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import sklearn
import torch
from _features import examples, features
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import lvlm_interp as li
from lvlm_interp.probes.fit import TOLERANCE, Problem, Space, solve
from lvlm_interp.probes.probe import BLOCK
from lvlm_interp.probes.task import task_of
from lvlm_interp.reference.questions import LEVELS


def ours(x: torch.Tensor, labels: list[str], l2: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients on standardised features, predictions, seconds."""
    start = time.perf_counter()
    task = task_of(labels)
    found = []
    for some in x.transpose(0, 1).split(max(1, BLOCK // (4 * len(x) * x.shape[2]))):
        space = Space.of(some)
        problem = Problem(space.enter(some), task.targets(task.truth)[:, None], task.likelihood)
        weights = solve(problem, torch.full((len(some),), l2))
        predicted = task.predicted(problem.margins(weights)[:, :, 0])
        coef, _ = space.leave(weights)
        found.append((coef[:, :, 0] * space.scale.mT, predicted))
    coefs, predictions = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return coefs.swapaxes(1, 2), predictions, time.perf_counter() - start


def theirs(x: torch.Tensor, labels: list[str], l2: float, tolerance: float) -> tuple[np.ndarray, np.ndarray, float]:
    start = time.perf_counter()
    numbers = np.unique(labels, return_inverse=True)[1]
    found = []
    for site in x.transpose(0, 1).numpy():
        features = StandardScaler().fit_transform(site)
        fitted = LogisticRegression(C=1 / l2, tol=tolerance, max_iter=10_000).fit(features, numbers)
        found.append((fitted.coef_, fitted.predict(features)))
    coefs, predictions = (np.stack(parts) for parts in zip(*found, strict=True))
    return coefs, predictions, time.perf_counter() - start


def varying(x: torch.Tensor) -> torch.Tensor:
    """Which sites have features beyond float32's rounding: a head that reads one token alone writes a constant."""
    spread = x.double().std(0) / x.double().mean(0).abs()
    return spread.median(-1).values > 4 * torch.finfo(torch.float32).eps


def compared(x: torch.Tensor, labels: list[str], l2: float, tolerance: float) -> dict[str, float]:
    alive = varying(x)
    x = x[:, alive]
    numbers = np.unique(labels, return_inverse=True)[1]
    a_coef, a_said, a_seconds = ours(x, labels, l2)
    b_coef, b_said, b_seconds = theirs(x, labels, l2, tolerance)
    distance = np.linalg.norm(a_coef - b_coef, axis=(1, 2)) / np.linalg.norm(b_coef, axis=(1, 2))
    points = 100 * np.abs((a_said == numbers).mean(1) - (b_said == numbers).mean(1))
    return {
        "sites": x.shape[1],
        "sites left out, constant to rounding": int((~alive).sum()),
        "dim": x.shape[2],
        "seconds": round(a_seconds, 3),
        "seconds of the loop": round(b_seconds, 3),
        "times faster": round(b_seconds / a_seconds, 2),
        "largest difference of a coefficient": float(f"{np.abs(a_coef - b_coef).max():.3g}"),
        "largest coefficient": float(f"{np.abs(b_coef).max():.3g}"),
        "largest relative distance of coefficients": float(f"{distance.max():.3g}"),
        "largest difference of accuracy, points": round(float(points.max()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--level", choices=LEVELS, default="attribute")
    parser.add_argument("--l2", type=float, default=100.0)
    parser.add_argument("--tolerance", type=float, default=1e-5, help="scikit-learn's")
    parser.add_argument("--features", type=Path, help="a folder that keeps features from run to run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "probes.json")
    options = parser.parse_args()
    found = features(li.load("reference"), options.level, options.examples, options.features)
    labels = [example.label for example in examples(options.level, options.examples)]
    report = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "sklearn": sklearn.__version__},
        "threads": torch.get_num_threads(),
        "examples": options.examples,
        "level": options.level,
        "l2": options.l2,
        "tolerance": {"ours, share": TOLERANCE, "theirs, gradient": options.tolerance},
        **{name: compared(some.values, labels, options.l2, options.tolerance) for name, some in found.items()},
    }
    loop, own = (sum(report[name][key] for name in found) for key in ("seconds of the loop", "seconds"))
    report["all sites, times faster"] = round(loop / own, 2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
