"""What telling models apart costs, in plain forward passes: `python benchmarks/identity.py`.

On the reference model, and on a random LLaVA of 2 GB of float32 weights. `vlm.fingerprint` reads every byte of them;
`vlm.identity`, which every result asks for, looks into every page and, in turn, at a part of the tensors. Captures,
which ask for neither, stand beside them. Every way is run once in each round, as in `capture.py`.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from capture import PLAIN, Way, reference, rounds, show, summary, wide, with_ours

import lvlm_interp as li
from lvlm_interp.model.known import TURNS

CAPTURES = ("ours, all residuals", "ours, one layer's pattern")


def ways(vlm: li.HookedVLM, x: li.Inputs) -> dict[str, Way]:
    captures = with_ours(vlm, vlm.batch([x]))
    return {
        PLAIN: lambda: vlm.model(**x.model_inputs, use_cache=False),
        "ours, fingerprint": lambda: vlm.fingerprint,
        "ours, identity": lambda: vlm.identity,
        **{name: captures[name] for name in CAPTURES},
    }


def measure(vlm: li.HookedVLM, x: li.Inputs, runs: int) -> dict[str, Any]:
    assert vlm.identity == vlm.fingerprint  # the first time all is read
    size = sum(weight.nbytes for weight in vlm.model.parameters())
    ratios = summary(rounds(ways(vlm, x), runs))
    return {"weights, GB": round(size / 1e9, 2), "positions": x.length, "ratios": ratios, "left_out": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--width", type=int, default=2048, help="of the random model")
    parser.add_argument("--layers", type=int, default=10, help="of the random model")
    parser.add_argument("--models", nargs="+", choices=["reference", "wide"], default=["reference", "wide"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "identity.json")
    options = parser.parse_args()
    makers: dict[str, Callable[[], tuple[li.HookedVLM, li.Inputs]]] = {
        "reference": reference,
        "wide": lambda: wide(options.width, options.layers),
    }
    report: dict[str, Any] = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "load_at_start": os.getloadavg()[0],
        "runs": options.runs,
        "rounds in which identity reads all": TURNS,
        "models": {},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        found = report["models"][name] = measure(*makers[name](), options.runs)
        show(f"{name}, {found['weights, GB']} GB", found)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {options.out.name}")


if __name__ == "__main__":
    main()
