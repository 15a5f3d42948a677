"""Which heatmap to trust: `python benchmarks/heatmaps.py --kept FOLDER`, which goes on where it was stopped.

Held-out scenes with a recoloured object whose colour the model names: where it is seen is known, and that it is seen is
what decides. Every method makes a map of that word, and each is measured: whether it lies on the object (pointing game,
energy in the box), whether the word follows when patches come and go in its order (tokens on every scene; pixels of
fewer and larger regions on the first of them, since each set is a pass of the whole model), how it ranks regions beside
their exact Shapley values, whether it changes with the weights, and what it costs in plain passes of the same process.
"""

import argparse
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
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

AT_ONCE, SEEDS_EACH = 5, 1000  # scenes of one task, and seeds that it may draw them from
ORDERS, SETS = 20, 32  # random orders, and sets, of the curves
BLOCKS = {"tokens": 4, "mean": 3, "blur": 3, "road": 3}  # regions along a side, by what stands for what is not seen
PLAYERS = ("question",)
METHODS: dict[str, dict[str, Any]] = {
    "occlusion": {},
    "occlusion of pixels": {"substrate": "mean", "regions": 4},
    "shapley": {"regions": 4, "pairs": 4},
    "banzhaf": {"samples": 128},
    "rise": {"samples": 128},
    "greedy": {"regions": 4, "scope": 4},
    "gradient": {},
    "grad_x_input": {},
    "grad_x_input by pixels": {"by": "pixels"},
    "integrated_gradients": {"steps": 8},
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
    """Some scenes, and what is measured of them."""

    first: int
    pixels: bool
    weights: bool
    path: Path


@functools.cache
def _opened() -> li.HookedVLM:
    """The model, opened once in each worker; two workers of one thread do more than one of two."""
    torch.set_num_threads(1)
    return li.load("reference")


def mapped(vlm: li.HookedVLM, x: li.Inputs, name: str) -> li.PatchMap:
    """One method's map of the colour."""
    return li.attribute(vlm, x, name.split()[0], unit="answer", **METHODS[name])


def seconds(run: Callable[[], object], times: int) -> float:
    """The median of several calls."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def measured(vlm: li.HookedVLM, x: li.Inputs, box: Any, task: Task) -> list[dict[str, Any]]:
    """A row for each method, the prior among them, of one scene."""
    maps, costs = {}, {}
    plain = seconds(lambda: vlm.run(x), 5)
    for name in METHODS:
        start = time.perf_counter()
        maps[name] = mapped(vlm, x, name)
        costs[name] = (time.perf_counter() - start) / plain
    rows: dict[str, dict[str, Any]] = {name: {"cost": costs[name]} for name in maps}
    for name, one in maps.items():
        boxed = li.located(one, box)
        rows[name] |= {"points": boxed.points, "energy": boxed.energy, "precision": boxed.average_precision}
    for substrate in BLOCKS if task.pixels else ["tokens"]:
        settings: Any = {"substrates": substrate, "regions": BLOCKS[substrate], "orders": ORDERS, "sets": SETS}
        found = li.faithfulness(vlm, x, maps, unit="answer", **settings)
        for number, name in enumerate(found.maps):
            rows.setdefault(name, {}).update(_followed(found, number))
    exact = li.interactions(vlm, x, PLAYERS, regions=_eighths(x), target=0, unit="answer").scored(maps)
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


def _eighths(x: li.Inputs) -> torch.Tensor:
    """Eight regions of the grid, two rows of four."""
    rows, columns = x.images[0].cells.shape
    row, column = torch.arange(rows) * 2 // rows, torch.arange(columns) * 4 // columns
    return row[:, None] * 4 + column


def _some(task: Task) -> Path:
    """Measure some scenes, unless they are; returns where their rows are kept."""
    if not task.path.exists():
        vlm, rows = _opened(), []
        for x, item in correct_answers(vlm, AT_ONCE, task.first):
            rows += [{"scene": f"{task.first} {x.question}", **row} for row in measured(vlm, x, item.box, task)]
        partial = task.path.with_suffix(".partial")
        pd.DataFrame(rows).to_json(partial, orient="records")
        partial.rename(task.path)
    return task.path


def summary(frame: pd.DataFrame) -> dict[str, Any]:
    """Of each method and measure, the mean over scenes with its 95% interval, and over how many."""
    told: dict[str, Any] = {}
    for name, rows in frame.groupby("method", sort=False):
        told[str(name)] = {
            m: mean_of(torch.tensor(rows[m].dropna().to_numpy())) for m in rows.columns[2:] if rows[m].notna().any()
        }
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
    parser.add_argument("--pixels", type=int, default=40, help="scenes whose pixels are changed as well")
    parser.add_argument("--weights", type=int, default=100, help="scenes whose maps are made of shuffled weights too")
    parser.add_argument("--seed", type=int, default=20_000, help="first scene; training never used these")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--kept", type=Path, default=Path("heatmap-parts"), help="folder of what is done")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    options = parser.parse_args(None if arguments is None else list(arguments))
    vlm = _opened()
    folder = options.kept / vlm.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        Task(options.seed + SEEDS_EACH * n, done < options.pixels, done < options.weights, folder / f"{n}.json")
        for n, done in enumerate(range(0, options.scenes, AT_ONCE))
    ]
    with get_context("spawn").Pool(options.workers) as pool:
        paths = list(tqdm(pool.imap(_some, tasks), total=len(tasks), desc=f"{AT_ONCE} scenes each"))
    frame = pd.concat([pd.read_json(path) for path in paths], ignore_index=True)
    about = {"processor": platform.processor() or platform.machine(), "weights": vlm.fingerprint, "seed": options.seed}
    text = json.dumps({**about, "scenes": int(frame["scene"].nunique()), "methods": summary(frame)}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
