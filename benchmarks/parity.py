"""How far our numbers are from plain transformers', on the reference model: `python benchmarks/parity.py`

Float32 rounds: logits here are of size 30 and went through 30 layers. So the same comparison is also made in float64,
where what is left is a mistake or nothing; and float32 is measured by how far each way is from its own float64.
"""

import argparse
import json
from pathlib import Path

import torch
from tqdm.auto import tqdm

import lvlm_interp as li
from lvlm_interp.families.shared.registry import NAMES
from lvlm_interp.model import parts
from lvlm_interp.reference import make_scenes


def examples(vlm: li.HookedVLM, count: int, seed: int) -> list[li.Inputs]:
    scenes = list(make_scenes(count, seed))
    asked = [(scene, scene.questions()[0]) for scene in scenes]
    return [vlm.prepare(question.text, scene.image, answer=question.answer) for scene, question in asked]


@torch.no_grad()
def two_passes(vlm: li.HookedVLM, x: li.Inputs) -> torch.Tensor:
    """CAL's Δ by two forward passes of transformers, the second with the image's keys masked."""
    masked = x.model_inputs["attention_mask"].masked_fill(x.where("image")[None], 0)
    positions = torch.arange(x.length)[None]
    logits = [
        vlm.model(**{**x.model_inputs, "attention_mask": mask, "position_ids": positions}).logits[0]
        for mask in (x.model_inputs["attention_mask"], masked)
    ]
    rows, labels = x.answer_positions - 1, x.answer_ids[:, None]
    return (logits[0][rows].gather(-1, labels) - logits[1][rows].gather(-1, labels))[:, 0]


@torch.no_grad()
def inside(vlm: li.HookedVLM, x: li.Inputs) -> dict[str, float]:
    """Captured against plain, heads against attention out, last residual against logits."""
    captured, plain = vlm.capture(x, "*"), vlm.run(x)
    last = len(parts.find_blocks(vlm.decoder)) - 1
    heads = 0.0
    for i, block in enumerate(parts.find_blocks(vlm.decoder)):
        project = parts.part(parts.attention_of(block), NAMES.output_projection)
        mixed = project(captured[f"blocks.{i}.attn.hook_z"].flatten(-2))
        heads = max(heads, float((mixed - captured[f"blocks.{i}.hook_attn_out"]).abs().max()))
    read = vlm.readout(captured[f"blocks.{last}.hook_resid_post"])
    return {
        "captured - plain logits": float((captured["logits"] - plain).abs().max()),
        "heads recombined - attention out": heads,
        "readout of the last residual - logits": float((read - captured["logits"]).abs().max()),
    }


def leak(vlm: li.HookedVLM, x: li.Inputs) -> dict[str, float]:
    """What another image changes, hidden and seen."""
    other = x.with_model_inputs(pixel_values=x.model_inputs["pixel_values"].flip(-1) * -1)
    a, b = li.contrast(vlm, x), li.contrast(vlm, other)
    return {
        "another image, hidden": float((a.without_logit - b.without_logit).abs().max()),
        "another image, seen": float((a.with_logit - b.with_logit).abs().max()),
    }


@torch.no_grad()
def one_pass(vlm: li.HookedVLM, x: li.Inputs) -> torch.Tensor:
    """CAL's Δ by the engine, in the model's own precision."""
    scores = li.score(vlm, x, torch.stack([x.everything, x.hidden("image")]))
    logits = vlm.readout.logits(scores.states).gather(-1, x.answer_ids.expand(2, -1)[..., None])[..., 0]
    return logits[0] - logits[1]


def apart(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max(float((one.double() - other.double()).abs().max()) for one, other in zip(a, b, strict=True))


def largest(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: max(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "parity.json")
    options = parser.parse_args()
    report: dict[str, object] = {"examples": options.examples, "seed": options.seed}
    ours, theirs = {}, {}
    for name, dtype in (("float32, sdpa", torch.float32), ("float64, sdpa", torch.float64)):
        vlm = li.load("reference", dtype=dtype, attn_implementation="sdpa")
        asked = examples(vlm, options.examples, options.seed)
        ours[name], theirs[name] = ([way(vlm, x) for x in tqdm(asked, name)] for way in (one_pass, two_passes))
        found = {"CAL delta - two passes": apart(ours[name], theirs[name])}
        report[name] = found | largest([leak(vlm, x) for x in tqdm(asked, name)])
    report["float32 - float64"] = {
        "CAL delta by the engine": apart(*ours.values()),
        "CAL delta by two passes of transformers": apart(*theirs.values()),
    }
    vlm = li.load("reference", attn_implementation="eager")
    few = examples(vlm, max(1, options.examples // 4), options.seed)
    report["float32, eager"] = largest([inside(vlm, x) for x in tqdm(few, "float32, eager")])
    report["weights"] = vlm.fingerprint
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
