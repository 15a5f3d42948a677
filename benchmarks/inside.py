"""Lenses and direct attribution on the reference model: `python benchmarks/inside.py`.

- lens: the last layer against the model's own log-probabilities, and the memory that a full lens adds.
- tuned: held-out KL(final || lens) at every layer, logit lens beside tuned lens, text and image positions apart.
- direct: how far the parts are from the logit, and whether replacing a head by its mean over examples changes the
  logit of one colour against another as its part says: by the mean of its parts minus its part. What later layers make
  of the change is in what is seen and not in what the part says, so the two agree in rank at best.
"""

import argparse
import json
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from tqdm import tqdm

import lvlm_interp as li
from lvlm_interp.reference import make_scenes, questions

SEED = 800_000  # scenes that the reference model was not trained on


def peak() -> int:
    """The most memory that this process ever held, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def asked(vlm: li.HookedVLM, count: int) -> list[li.Inputs]:
    """A question of each scene with its true answer, all kinds of questions in turn."""
    pairs = [(scene, scene.questions()) for scene in make_scenes(count, SEED)]
    chosen = [(scene, found[n % len(found)]) for n, (scene, found) in enumerate(pairs)]
    return [vlm.prepare(question.text, scene.image, answer=question.answer) for scene, question in chosen]


def lens(vlm: li.HookedVLM, options: argparse.Namespace) -> dict[str, Any]:
    x = asked(vlm, 1)[0]
    vlm.run(x)
    before, size = peak(), sum(w.numel() * w.element_size() for w in vlm.model.parameters())
    found = li.lens(vlm, x, k=5)
    after = peak()
    own = vlm.run(x)[0].float().log_softmax(-1)
    last = (found.top_logprobs[-1] - own.topk(5).values).abs().max()
    return {
        "layers × positions": list(found.entropy.shape),
        "last layer - model, nats": float(last),
        "weights, MB": round(size / 1e6),
        "peak of a forward pass, MB": round(before / 1e6),
        "peak of a full lens, MB": round(after / 1e6),
        "what the lens adds / weights": round((after - before) / size, 3),
    }


def tuned(vlm: li.HookedVLM, options: argparse.Namespace) -> dict[str, Any]:
    how = li.Fitting(steps=options.steps)
    checkpoint = options.out.with_name("tuned.checkpoint.safetensors")
    found = li.fit_tuned_lens(vlm, asked(vlm, options.examples), how, checkpoint=checkpoint, progress=True)
    checkpoint.unlink()
    frame = found.to_frame()
    below = {kind: bool((part["gain_low"] > 0).all()) for kind, part in frame.groupby("kind")}
    return {
        "steps": how.steps,
        "examples": options.examples,
        "below the logit lens at every layer, interval included": below,
        "layers": frame.round(4).to_dict("records"),
    }


def rank(a: torch.Tensor, b: torch.Tensor) -> float:
    return round(float(spearmanr(a.flatten(), b.flatten()).statistic), 3)


@torch.no_grad()
def direct(vlm: li.HookedVLM, options: argparse.Namespace) -> dict[str, Any]:
    examples = list(questions.examples("attribute", options.ablated, SEED))
    told = [vlm.prepare(e.question, e.scene.image, answer=e.label.capitalize()) for e in examples]
    missed = max(float(((p.total - p.logit).abs() / p.logit.abs()).max()) for p in (li.direct(vlm, x) for x in told))
    # One pair of tokens for all examples: the mean of parts is the part of the mean only where they read the same.
    (target, _), (against, _) = Counter(int(x.answer_ids[0]) for x in told).most_common(2)
    parts = [li.direct(vlm, x, target=target, against=against) for x in tqdm(told, "direct")]
    own = torch.stack([p.heads[0] for p in parts])  # example, layer, head
    expected = own.mean(0) - own
    batch = vlm.batch([e.inputs(vlm) for e in examples])
    captured = vlm.capture(batch, "blocks.*.attn.hook_z", reduce="last")

    def difference(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, target] - logits[:, -1, against]

    plain = difference(captured["logits"])
    generator = torch.Generator().manual_seed(0)
    pairs = torch.cartesian_prod(torch.arange(own.shape[1]), torch.arange(own.shape[2]))
    pairs = pairs[torch.randperm(len(pairs), generator=generator)[: options.heads]]
    changes = []
    for layer, head in tqdm(pairs.tolist(), "heads"):
        site = f"blocks.{layer}.attn.hook_z"
        mean = captured[site][:, head].mean(0)

        def replaced(z: torch.Tensor, mean: torch.Tensor = mean, head: int = head) -> torch.Tensor:
            z = z.clone()
            z[:, -1, head] = mean
            return z

        logits = vlm.capture(batch, site, reduce="last", edits={site: replaced})["logits"]
        changes.append(difference(logits) - plain)
    seen = torch.stack(changes, 1)
    said = expected[:, pairs[:, 0], pairs[:, 1]]
    strong = said.abs() >= said.abs().quantile(0.9)
    late = pairs[:, 0] >= own.shape[1] * 2 // 3
    return {
        "examples": len(examples),
        "heads": len(pairs),
        "parts - logit, relative": missed,
        "tokens": vlm.token_strings([target, against]),
        "rank correlation": rank(said, seen),
        "rank correlation, last third of the layers": rank(said[:, late], seen[:, late]),
        "same sign, tenth with the largest parts": round(
            float((said[strong].sign() == seen[strong].sign()).float().mean()), 3
        ),
    }


PARTS = {"lens": lens, "direct": direct, "tuned": tuned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--examples", type=int, default=150, help="of the tuned lens; a fifth is held out")
    parser.add_argument("--steps", type=int, default=250, help="of the tuned lens")
    parser.add_argument("--ablated", type=int, default=16, help="examples whose heads are replaced")
    parser.add_argument("--heads", type=int, default=90, help="how many of the heads, drawn at random")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "inside.json")
    options = parser.parse_args()
    vlm = li.load("reference")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(options.out.read_text()) if options.out.exists() else {}
    report["weights"] = vlm.fingerprint
    for name in options.parts:
        report[name] = PARTS[name](vlm, options)
        print(name, json.dumps({k: v for k, v in report[name].items() if k != "layers"}, indent=2))
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
