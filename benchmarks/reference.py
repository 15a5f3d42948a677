"""Held-out scores of the reference model: `python benchmarks/reference.py --out lvlm_interp/reference/scores.json`.

Training never used scenes of seeds below 1000000.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm.auto import tqdm

import lvlm_interp as li
from lvlm_interp.reference.evaluate import Asked, ask, summary
from lvlm_interp.reference.scenes import HELD_OUT_STYLE, Style, make_scenes

AT_ONCE = 10  # scenes of one task


@functools.cache
def _opened(model: str) -> li.HookedVLM:
    """The model, opened once in each worker; two workers of one thread do more than one of two."""
    torch.set_num_threads(1)
    return li.load(model)


def _some(task: tuple[str, int, int, Style | None]) -> list[Asked]:
    model, count, seed, style = task
    return list(ask(_opened(model), make_scenes(count, seed, style)))


def evaluate(
    model: str, count: int, seed: int = 0, style: Style | None = None, workers: int = 2
) -> dict[str, dict[str, float]]:
    """The summary over the scenes of seeds `seed` … `seed + count - 1`, in the trained styles or in one style."""
    tasks = [(model, min(AT_ONCE, seed + count - first), first, style) for first in range(seed, seed + count, AT_ONCE)]
    with get_context("spawn").Pool(workers) as pool:
        name = f"{AT_ONCE} scenes each ({style or 'trained styles'})"
        found = list(tqdm(pool.imap(_some, tasks), total=len(tasks), desc=name))
    return summary([one for some in found for one in some])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Held-out scores of the reference model.")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--unseen", type=int, default=100, help="scenes in the style that was not trained on")
    parser.add_argument("--seed", type=int, default=0, help="first scene; training never used seeds below 1000000")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, help="write the scores as JSON")
    options = parser.parse_args(arguments)
    vlm = li.load(options.model)
    found = {
        "trained styles": evaluate(options.model, options.scenes, options.seed, None, options.workers),
        f"unseen style ({HELD_OUT_STYLE})": evaluate(
            options.model, options.unseen, options.seed, HELD_OUT_STYLE, options.workers
        ),
    }
    text = json.dumps({"model": vlm.name, "weights": vlm.fingerprint, "seed": options.seed, **found}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
