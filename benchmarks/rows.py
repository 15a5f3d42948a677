"""Memory of a pattern of which a few rows are wanted, against the whole pattern: `python benchmarks/rows.py`.

Each way runs in a process of its own, on a model of the reference's width with random weights; what counts is how far
the most memory that the process ever held rises above what it held after a short prompt; a plain pass is beside them.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import lvlm_interp as li

SITE = "blocks.*.attn.hook_pattern"
ROWS = 4
WAYS = ("plain", "rows", "whole")
IMAGE = 150


def model(length: int) -> li.HookedVLM:
    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=200,
        max_position_embeddings=length,
    )
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=14
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    return li.wrap(LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval())


def example(vlm: li.HookedVLM, length: int) -> li.Inputs:
    ids = torch.arange(length)[None] % 100 + 10
    ids[0, 1:5] = IMAGE
    return vlm.inputs(input_ids=ids, answer_start=length - ROWS, pixel_values=torch.randn(1, 3, 28, 28))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(length: int, way: str) -> dict[str, Any]:
    """MB above a short prompt, in this process."""
    vlm = model(length)
    run = vlm.run if way == "plain" else lambda x: captured(vlm, x, way)
    run(example(vlm, 64))
    x, before = example(vlm, length), peak()
    found = run(x)
    return {"MB": (peak() - before) / 1e3, "shape": list(found.shape)}


def captured(vlm: li.HookedVLM, x: li.Inputs, way: str) -> torch.Tensor:
    """The pattern of one layer: what is made in a pass is let go when the layer is done."""
    positions = range(-ROWS, 0) if way == "rows" else None
    return vlm.capture(x, SITE, layers=0, positions=positions)["blocks.0.attn.hook_pattern"]


def elsewhere(length: int, way: str) -> dict[str, Any]:
    asked = [sys.executable, __file__, "--length", str(length), "--way", way]
    return json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=8192, help="positions of the prompt")
    parser.add_argument("--way", choices=WAYS, help="measure one way, in this process")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rows.json"))
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measured(options.length, options.way)))
        return
    found = {way: elsewhere(options.length, way) for way in WAYS}
    plain, rows, whole = (found[way]["MB"] for way in WAYS)
    shares = {"rows / whole": rows / whole, "above the plain pass, rows / whole": (rows - plain) / (whole - plain)}
    told = {"positions": options.length, "rows": ROWS, **found, **{k: round(v, 4) for k, v in shares.items()}}
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
