"""What sweeps cost beside passes of their own: `python benchmarks/sweeps.py --out benchmarks/results/sweeps.json`

The plain way is what transformers and a hook give: a whole pass of the model for each intervention. Both are timed in
turn, in one process, and have to agree.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attribution import correct_answers

import lvlm_interp as li
from lvlm_interp.interventions.axes import Over, cells_of
from lvlm_interp.interventions.intervention import Intervention, ledger_of
from lvlm_interp.interventions.sources import remembering

ROUTES = {name: tuple(reversed(name.split(" → "))) for name in ("image → question", "image → last", "question → last")}


def plainly(vlm: li.HookedVLM, x: li.Inputs, intervention: Intervention, over: Over) -> torch.Tensor:
    """Log-probability of the answer's first token, from a whole pass for each; here too sources are captured once."""
    found, (_, cells) = [], cells_of(vlm, x, intervention, over)
    with remembering(vlm, [read for cell in cells for read in cell.intervention.reads(vlm, x)]):
        for cell in cells:
            with vlm.visiting(ledger_of(vlm, x, cell.intervention).visits(acting=True)):
                logits = vlm.run(x)[0, x.answer_start - 1]
            found.append(logits.float().log_softmax(-1)[x.answer_ids[0]])
    return torch.stack(found)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def paired(vlm: li.HookedVLM, x: li.Inputs, intervention: Intervention, over: Over, rounds: int) -> dict[str, float]:
    """Seconds of both, in turn, and how far they are apart."""
    ratios, times, farthest = [], [], 0.0
    for _ in range(rounds):
        naive, logprobs = timed(lambda: plainly(vlm, x, intervention, over))
        mine, found = timed(lambda: li.sweep(vlm, x, intervention, over))
        ratios.append(mine / naive)
        times.append(naive)
        farthest = max(farthest, float((found.values[:, 0] - logprobs).abs().max()))
    told = {"cells": len(found.labels), "ratio": statistics.median(ratios), "naive, s": statistics.median(times)}
    rounded = {name: round(number, 3) for name, number in told.items()}
    return {**rounded, "share of rows × blocks": round(found.share, 3), "apart, nats": farthest}


def measured(vlm: li.HookedVLM, rounds: int) -> dict[str, Any]:
    (x, _), (other, _) = correct_answers(vlm, 2, 20_000)
    exchanged = li.Patch("blocks.*.attn.hook_z", "image", source=other)
    sweeps: Mapping[str, tuple[Intervention, Over]] = {
        "all layers × three routes": (li.Knockout(), {"layers": "each", "rows, keys": ROUTES}),
        "all heads of all layers, exchanged": (exchanged, "heads"),
    }
    return {name: paired(vlm, x, *asked, rounds) for name, asked in sweeps.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What sweeps cost.")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--rounds", type=int, default=1, help="the median of so many is told")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    vlm = li.load(options.model)
    about = {"processor": platform.processor() or platform.machine(), "model": vlm.name, "threads": options.threads}
    text = json.dumps({**about, "sweeps": measured(vlm, options.rounds)}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
