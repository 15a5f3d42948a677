"""Are circuits what they are said to be? `python benchmarks/circuits.py --out benchmarks/results/circuits.json`

Pairs of one held-out scene with an object in two colours, of which the model names both. Heads and MLPs are ranked on
some pairs and kept on others: by attribution patching along the way between both runs (EAP-IG's steps), by what they
write themselves into the lead (direct attribution), and by chance. And what attribution patching tells of every
head, query, key, value and MLP is held against exchanging it, with its fixes and without.
"""

import argparse
import dataclasses
import json
import platform
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

import lvlm_interp as li
from lvlm_interp.inputs.words import split_words
from lvlm_interp.interventions.tracing import Pair
from lvlm_interp.reference import make_scene
from lvlm_interp.reference.scenes import COLORS, Scene

SIZES = (0.05, 0.1, 0.15, 0.3)
STEPS = 5
KINDS: Mapping[str, Sequence[str]] = {"heads and MLPs": ("z", "mlp"), "queries, keys and values": ("q", "k", "v")}
UNFIXED = {"drop": False, "qk_fix": False}


def pairs_of(vlm: li.HookedVLM, count: int, seed: int) -> Iterator[Pair]:
    """One for each scene whose two colours the model names."""
    found = 0
    while found < count:
        scene, number = make_scene(seed), seed
        seed += 1
        item = next((item for item in scene.items if item.recolored), None)
        if item is None:
            continue
        color = random.Random(f"pair:{number}").choice([one for one in COLORS if one != item.color])
        paints = [color if one is item else one.paint for one in scene.items]
        both = [_answered(vlm, one, item.noun) for one in (scene, scene.redrawn(colors=paints))]
        if both[0] is not None and both[1] is not None and both[0].answer_ids[0] != both[1].answer_ids[0]:
            found += 1
            yield both[0], both[1]


def _answered(vlm: li.HookedVLM, scene: Scene, noun: str) -> li.Inputs | None:
    """The question of a thing's colour with the colour, where the model names it."""
    question = next((q for q in scene.questions() if q.kind == "color" and q.noun == noun), None)
    if question is None:
        return None
    x = vlm.prepare(f"What color is the {noun}?", scene.image)
    answer = vlm.generate(x, max_new_tokens=8)
    if answer != question.answer:
        return None
    word = split_words(vlm.token_strings(answer.ids))[0]
    return vlm.answered(x, li.Answer(word.text, answer.ids[: word.stop]))


def written(vlm: li.HookedVLM, pairs: Sequence[Pair], names: Sequence[str]) -> list[str]:
    """Heads and MLPs by how much of the lead's difference they write themselves, the most first."""
    sums = dict.fromkeys(names, 0.0)
    for clean, corrupt in pairs:
        other = corrupt.with_answer(clean.answer_ids.tolist(), clean.answer_tokens, clean.answer)
        tokens = {"target": int(clean.answer_ids[0]), "against": int(corrupt.answer_ids[0])}
        one, two = (li.direct(vlm, x, **tokens) for x in (clean, other))
        heads, mlps = one.heads[0] - two.heads[0], one.mlps[0] - two.mlps[0]
        for layer in range(vlm.depth):
            sums[f"L{layer} MLP"] += float(mlps[layer])
            for head, gain in enumerate(heads[layer].tolist()):
                sums[f"L{layer}H{head}"] += gain
    return sorted(names, key=lambda name: -abs(sums[name]))


def circuits_of(vlm: li.HookedVLM, pairs: Sequence[Pair], held_out: Sequence[Pair]) -> dict[str, object]:
    """Faithfulness of the first components on pairs that they were not ranked by."""
    ranked = li.attribution_patching(vlm, pairs, steps=STEPS, exact=0, progress=True)
    orders = {"attribution patching": ranked, "direct attribution": written(vlm, pairs, ranked.names)}
    kept = li.circuits(vlm, held_out, orders, SIZES, progress=True)
    columns = ["order", "size", "kept", "faithfulness", "low", "high", "completeness"]
    told = {"lead, all": kept.whole, "lead, none": kept.nothing, "ranked on": len(pairs), "pairs": len(held_out)}
    return {**told, "sizes": _rounded(kept.to_frame()[columns].to_dict("records"))}


def agreements(vlm: li.HookedVLM, pairs: Sequence[Pair], exact: int) -> dict[str, object]:
    """What attribution patching tells beside exchanges in earnest, with its fixes and without."""
    told: dict[str, object] = {}
    for name, nodes in KINDS.items():
        fixed = li.attribution_patching(vlm, pairs, nodes=nodes, exact=exact, progress=True)
        plain = li.attribution_patching(vlm, pairs, nodes=nodes, exact=0, progress=True, **UNFIXED)
        ways = {"with fixes": fixed, "without": dataclasses.replace(plain, exact=fixed.exact)}
        told[name] = _rounded([{"way": way, **found.agreement()} for way, found in ways.items()])
    return {"pairs": len(pairs), **told}


def _rounded(rows: Iterable[Mapping[str, object]]) -> list[dict[str, object]]:
    return [{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Are circuits what they are said to be?")
    parser.add_argument("--ranked", type=int, default=20, help="pairs that components are ranked by")
    parser.add_argument("--held-out", type=int, default=50, help="other pairs, that circuits are kept on")
    parser.add_argument(
        "--exchanged", type=int, default=5, help="pairs on which each component is exchanged in earnest"
    )
    parser.add_argument("--exact", type=int, default=10_000, help="how many components that is, of each kind")
    parser.add_argument("--seed", type=int, default=40_000, help="first scene; training never used these")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args(None if arguments is None else list(arguments))
    torch.set_num_threads(1)
    vlm = li.load("reference")
    found = [*pairs_of(vlm, options.ranked + options.held_out, options.seed)]
    pairs, held_out = found[: options.ranked], found[options.ranked :]
    about = {"weights": vlm.fingerprint, "seed": options.seed, "exchanged": options.exchanged}
    parts: Mapping[str, Callable[[], object]] = {
        "agreement": lambda: agreements(vlm, pairs[: options.exchanged], options.exact),
        "circuits": lambda: circuits_of(vlm, pairs, held_out),
    }
    told = {"processor": platform.processor() or platform.machine(), **about, **kept_of(options.out, about, parts)}
    for name, made in parts.items():
        told[name] = told[name] if name in told else made()
        if options.out:  # each takes half an hour: what is measured is kept
            options.out.write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(told, indent=2))


def kept_of(path: Path | None, about: Mapping[str, object], parts: Iterable[str]) -> dict[str, object]:
    """What an earlier run, of the same, has measured already."""
    found = json.loads(path.read_text()) if path and path.exists() else {}
    same = all(found.get(name) == value for name, value in about.items())
    return {name: found[name] for name in parts if same and name in found}


if __name__ == "__main__":
    main()
