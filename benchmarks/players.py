"""What credit among twelve players costs, in plain forward passes: `python benchmarks/players.py`.

The reference model, a picture, a context of ten sentences and a question: with the sentences as players, there are
2^12 coalitions of them, the question and the image. Both ways of counting are of one run: rows that were computed, over
those of one plain forward pass of the example; and seconds, over the median of plain passes before and after. One
masked forward pass for each coalition would be 4096 of either.
"""

import argparse
import json
import platform
import resource
import statistics
import time
from pathlib import Path

import torch

import lvlm_interp as li
from lvlm_interp.attribution.players import players_of, subsets
from lvlm_interp.reference import make_scene

SENTENCES = (
    "The banana is ripe.",
    "The cat is big.",
    "It is raining.",
    "The car is old.",
    "A dog sleeps.",
    "The sun is up.",
    "Somebody sings.",
    "The door is open.",
    "It is late.",
    "The banana is yellow.",
)


def example(vlm: li.HookedVLM) -> li.Inputs:
    scene = make_scene(4, objects=["banana", "cat"], colors=["purple", None])
    return vlm.prepare("What color is the banana?", scene.image, context=" ".join(SENTENCES), answer="Purple.")


def seconds(run: object, times: int = 1) -> list[float]:
    assert callable(run)
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--players", type=int, default=12, help="fewer: sentences are kept always visible")
    parser.add_argument("--credit", action="store_true", help="time credit by word too: twice as long, or more")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "players.json")
    options = parser.parse_args()
    vlm = li.load("reference")
    x = example(vlm)
    keep = ("template", *(f"sentence {n}" for n in range(len(SENTENCES) + 2 - options.players)))
    players = players_of(x, "sentences", keep, vlm.prompter.text)
    masks = [player.positions for player in players]
    visible = subsets(masks, ~torch.stack(masks).any(0))
    vlm.run(x)  # warm-up
    before = seconds(lambda: vlm.run(x), 5)
    rows: list[int] = []
    scoring = seconds(lambda: rows.append(li.score(vlm, x, visible).rows))[0]
    splits: list[li.CreditSplit] = []
    if options.credit:
        whole = seconds(lambda: splits.append(li.credit(vlm, x, keep, unit="word", players="sentences")))[0]
    forward = statistics.median(before + seconds(lambda: vlm.run(x), 5))
    report = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "positions": x.length,
        "players": len(players),
        "coalitions": len(visible),
        "scoring: rows / rows of a forward": round(rows[0] / x.length, 2),
        "scoring: seconds / seconds of a forward": round(scoring / forward, 2),
        "one masked forward each / scoring, by rows": round(len(visible) * x.length / rows[0], 2),
        "one masked forward each / scoring, by seconds": round(len(visible) * forward / scoring, 2),
        "highest memory of the process (GiB)": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    if options.credit:
        report["credit by word: seconds / seconds of a forward"] = round(whole / forward, 2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    for name, number in report.items():
        print(f"{name:50s} {number}")
    for split in splits:
        print(split.to_frame().round(2).T.to_string())
        print(split.interactions.up_to(2).to_frame(split.tokens, largest=5).round(2).to_string())


if __name__ == "__main__":
    main()
