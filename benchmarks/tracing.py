"""Where does a picture's colour stand, layer by layer? `python benchmarks/tracing.py --out results/tracing.json`

Pairs of `circuits.py`: one held-out scene with an object in two colours. States of one run are put into the other, at
the image's positions, the question's and the last, behind every third block, both ways. An answer has flipped where the
lead of the clean colour over the corrupt one has changed its sign: told of the means over pairs.
"""

import argparse
import json
import platform
from collections.abc import Iterable
from pathlib import Path

import torch
from circuits import pairs_of

import lvlm_interp as li

PLACES = ("image", "question", "last")
EVERY = 3


def rows_of(found: li.Tracing) -> list[dict[str, object]]:
    """Shares with intervals, and whether the mean lead has the other run's sign."""
    frame, clean, corrupt = found.to_frame(), float(found.clean[0]), float(found.corrupt[0])
    rows = []
    for row in frame.to_dict("records"):
        start, way = (corrupt, clean - corrupt) if row["direction"] == "denoising" else (clean, corrupt - clean)
        told = {name: row[name] for name in ("direction", "layers", "positions")}
        numbers = {name: round(row[name], 3) for name in ("share", "low", "high")}
        rows.append({**told, **numbers, "flips": (start + row["share"] * way) * start < 0})
    return rows


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Where a picture's colour stands, layer by layer.")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=60_000, help="first scene; training never used these")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args(None if arguments is None else list(arguments))
    torch.set_num_threads(1)
    vlm = li.load("reference")
    pairs = [*pairs_of(vlm, options.pairs, options.seed)]
    over = {"layers": range(0, vlm.depth, EVERY), "positions": list(PLACES)}
    found = li.causal_trace(vlm, pairs, over=over, values=["difference"], progress=True)
    told = {
        "processor": platform.processor() or platform.machine(),
        "weights": vlm.fingerprint,
        "seed": options.seed,
        "pairs": len(pairs),
        "lead, clean": round(float(found.clean[0]), 3),
        "lead, corrupt": round(float(found.corrupt[0]), 3),
        "places": rows_of(found),
    }
    text = json.dumps(told, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
