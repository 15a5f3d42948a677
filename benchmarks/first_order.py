"""Occlusion that hides few patches beside one that hides all: `python benchmarks/first_order.py`

Ranks are of correct answers about recoloured objects of the reference world, with as small a share of patches hidden as
by default of a grid of 24 × 24. Costs are of such a grid, in plain passes of the same process: a LLaVA of random
weights whose language model is large beside its tower, as in those that people use.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attribution import correct_answers
from heatmaps import mean_of
from tqdm.auto import tqdm
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import lvlm_interp as li
from lvlm_interp.heatmaps.sanity import ranks_alike

SIDE, HIDDEN = 24, 64  # of the grid, and how many of its patches are hidden by default
IMAGE, TEXT = 150, 64  # id of the image's token, and how many tokens the prompt has beside it


def random_llava(layers: int, width: int) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 64}
    sizes = {"hidden_size": width, "intermediate_size": width * 8 // 3, "num_hidden_layers": layers}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = LlamaConfig(vocab_size=200, max_position_embeddings=4096, initializer_range=0.05, **sizes, **heads, **ids)
    small = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3}
    vision = CLIPVisionConfig(image_size=14 * SIDE, patch_size=14, **small)
    read = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, **read)
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()


def fine_example(vlm: li.HookedVLM) -> li.Inputs:
    ids = [1, *[IMAGE] * SIDE**2, *range(20, 20 + TEXT), 7]
    roles = ["template", *["image"] * SIDE**2, *["question"] * (TEXT - 1), "template", "answer"]
    pixels = torch.randn(1, 3, 14 * SIDE, 14 * SIDE, generator=torch.Generator().manual_seed(1))
    return vlm.inputs(input_ids=torch.tensor([ids]), answer_start=len(ids) - 1, roles=roles, pixel_values=pixels)


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def costs(layers: int, width: int, rounds: int) -> dict[str, Any]:
    """Of both, in plain passes, and how alike they rank."""
    vlm = li.wrap(random_llava(layers, width))
    x, found = fine_example(vlm), []
    for _ in range(rounds):
        plain = statistics.median(seconds(lambda: vlm.run(x))[0] for _ in range(3))
        (few, near), (all_of_them, every) = (
            seconds(lambda: li.attribute(vlm, x)),
            seconds(lambda: li.attribute(vlm, x, exact=None)),
        )
        found.append((few / plain, all_of_them / plain, float(ranks_alike(near, every)[0])))
    few, every, alike = (statistics.median(column) for column in zip(*found, strict=True))
    assert near.exact is not None and int(near.exact.sum()) == HIDDEN
    told = {"patches": SIDE**2, "positions": x.length, "hidden": HIDDEN, "layers": layers, "width": width}
    return {**told, "passes": round(few, 2), "passes, all hidden": round(every, 2), "rank correlation": round(alike, 4)}


def ranks(scenes: int, seed: int) -> dict[str, Any]:
    """How alike the reference model's maps rank, and how often they name the same strongest patch."""
    vlm, found = li.load("reference"), []
    for x, _ in tqdm(correct_answers(vlm, scenes, seed), total=scenes, desc="scenes"):
        every = li.attribute(vlm, x, unit="answer", exact=None)
        hidden = round(every.values[0].numel() * HIDDEN / SIDE**2)
        few = li.attribute(vlm, x, unit="answer", exact=hidden)
        found.append((float(ranks_alike(few, every)[0]), float(few.peak() == every.peak())))
    alike, peaks = torch.tensor(found, dtype=torch.float64).unbind(1)
    told = {"weights": vlm.fingerprint, "scenes": scenes, "hidden": hidden, "of": every.values[0].numel()}
    shares = {"at least .9": float((alike >= 0.9).double().mean()), "least": float(alike.min())}
    return {**told, "rank correlation": mean_of(alike), **shares, "same peak": mean_of(peaks)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Occlusion of the patches that matter, beside that of all.")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=30_000, help="first scene; training never used these")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "first_order.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "processor": platform.processor() or platform.machine(),
        "24 × 24": costs(options.layers, options.width, options.rounds),
        "reference": ranks(options.scenes, options.seed),
    }
    options.out.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
