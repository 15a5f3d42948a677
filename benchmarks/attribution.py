"""Do credit and heatmaps say what is true? `python benchmarks/attribution.py`

Recoloured objects in held-out scenes: the colour stands only in the picture, and the language model has another one in
mind. So for a correct answer to "What color is the X?" the image must carry the word, and the map must point at X.
"""

import argparse
import json
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm.auto import tqdm

import lvlm_interp as li
from lvlm_interp.inputs.words import split_words
from lvlm_interp.reference import make_scene
from lvlm_interp.reference.scenes import Item

CHUNK, SEEDS_EACH = 10, 1000  # answers of one task, and seeds that it may draw scenes from


def correct_answers(vlm: li.HookedVLM, count: int, seed: int) -> Iterator[tuple[li.Inputs, Item]]:
    """Questions about recoloured objects that the model answers correctly, one a scene."""
    found = 0
    while found < count:
        scene = make_scene(seed)
        seed += 1
        item = next((item for item in scene.items if item.recolored), None)
        question = next((q for q in scene.questions() if item and q.kind == "color" and q.noun == item.noun), None)
        if item is None or question is None:
            continue
        x = vlm.prepare(question.text, scene.image)
        answer = vlm.generate(x, max_new_tokens=8)
        if answer == question.answer:
            found += 1
            word = split_words(vlm.token_strings(answer.ids))[0]  # the colour, without the full stop
            yield vlm.answered(x, li.Answer(word.text, answer.ids[: word.stop])), item


def image_leads(split: li.CreditSplit) -> bool:
    """Whether the image has the largest part of the first word, prior included."""
    parts = {"prior": split.prior[0], **{role: split.of(role)[0] for role in split.roles}}
    return max(parts, key=lambda name: float(parts[name])) == "image"


def gap(split: li.CreditSplit) -> float:
    """Nats by which prior and credits miss the total, over both values."""
    both = [split.with_value(value) for value in ("odds", "full")]
    return max(float((s.prior + s.credits.sum(1) - s.total).abs().max()) for s in both)


def inside(found: li.PatchMap, item: Item, slack: float) -> bool:
    """Whether the middle of the hottest patch lies in the object's box, give or take `slack` pixels."""
    left, top, right, bottom = found.peak_box(0)
    x, y = (left + right) / 2, (top + bottom) / 2
    a, b, c, d = item.box
    return a - slack <= x <= c + slack and b - slack <= y <= d + slack


def measured(vlm: li.HookedVLM, x: li.Inputs, item: Item) -> dict[str, float]:
    free, delta = li.credit(vlm, x, unit="word"), li.contrast(vlm, x).delta_nats
    asked = free.keeping("question")
    row = {
        "odds: image leads": image_leads(free),
        "odds, question kept: image leads": image_leads(asked),
        "full: image leads": image_leads(free.with_value("full")),
        "full, question kept: image leads": image_leads(asked.with_value("full")),
        "odds: image (nats)": float(free.image[0]),
        "odds: question (nats)": float(free.question[0]),
        "odds: prior (nats)": float(free.prior[0]),
        "largest gap to the total (nats)": max(gap(free), gap(asked)),
        "largest |full image credit - CAL delta| (nats)": abs(float(asked.with_value("full").image[0] - delta.sum())),
    }
    found = li.attribute(vlm, x).words(split_words(x.answer_tokens))
    row["occlusion: peak in the box"] = inside(found, item, 0)
    row["occlusion: peak in the box, half a patch more"] = inside(found, item, 7)
    return row


def opened() -> li.HookedVLM:
    """The reference model, opened once in each worker."""
    if not WORKER:
        torch.set_num_threads(1)  # two workers of one thread do more than one of two
        WORKER.append(li.load("reference"))
    return WORKER[0]


WORKER: list[li.HookedVLM] = []


def chunk(first: int) -> list[dict[str, float]]:
    """What is measured on the next answers from one seed on."""
    vlm = opened()
    return [measured(vlm, x, item) for x, item in correct_answers(vlm, CHUNK, first)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "attribution.json")
    options = parser.parse_args()
    vlm, rows = li.load("reference"), []
    seeds = [options.seed + SEEDS_EACH * n for n in range(-(-options.answers // CHUNK))]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with get_context("spawn").Pool(options.workers) as pool:
        for found in tqdm(pool.imap_unordered(chunk, seeds), total=len(seeds), desc=f"{CHUNK} answers each"):
            rows += found  # a run that is cut keeps what it measured
            options.out.write_text(json.dumps(summary(vlm, rows, options.seed), indent=2) + "\n")
    print(options.out.read_text())


def summary(vlm: li.HookedVLM, rows: list[dict[str, float]], seed: int) -> dict[str, object]:
    """Means over the answers, and the largest of what must be nothing."""
    columns = {name: torch.tensor([float(row[name]) for row in rows]) for name in rows[0]}
    found = {name: round(float(c.max() if "largest" in name else c.mean()), 7) for name, c in columns.items()}
    return {"model": vlm.name, "weights": vlm.fingerprint, "answers": len(rows), "seed": seed, **found}


if __name__ == "__main__":
    main()
