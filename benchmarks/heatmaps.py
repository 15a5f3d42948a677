"""Which heatmap to trust: `python benchmarks/heatmaps.py --out benchmarks/results/heatmaps.json`.

What was measured of these weights is kept as a table, a row for each scene and method, and is not measured again: a run
that was stopped goes on, here or elsewhere.

Held-out scenes with a recoloured object whose colour the model names: where it is seen is known, and that it is seen is
what decides. Every method makes a map of that word, and each is measured: whether it lies on the object (pointing game,
energy in the box), whether the word follows when six regions come and go in its order (as tokens on every scene; as
pixels on the first of them, since each set is then a pass of the whole model), how it ranks them beside their exact
Shapley values, whether it changes with the weights, and what it costs in plain passes of the same process.
"""

import argparse
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from attribution import correct_answers
from tqdm.auto import tqdm

import lvlm_interp as li
from lvlm_interp.bootstrap import bootstrap_weights, interval
from lvlm_interp.heatmaps.sanity import ranks_alike, shuffled

AT_ONCE, SEEDS_EACH = 2, 400  # scenes of one task, and seeds that it may draw them from
ORDERS, SETS = 10, 16  # random orders, and sets, of the curves
SUBSTRATES = ("tokens", "mean", "blur", "road")  # what stands for what is not seen
ABOUT = ("weights", "seed", "question", "method")  # what a row is of
KEPT = Path(__file__).parent / "results" / "heatmaps.csv"
METHODS: dict[str, dict[str, Any]] = {
    "occlusion": {},
    "occlusion of pixels": {"substrate": "mean", "regions": 4},
    "shapley": {"regions": 4, "pairs": 4},
    "banzhaf": {"samples": 32},
    "rise": {"samples": 32},
    "greedy": {"regions": 3, "scope": 3},
    "gradient": {},
    "grad_x_input": {},
    "grad_x_input by pixels": {"by": "pixels"},
    "integrated_gradients": {"steps": 5},
    "attention": {},
    "attention without sinks": {"drop_sinks": True},
    "relative_attention": {},
    "rollout": {},
    "relevance": {},
    "localization_heads": {},
    "direct": {},
    "lens": {},
    "tam": {},
}
"""What is measured, by the name in the table; the first word is the method's."""


class Task(NamedTuple):
    """Some scenes, from a first seed on, and what is measured of them."""

    first: int
    pixels: bool
    weights: bool


@functools.cache
def opened() -> li.HookedVLM:
    """The model, opened once in each worker; two workers of one thread do more than one of two."""
    torch.set_num_threads(1)
    return li.load("reference")


def mapped(vlm: li.HookedVLM, x: li.Inputs, name: str) -> li.PatchMap:
    """One method's map of the colour."""
    return li.attribute(vlm, x, name.split()[0], unit="answer", **METHODS[name])


def seconds(run: Callable[[], object], times: int) -> float:
    """The median of several calls, of this process's one thread: others may share the machine."""
    found = []
    for _ in range(times):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return statistics.median(found)


def measured(vlm: li.HookedVLM, x: li.Inputs, box: Any, task: Task) -> list[dict[str, Any]]:
    """A row for each method, the prior among them, of one scene."""
    maps, costs = {}, {}
    plain = seconds(lambda: vlm.run(x), 5)
    for name in METHODS:
        start = time.process_time()
        maps[name] = mapped(vlm, x, name)
        costs[name] = time.process_time() - start
    rows: dict[str, dict[str, Any]] = {name: {"cost": costs[name] / plain, "seconds": costs[name]} for name in maps}
    for name, one in maps.items():
        boxed = li.located(one, box)
        rows[name] |= {"points": boxed.points, "energy": boxed.energy, "precision": boxed.average_precision}
    settings: Any = {"substrates": SUBSTRATES if task.pixels else "tokens", "orders": ORDERS, "sets": SETS}
    found = li.faithfulness(vlm, x, maps, unit="answer", regions=_sixths(x), **settings)
    for number, name in enumerate(found.maps):
        rows.setdefault(name, {}).update(_followed(found, number))
    exact = li.interactions(vlm, x, (), regions=_sixths(x), target=0, unit="answer").scored(maps)
    for one in exact.to_dict("records"):
        rows[one["map"]] |= {f"exact {k}": v for k, v in one.items() if isinstance(v, float)}
    if task.weights:
        with shuffled(vlm, len(vlm.blocks), 0):
            for name in maps:
                rows[name]["weights"] = float(ranks_alike(maps[name], mapped(vlm, x, name))[0])
    return [{"method": name, **row} for name, row in rows.items()]


