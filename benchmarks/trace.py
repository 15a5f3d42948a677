"""What watching an answer costs: `python benchmarks/trace.py`.

`li.trace` writes an answer with the image and without it, both streams together; beside it transformers' own `generate`
writes as many tokens of the one with the image. The model is that of `contrast.py`, shaped like LLaVA-1.5 (576 image
tokens), and never ends a turn. Both run in turn in one process; ratios are of its processor time.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from contrast import example, model

import lvlm_interp as li

TOKENS = (8, 64)


def timed(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measured(vlm: li.HookedVLM, x: li.Inputs, tokens: int, runs: int) -> dict[str, float]:
    """The ratio of each pair, after one of each to warm up."""

    def generate() -> None:
        told = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        with torch.no_grad():
            vlm.model.generate(**x.model_inputs, **told)

    pairs = []
    for _ in range(runs + 1):
        pairs.append((timed(lambda: li.trace(vlm, x, max_new_tokens=tokens)), timed(generate)))
    ratios = sorted(mine / theirs for mine, theirs in pairs[1:])
    found = {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}
    seconds = {"generate, s": statistics.median(theirs for _, theirs in pairs[1:])}
    return {name: round(number, 3) for name, number in {**found, **seconds}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trace.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vlm = li.wrap(model(options.width, options.layers))
    vlm.model.generation_config.eos_token_id = vlm.model.config.get_text_config().eos_token_id = None
    x = example(vlm).prompt
    report = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "processor": platform.processor() or platform.machine(),
        "threads": options.threads,
        "positions": x.length,
        "trace of both streams / generate of one, by tokens": {
            tokens: measured(vlm, x, tokens, options.runs) for tokens in TOKENS
        },
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
