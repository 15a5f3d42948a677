"""What can be read off the reference model, layer by layer and head by head: `python benchmarks/levels.py`.

Probes for three levels at which a model may go wrong about a picture: object (is it there, what is it), attribute
(its colour), relation (where it is to the other); and from a word of the answer to (x, y) of what it names. All scores
are of held-out examples, on scenes that the model was not trained on. A level counts as decodable from the first layer
on whose interval stays above what the majority gets, with q <= 0.05; where it gets half way to its best says more.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from _features import WORDS, examples, features
from matplotlib.figure import Figure

import lvlm_interp as li
from lvlm_interp.probes.probe import L2
from lvlm_interp.reference.questions import LEVELS
from lvlm_interp.report import figures

HEADS_L2 = 100.0  # for heads, which are many and narrow, one strength; for layers it is chosen in inner folds


def probed(vlm: li.HookedVLM, level: str, count: int, folder: Path | None) -> dict[str, li.ProbeResult]:
    """Results for layers and for heads."""
    asked = examples(level, count)
    labels = [e.centre if level == WORDS else e.label for e in asked]
    types = None if level == WORDS else [e.type for e in asked]
    found = {}
    for name, some in features(vlm, level, count, folder).items():
        found[name] = li.fit_probes(
            some.by_head,
            labels,
            groups=[e.group for e in asked],
            types=types,
            bootstrap=1000 if name == "layers" else 200,
            l2=L2 if name == "layers" else HEADS_L2,
            sites=some.sites,
            permutations=1000 if name == "layers" else 3000,
            vlm=vlm,
            progress=True,
        )
    return found


def by_layer(found: li.ProbeResult) -> dict[str, Any]:
    """Every metric of every layer with its interval, selectivity, and where the level becomes decodable."""
    first, floor = found.metrics[0], float(found.baseline[0])
    above = (found.low[0] > floor) & found.significant
    decodable = next((i for i in range(len(above)) if above[i:].all()), None)
    best = int(found.values[0].argmax())
    return {
        "baseline": dict(zip(found.metrics, rounded(found.baseline), strict=True)),
        "decodable from block": decodable,
        "half way to the best from block": half_way(found.values[0].tolist(), floor),
        "best block": best,
        f"best {first}": rounded(torch.stack([found.values[0, best], found.low[0, best], found.high[0, best]])),
        first: rounded(found.values[0]),
        "selectivity": rounded(found.selectivity),
        **{name: rounded(found.values[i]) for i, name in enumerate(found.metrics) if i},
    }


def half_way(scores: list[float], floor: float) -> int:
    """The first block from which on scores stay above the middle between guessing and the best."""
    middle = (floor + max(scores)) / 2
    return next(i for i in range(len(scores)) if min(scores[i:]) > middle)


def by_head(found: li.ProbeResult) -> dict[str, Any]:
    order = found.values[0].argsort(descending=True)[:5].tolist()
    return {
        "significant": int(found.significant.sum()),
        "heads": len(found.sites),
        "best": {found.sites[i]: rounded(found.values[:1, i])[0] for i in order},
    }


def rounded(values: torch.Tensor) -> list[float]:
    return [round(v, 4) for v in values.tolist()]


def draw(results: dict[str, dict[str, li.ProbeResult]], path: Path) -> None:
    """Decodability by layer × head, a map for each level."""
    levels = [level for level in results if level != WORDS]
    figure = Figure(figsize=(4.2 * len(levels), 5.2), layout="constrained", dpi=120)
    for ax, level in zip(figure.subplots(1, len(levels), squeeze=False)[0], levels, strict=True):
        figures.probe_map(results[level]["heads"], ax=ax, title=level)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--levels", nargs="+", choices=[*LEVELS, WORDS], default=[*LEVELS, WORDS])
    parser.add_argument("--features", type=Path, help="a folder that keeps features from run to run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "levels.json")
    parser.add_argument("--figure", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "levels.png")
    options = parser.parse_args()
    vlm, results = li.load("reference"), {}
    report: dict[str, Any] = {"examples": options.examples, "weights": vlm.fingerprint, "levels": {}}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for level in options.levels:
        results[level] = probed(vlm, level, options.examples, options.features)
        found = by_layer(results[level]["layers"])
        report["levels"][level] = {"layers": found, "heads": by_head(results[level]["heads"])}
        options.out.write_text(json.dumps(report, indent=2) + "\n")
        print(level, {k: v for k, v in found.items() if not isinstance(v, list) or len(v) < 5})
    draw(results, options.figure)


if __name__ == "__main__":
    main()