def _followed(found: li.Faithfulness, number: int) -> dict[str, float]:
    """Areas less those of random orders, by substrate, and the sensitivity."""
    row = {}
    for s, substrate in enumerate(found.substrates):
        inserted = found.insertion_area[number, s] - found.random_insertion[:, s].mean()
        deleted = found.deletion_area[number, s] - found.random_deletion[:, s].mean()
        row |= {f"insertion {substrate}": float(inserted), f"deletion {substrate}": float(deleted)}
        row[f"sensitivity {substrate}"] = float(found.sensitivity[number, s])
    return row


def _sixths(x: li.Inputs) -> torch.Tensor:
    """Six regions of the grid, two rows of three."""
    rows, columns = x.images[0].cells.shape
    row, column = torch.arange(rows) * 2 // rows, torch.arange(columns) * 3 // columns
    return row[:, None] * 3 + column


def _some(task: Task) -> list[dict[str, Any]]:
    """Some scenes measured: a row for each method of each."""
    vlm, rows = opened(), []
    for x, item in correct_answers(vlm, AT_ONCE, task.first):
        found = measured(vlm, x, item.box, task)
        rows += [{"seed": task.first, "question": x.question, **row} for row in found]
    return rows


def kept_of(path: Path, weights: str) -> pd.DataFrame:
    """The rows of these weights that were measured already."""
    if not path.exists():
        return pd.DataFrame({"weights": [], "seed": []})
    frame = pd.read_csv(path)
    return frame[frame["weights"] == weights]


def keep(frame: pd.DataFrame, path: Path) -> None:
    """Written whole, or left as it was."""
    partial = path.with_suffix(".partial")
    frame.to_csv(partial, index=False, float_format="%.4g")
    partial.replace(path)


def measured_of(tasks: Sequence[Task], weights: str, path: Path, workers: int) -> pd.DataFrame:
    """The rows of all tasks; those of each are kept as soon as they are there."""
    frame = kept_of(path, weights)
    left = [task for task in tasks if task.first not in set(frame["seed"])]
    with get_context("spawn").Pool(workers) as pool:
        for rows in tqdm(pool.imap_unordered(_some, left), total=len(left), desc=f"{AT_ONCE} scenes each"):
            frame = pd.concat([frame, pd.DataFrame(rows).assign(weights=weights)], ignore_index=True)
            keep(frame, path)
    return frame


def summary(frame: pd.DataFrame) -> dict[str, Any]:
    """Of each method and measure, the mean over scenes with its 95% interval, and over how many."""
    told: dict[str, Any] = {}
    for name, rows in frame.groupby("method", sort=False):
        numbers = [column for column in rows.columns if column not in ABOUT and rows[column].notna().any()]
        told[str(name)] = {column: mean_of(torch.tensor(rows[column].dropna().to_numpy())) for column in numbers}
    return told


def mean_of(values: torch.Tensor) -> dict[str, float]:
    """With its 95% interval, and of how many."""
    values = values.double()
    drawn = bootstrap_weights(torch.arange(len(values)), 1000, torch.Generator().manual_seed(0)).double()
    low, high = interval((drawn @ values / drawn.sum(1))[None], 0.95, len(values))
    shown = {"mean": float(values.mean()), "low": float(low[0]), "high": float(high[0])}
    return {**{k: round(v, 4) for k, v in shown.items()}, "scenes": len(values)}


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Which heatmap to trust.")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--pixels", type=int, default=16, help="scenes whose pixels are changed as well")
    parser.add_argument("--weights", type=int, default=16, help="scenes whose maps are made of shuffled weights too")
    parser.add_argument("--seed", type=int, default=20_000, help="first scene; training never used these")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--kept", type=Path, default=KEPT, help="table of what is measured already")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    options = parser.parse_args(None if arguments is None else list(arguments))
    weights = opened().fingerprint
    tasks = [
        Task(options.seed + SEEDS_EACH * n, done < options.pixels, done < options.weights)
        for n, done in enumerate(range(0, options.scenes, AT_ONCE))
    ]
    frame = measured_of(tasks, weights, options.kept, options.workers)
    about = {"processor": platform.processor() or platform.machine(), "weights": weights, "seed": options.seed}
    text = json.dumps(
        {**about, "scenes": int(frame.groupby("method").size().max()), "methods": summary(frame)}, indent=2
    )
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
