"""Definitions of credit, held against what really decides: `python benchmarks/swap.py --out FILE`.

Examples of the reference world (`reference.swaps.swap_table`), asked of the reference model and of the one before
anything was hidden from it in training. A run that was stopped goes on: each part is kept in the folder `--kept`.
"""

import argparse
import dataclasses
import functools
import json
import platform
from collections import Counter
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

import lvlm_interp as li
from lvlm_interp.reference.swaps import swap_table

AT_ONCE = 8  # examples of one task
Task = tuple[str, pd.DataFrame, bool, Path]


@functools.cache
def _opened(model: str) -> li.HookedVLM:
    """The model, opened once in each worker; two workers of one thread do more than one of two."""
    torch.set_num_threads(1)
    return li.load(model)


def _some(task: Task) -> Path:
    """Test some examples, unless they are; returns where the result is kept."""
    model, table, maps, path = task
    if not path.exists():
        li.swap_test(_opened(model), table, maps=maps).save(path)
    return path


def tested(model: str, table: pd.DataFrame, maps: bool, kept: Path, workers: int) -> li.SwapTest:
    """The swap test of a table, in parts."""
    names = list(dict.fromkeys(table["example"]))
    parts = [names[first : first + AT_ONCE] for first in range(0, len(names), AT_ONCE)]
    kept.mkdir(parents=True, exist_ok=True)
    tasks = [
        (model, table[table["example"].isin(some)], maps, kept / f"{n}.safetensors") for n, some in enumerate(parts)
    ]
    with get_context("spawn").Pool(workers) as pool:
        paths = list(tqdm(pool.imap(_some, tasks), total=len(tasks), desc=f"{model}, {AT_ONCE} examples each"))
    found = [li.load_result(path) for path in paths]
    return dataclasses.replace(found[0], examples=tuple(example for test in found for example in test.examples))


def told(test: li.SwapTest, seed: int) -> dict[str, Any]:
    """What stands in the documentation: which sources decide, and how often each definition names them."""
    found = li.judged(test, seed=seed)
    decides = Counter(verdict.source or "untold" for verdict in test.verdicts)
    right = {
        d: dict(zip(found.kinds, row.tolist(), strict=True))
        for d, row in zip(found.definitions, found.right, strict=True)
    }
    all_of = {
        d: (float(low[0]), float(high[0]))
        for d, low, high in zip(found.definitions, found.low, found.high, strict=True)
    }
    return {
        "weights": test.provenance.weights,
        "examples": len(test.examples),
        "failed": len(test.failures),
        "decides": dict(decides),
        "left out": found.left_out,
        "judged": dict(zip(found.kinds, found.counts.tolist(), strict=True)),
        "right": right,
        "interval of all": all_of,
        "pointing": test.pointing().to_dict("records")[0],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Definitions of credit, held against what really decides.")
    parser.add_argument("--count", type=int, default=560, help="examples")
    parser.add_argument("--model", nargs="*", default=["reference", "reference@tune"])
    parser.add_argument("--maps", action="store_true", help="hold heatmaps against changes of pixels too")
    parser.add_argument("--kept", type=Path, default=Path("swap-parts"), help="folder of what is done")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    options = parser.parse_args(arguments)
    table, found = swap_table(options.count), {}
    for model in options.model:
        weights = _opened(model).fingerprint  # parts of other weights are others' parts
        test = tested(model, table, options.maps, options.kept / f"{model}-{weights}", options.workers)
        test.save(options.kept / f"{model}.safetensors")
        print(li.judged(test, seed=options.seed).table().to_string())
        found[model] = told(test, options.seed)
    text = json.dumps({"processor": platform.processor() or platform.machine(), **found}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
