"""Write into `docs/heatmaps.md` what `benchmarks/heatmaps.py --out benchmarks/results/heatmaps.json` measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marked import replaced, table

ROOT = Path(__file__).resolve().parents[1]
Measures = Mapping[str, Mapping[str, float]]
PLAUSIBLE = {
    "points": "points at the object",
    "energy": "energy in its box",
    "exact shapley": "rank of 8 regions as exact Shapley",
    "exact joint": "… as joint effects with the question",
    "weights": "rank after weights are shuffled",
    "cost": "plain passes",
}
SUBSTRATES = {"tokens": "tokens", "mean": "mean colour", "blur": "blurred", "road": "road"}


def cell(found: Measures, name: str) -> str:
    """A mean with its 95% interval."""
    if name not in found:
        return "–"
    one = found[name]
    return f"{one['mean']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"


def of_methods(methods: Mapping[str, Measures], columns: Mapping[str, str]) -> str:
    rows = [[name, *(cell(found, column) for column in columns)] for name, found in methods.items()]
    return table(["map", *columns.values()], rows)


def curves(methods: Mapping[str, Measures]) -> str:
    """Areas less those of random orders, in nats, by what stands for what is not seen."""
    kinds = [(kind, name) for name in SUBSTRATES for kind in ("insertion", "deletion")]
    return of_methods(methods, {f"{kind} {name}": f"{kind}, {SUBSTRATES[name]}" for kind, name in kinds})


def scenes(methods: Mapping[str, Measures], column: str) -> int:
    """Of how many scenes a measure is."""
    return max((int(found[column]["scenes"]) for found in methods.values() if column in found), default=0)


def page(found: Mapping[str, Any]) -> Sequence[str]:
    methods = found["methods"]
    about = (
        f"{found['scenes']} held-out scenes, weights `{found['weights']}`; means with 95% intervals. Curves of pixels: "
        f"{scenes(methods, 'insertion mean')} scenes; shuffled weights: {scenes(methods, 'weights')}."
    )
    areas = "Areas under the curves less those of random orders, in nats: insertion is good above 0, deletion below."
    return about, of_methods(methods, PLAUSIBLE), areas, curves(methods)


def main() -> None:
    path, found = ROOT / "docs" / "heatmaps.md", json.loads((ROOT / "benchmarks/results/heatmaps.json").read_text())
    path.write_text(replaced(path.read_text(), "measured", "\n\n".join(page(found))))


if __name__ == "__main__":
    main()
