"""Occlusion beside captum's FeatureAblation of the same masked forward: `python benchmarks/ablation.py`.

Both hide each patch of the picture from the rows of text, and read the log-odds of the answer's tokens, added up.
Captum calls a pass of the model for each patch; ours shares what the passes have in common. Ratios are of one process,
the two in turns.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from captum.attr import FeatureAblation
from torch import Tensor

import lvlm_interp as li
from lvlm_interp.reference import make_scene


def example(vlm: li.HookedVLM) -> li.Inputs:
    scene = make_scene(4, objects=["banana", "cat"], colors=["purple", None])
    return vlm.prepare("What color is the banana?", scene.image, answer="Purple.")


def forward_of(vlm: li.HookedVLM, x: li.Inputs) -> Callable[[Tensor], Tensor]:
    """Which patches are seen, `[1, patch]` → log-odds of the answer's tokens, added up."""
    positions, text = x.images[0].positions, ~x.where("image")
    causal = torch.ones(x.length, x.length, dtype=torch.bool).tril()

    @torch.no_grad()
    def forward(seen: Tensor) -> Tensor:
        keys = torch.ones(x.length, dtype=torch.bool)
        keys[positions] = seen[0].bool()
        allowed = causal & (keys | ~text[:, None])
        mask = torch.zeros(1, 1, x.length, x.length).masked_fill(~allowed, torch.finfo(torch.float32).min)
        given = {**x.model_inputs, "attention_mask": mask, "position_ids": torch.arange(x.length)[None]}
        logits = vlm.model(**given, use_cache=False).logits[0, x.answer_start - 1 : -1]
        chosen = logits.double().log_softmax(-1).gather(-1, x.answer_ids[:, None])[:, 0]
        return (chosen - torch.log1p(-chosen.exp())).sum().float()[None]

    return forward


def seconds(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description="Occlusion beside captum's FeatureAblation.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ablation.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    vlm = li.load("reference")
    x = example(vlm)
    patches, captum = len(x.images[0].positions), FeatureAblation(forward_of(vlm, x))
    rounds = []
    for _ in range(options.rounds):
        theirs, slow = seconds(lambda: captum.attribute(torch.ones(1, patches)))
        ours, fast = seconds(lambda: li.attribute(vlm, x, hide_from="text").values.sum(0).flatten())
        rounds.append(theirs / ours)
    found = {
        "processor": platform.processor() or platform.machine(),
        "weights": vlm.fingerprint,
        "patches": patches,
        "positions": x.length,
        "times as fast as captum": round(statistics.median(rounds), 2),
        "rounds": [round(one, 2) for one in rounds],
        "largest difference (nats)": float((slow[0] - fast).abs().max()),
        "largest number (nats)": float(fast.abs().max()),
    }
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
