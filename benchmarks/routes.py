"""By which route does a colour get into the answer? `python benchmarks/routes.py --out benchmarks/results/routes.json`

Held-out scenes with a recoloured object whose colour the model names. Routes from the object, from the rest of the
image and from the question are cut in windows of layers, beside cuts of as many other keys, and of keys that are read
as much. Examples are kept in a table, some at a time, and a run that was stopped goes on.
"""

import argparse
import json
import platform
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from attribution import correct_answers
from heatmaps import SEEDS_EACH, keep, kept_of, opened
from tqdm.auto import tqdm

import lvlm_interp as li
from lvlm_interp.bootstrap import bootstrap_weights, interval

AT_ONCE = 5
WIDTH, EVERY = 9, 3  # layers of a window, and how many layers its middle goes on
CELL = ["route", "kind", "layer"]
KEPT = Path(__file__).parent / "results" / "routes.csv"


def some(first: int) -> list[dict[str, object]]:
    """The cells of some examples: their mean, and how many it is of."""
    vlm = opened()
    found = list(correct_answers(vlm, AT_ONCE, first))
    examples, boxes = [x for x, _ in found], [item.box for _, item in found]
    layers = range(0, vlm.depth, EVERY)
    routes = li.attention_routes(vlm, examples, boxes, widths=[WIDTH], layers=layers, samples=2, unit="answer")
    frame = routes.to_frame()[[*CELL, "change", "counts"]]
    return frame.assign(seed=first, untouched=routes.untouched).to_dict("records")


def measured(count: int, seed: int, weights: str, path: Path, workers: int) -> pd.DataFrame:
    """All that are wanted; what was there is not measured again."""
    frame = kept_of(path, weights)
    tasks = [seed + SEEDS_EACH * AT_ONCE * n for n in range(-(-count // AT_ONCE))]
    left = [first for first in tasks if first not in set(frame["seed"])]
    with get_context("spawn").Pool(workers) as pool:
        for rows in tqdm(pool.imap_unordered(some, left), total=len(left), desc=f"{AT_ONCE} examples each"):
            frame = pd.concat([frame, pd.DataFrame(rows).assign(weights=weights)], ignore_index=True)
            keep(frame, path)
    return frame


def summary(frame: pd.DataFrame) -> list[dict[str, object]]:
    """Of each cell the mean over examples with its 95% interval; examples that were measured together are drawn so."""
    told = []
    for cell, rows in frame.groupby(CELL, sort=False):
        change, counts = (torch.tensor(rows[name].fillna(0).to_numpy()).double() for name in ("change", "counts"))
        drawn = bootstrap_weights(torch.arange(len(rows)), 1000, torch.Generator().manual_seed(0)).double()
        means = (drawn @ (change * counts)) / (drawn @ counts)
        low, high = interval(means[None], 0.95, len(rows))
        numbers = {"change": means[0], "low": low[0], "high": high[0]}
        rounded = {name: round(float(value), 3) for name, value in numbers.items()}
        told.append({**dict(zip(CELL, cell, strict=True)), **rounded, "examples": int(counts.sum())})
    return told


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="By which route a colour gets into the answer.")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=20_000, help="first scene; training never used these")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--kept", type=Path, default=KEPT, help="table of what is measured already")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    options = parser.parse_args(None if arguments is None else list(arguments))
    weights = opened().fingerprint
    frame = measured(options.examples, options.seed, weights, options.kept, options.workers)
    about = {"processor": platform.processor() or platform.machine(), "weights": weights, "width": WIDTH}
    told = {**about, "untouched": round(float(frame.groupby("seed")["untouched"].first().mean()), 4)}
    text = json.dumps({**told, "cells": summary(frame)}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
