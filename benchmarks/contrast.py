"""What the scoring engine costs, in plain forward passes: `python benchmarks/contrast.py`.

A random model shaped like LLaVA-1.5 (576 image tokens, then 64 text tokens), small enough for two cores. Every timing
is paired in one process: A, B, A, B, …; what is reported is the ratio of each pair, as median and range.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import lvlm_interp as li
from lvlm_interp.attribution.credit import coalitions

IMAGE_TOKEN, IMAGE_TOKENS, TEXT_TOKENS, ANSWER = 3000, 576, 64, 8


def model(width: int = 512, layers: int = 8) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 43 // 16,  # LLaMA-7B's proportions
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        vocab_size=4096,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=336,
        patch_size=14,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)
    return LlavaForConditionalGeneration(config).eval()


def example(vlm: li.HookedVLM) -> li.Inputs:
    """5 template tokens, the image, 43 of the question, 8 of the template, 8 of the answer."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(10, 2000, (1, TEXT_TOKENS), generator=generator)
    ids = torch.cat([text[:, :5], torch.full((1, IMAGE_TOKENS), IMAGE_TOKEN), text[:, 5:]], 1)
    question = TEXT_TOKENS - 5 - 8 - ANSWER
    roles = (
        ["template"] * 5 + ["image"] * IMAGE_TOKENS + ["question"] * question + ["template"] * 8 + ["answer"] * ANSWER
    )
    pixels = torch.randn(1, 3, 336, 336, generator=generator)
    return vlm.inputs(ids, ids.shape[1] - ANSWER, roles, pixel_values=pixels)


def ratios(a: Callable[[], object], b: Callable[[], object], runs: int) -> dict[str, float]:
    """Seconds of `a` over seconds of `b`, pair by pair, after one warm-up of each."""
    seconds: list[tuple[float, float]] = []
    for _ in range(runs + 1):
        pair = []
        for run in (a, b):
            start = time.perf_counter()
            run()
            pair.append(time.perf_counter() - start)
        seconds.append((pair[0], pair[1]))
    found = sorted(x / y for x, y in seconds[1:])
    return {
        "median": round(statistics.median(found), 3),
        "low": round(found[0], 3),
        "high": round(found[-1], 3),
        "seconds_a": round(statistics.median(s[0] for s in seconds[1:]), 4),
        "seconds_b": round(statistics.median(s[1] for s in seconds[1:]), 4),
    }


def one_masked_forward_each(vlm: li.HookedVLM, x: li.Inputs, visible: torch.Tensor) -> None:
    """The naive way: every row of every coalition, under a 2-D key mask."""
    positions = torch.arange(x.length)[None]
    with torch.no_grad():
        for seen in visible:
            vlm.model(**{**x.model_inputs, "attention_mask": seen[None].long(), "position_ids": positions})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "contrast.json")
    options = parser.parse_args()
    vlm = li.wrap(model())
    x = example(vlm)
    pair = torch.stack([x.everything, x.hidden("image")])
    four = coalitions(x, ("question", "image"), ("template",))
    patches = x.everything.repeat(IMAGE_TOKENS, 1)
    patches[torch.arange(IMAGE_TOKENS), x.images[0].positions] = False
    sample = patches[:: IMAGE_TOKENS // 8]  # the naive way is timed on 8 patches and counted 72 times

    def forward() -> None:
        vlm.run(x)

    found = {
        "contrast / forward": ratios(lambda: li.contrast(vlm, x), forward, options.runs),
        "two masked passes / forward": ratios(lambda: one_masked_forward_each(vlm, x, pair), forward, options.runs),
        "four coalitions / forward": ratios(lambda: li.score(vlm, x, four), forward, options.runs),
        "credit (four coalitions) / forward": ratios(lambda: li.credit(vlm, x), forward, options.runs),
        "occlusion of 576 (text) / forward": ratios(lambda: li.attribute(vlm, x), forward, 3),
        "8 naive occlusions / forward": ratios(lambda: one_masked_forward_each(vlm, x, sample), forward, 3),
    }
    naive = found["8 naive occlusions / forward"]["median"] * IMAGE_TOKENS / len(sample)
    speedup = naive / found["occlusion of 576 (text) / forward"]["median"]
    report = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "positions": x.length,
        "ratios": found,
        "occlusion: naive way takes this many times longer": round(speedup, 2),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    for name, ratio in found.items():
        print(f"{name:40s} {ratio['median']:8.3f}   ({ratio['low']:.3f} to {ratio['high']:.3f})")
    print(f"occlusion, naive / ours {speedup:.1f}; written to {options.out.name}")


if __name__ == "__main__":
    main()
