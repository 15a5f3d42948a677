"""Held-out scores of the reference model: `python benchmarks/reference.py --out lvlm_interp/reference/scores.json`.

Training never used scenes of seeds below 1000000, nor the held-out part of what is plain knowledge.
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
from lvlm_interp.reference import exam
from lvlm_interp.reference.scenes import HELD_OUT_STYLE, TRAINING_SEEDS, Style
from lvlm_interp.reference.talk import Talk

AT_ONCE = 20  # talks of one task
BASE = "reference@align"  # its language model is still the base model


@functools.cache
def _opened(model: str) -> li.HookedVLM:
    """The model, opened once in each worker; two workers of one thread do more than one of two."""
    torch.set_num_threads(1)
    return li.load(model)


def _some(task: tuple[str, list[Talk]]) -> list[exam.Given]:
    model, asked = task
    return list(exam.examined(_opened(model), asked))


def scores(
    model: str, each: int, seed: int, style: Style | None = None, workers: int = 2
) -> dict[str, dict[str, float]]:
    """The shares over talks of scenes from `seed` on, in the trained styles or in one style."""
    asked = list(exam.drawn(range(seed, TRAINING_SEEDS.start), each, style))
    tasks = [(model, asked[first : first + AT_ONCE]) for first in range(0, len(asked), AT_ONCE)]
    with get_context("spawn").Pool(workers) as pool:
        name = f"{AT_ONCE} talks each ({style or 'trained styles'})"
        found = list(tqdm(pool.imap(_some, tasks), total=len(tasks), desc=name))
    return exam.shares([one for some in found for one in some])


def knowledge(model: str) -> dict[str, dict[str, float]]:
    """Plain knowledge that was kept from training, said in a sentence and in short, beside the base model's."""
    opened = {
        "in a sentence": (model, "sentence"),
        "in short": (model, "short"),
        "base, in a sentence": (BASE, "sentence"),
        "base, in short": (BASE, "short"),  # it says a sentence all the same
    }
    return {name: exam.remembered(_opened(of), form) for name, (of, form) in opened.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Held-out scores of the reference model.")
    parser.add_argument("--each", type=int, default=300, help="talks of each group")
    parser.add_argument("--unseen", type=int, default=60, help="the same in the style that was not trained on")
    parser.add_argument(
        "--seed", type=int, default=600_000, help="first scene; training never used seeds below 1000000"
    )
    parser.add_argument("--model", default="reference")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, help="write the scores as JSON")
    options = parser.parse_args(arguments)
    vlm = li.load(options.model)
    believed = exam.believed(vlm, options.seed)
    found = {
        "trained styles": scores(options.model, options.each, options.seed, None, options.workers),
        f"unseen style ({HELD_OUT_STYLE})": scores(
            options.model, options.unseen, options.seed, HELD_OUT_STYLE, options.workers
        ),
        "image hidden": {"asked": len(believed), "right": round(sum(believed.values()) / len(believed), 4)},
        "plain knowledge, kept from training": knowledge(options.model),
        "natural colours not believed": sorted(noun for noun, right in believed.items() if not right),
    }
    text = json.dumps({"model": vlm.name, "weights": vlm.fingerprint, "seed": options.seed, **found}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
