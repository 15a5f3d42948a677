"""What capturing costs, in plain forward passes, beside nnsight and transformer_lens: `python benchmarks/capture.py`.

On the reference model and on a wider random LLaVA, batch 1 and 8. Every way is run once in each round, in an order
that turns from round to round; what is reported is the ratio to the baseline of the same round, as median and
quartiles. The baseline is transformers' plain forward pass; where every layer's pattern is wanted, it is
transformers under eager attention with `output_attentions`, the only way to have them there.
"""

import argparse
import copy
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contrast
import torch
from nnsight import NNsight

import lvlm_interp as li
from lvlm_interp.adapters.transformer_lens import as_bridge
from lvlm_interp.errors import ModelError
from lvlm_interp.inputs.batch import Batch

RESIDUALS = ["blocks.*.hook_resid_*"]
PATTERNS = ["blocks.*.attn.hook_pattern", "blocks.*.attn.hook_z"]
PLAIN, EAGER = "transformers, plain", "transformers, eager with attentions"
BARS = {"ours, all residuals": 1.05, "ours, one layer's pattern": 1.05, "ours, all patterns and z": 1.10}
Way = Callable[[], object]


def eager_twin(model: Any) -> Any:
    """Other modules around the same weights, under eager attention."""
    own = copy.deepcopy(model, {id(t): t for t in itertools.chain(model.parameters(), model.buffers())})
    own.set_attn_implementation("eager")
    return own


def with_transformers(vlm: li.HookedVLM, x: Batch, eager: Any) -> dict[str, Way]:
    return {
        PLAIN: lambda: vlm.model(**x.model_inputs, use_cache=False),
        EAGER: lambda: eager(**x.model_inputs, use_cache=False, output_attentions=True),
    }


def with_ours(vlm: li.HookedVLM, x: Batch) -> dict[str, Way]:
    middle = len(vlm.decoder.layers) // 2
    return {
        "ours, all residuals": lambda: vlm.capture(x, RESIDUALS),
        "ours, one layer's pattern": lambda: vlm.capture(x, PATTERNS[0], layers=middle),
        "ours, all patterns and z": lambda: vlm.capture(x, PATTERNS),
    }


def with_nnsight(vlm: li.HookedVLM, x: Batch, eager: Any) -> dict[str, Way]:
    root = next(path for path, module in vlm.model.named_modules() if module is vlm.decoder)
    layers = [f"model.{root}.layers.{i}" for i in range(len(vlm.decoder.layers))]
    stream = [*layers, *(f"{layer}.post_attention_layernorm" for layer in layers)]
    heads = [f"{layer}.self_attn{part}" for layer in layers for part in ("", ".o_proj")]
    eagerly = NNsight(eager)

    def save(model: Any, modules: list[str]) -> object:
        with model.trace(**x.model_inputs, use_cache=False) as tracer:
            cache = tracer.cache(modules=modules, device=None, include_inputs=True)
        return cache

    return {
        "nnsight, all residuals": lambda: save(vlm.nnsight, stream),
        "nnsight, one layer's pattern": lambda: save(eagerly, heads[len(layers) : len(layers) + 1]),
        "nnsight, all patterns and z": lambda: save(eagerly, heads),
    }


def with_bridge(vlm: li.HookedVLM, x: Batch) -> dict[str, Way]:
    bridge, others = as_bridge(vlm), dict(x.model_inputs)
    ids, layers = others.pop("input_ids"), range(len(vlm.decoder.layers))
    stream = [f"blocks.{i}.hook_resid_{at}" for i in layers for at in ("pre", "mid", "post")]
    heads = [f"blocks.{i}.attn.hook_{part}" for i in layers for part in ("pattern", "z")]

    def save(names: list[str]) -> object:
        return bridge.run_with_cache(ids, names_filter=names, use_cache=False, **others)

    return {
        "transformer_lens, all residuals": lambda: save(stream),
        "transformer_lens, one layer's pattern": lambda: save(heads[len(layers) // 2 * 2 :][:1]),
        "transformer_lens, all patterns and z": lambda: save(heads),
    }


@torch.no_grad()
def rounds(ways: dict[str, Way], runs: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(runs + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: taken[1:] for name, taken in seconds.items()}


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float | str]]:
    """Each way's ratio to its baseline, round by round."""
    found: dict[str, dict[str, float | str]] = {}
    for name, taken in seconds.items():
        baseline = EAGER if name.endswith("all patterns and z") else PLAIN
        ratios = [own / base for own, base in zip(taken, seconds[baseline], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        found[name] = {
            "median": round(median, 3),
            "quartile_low": round(low, 3),
            "quartile_high": round(high, 3),
            "seconds": round(statistics.median(taken), 4),
            "baseline": baseline,
        }
    return found


def measure(vlm: li.HookedVLM, x: li.Inputs, batch: int, runs: int) -> dict[str, Any]:
    both, eager = vlm.batch([x] * batch), eager_twin(vlm.model)
    ways = {**with_transformers(vlm, both, eager), **with_ours(vlm, both)}
    # Of its own, since nnsight changes the modules that it wraps.
    ways |= with_nnsight(vlm, both, eager_twin(vlm.model))
    left_out = {}
    try:
        ways |= with_bridge(vlm, both)
    except ModelError as error:
        left_out["transformer_lens"] = str(error)
    return {"positions": x.length, "ratios": summary(rounds(ways, runs)), "left_out": left_out}


def reference() -> tuple[li.HookedVLM, li.Inputs]:
    from lvlm_interp.reference import make_scene

    vlm = li.load("reference")
    scene = make_scene(3, objects=["banana", "cat"], colors=["purple", None])
    return vlm, vlm.prepare("What color is the banana?", scene.image, answer="Purple.")


def wide(width: int, layers: int) -> tuple[li.HookedVLM, li.Inputs]:
    vlm = li.wrap(contrast.model(width, layers))
    return vlm, contrast.example(vlm)


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}, {found['positions']} positions")
    for way, ratio in found["ratios"].items():
        spread = f"({ratio['quartile_low']:.3f} to {ratio['quartile_high']:.3f})"
        bar = f"   bar {BARS[way]}" if way in BARS else ""
        print(f"  {way:38s} {ratio['median']:7.3f} {spread:20s} × {ratio['baseline']}{bar}")
    for tool, why in found["left_out"].items():
        print(f"  {tool}: left out, {why}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--width", type=int, default=1024, help="of the random model")
    parser.add_argument("--layers", type=int, default=6, help="of the random model")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--models", nargs="+", choices=["reference", "wide"], default=["reference", "wide"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "capture.json")
    options = parser.parse_args()
    makers = {"reference": reference, "wide": lambda: wide(options.width, options.layers)}
    report: dict[str, Any] = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "load_at_start": os.getloadavg()[0],
        "runs": options.runs,
        "width_of_wide": options.width,
        "bars": BARS,
        "models": {},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        vlm, x = makers[name]()
        for batch in options.batches:
            found = measure(vlm, x, batch, options.runs)
            report["models"][f"{name}, batch {batch}"] = found
            show(f"{name}, batch {batch}", found)
            options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {options.out.name}")


if __name__ == "__main__":
    main()
