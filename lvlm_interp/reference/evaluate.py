"""How good the reference model is on scenes that it has not seen: `python -m lvlm_interp.reference.evaluate`.

Each question alone, greedy, right to the last token; the same questions with the image hidden, and what a blind guess
(the most frequent answer of each kind) gets.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from lvlm_interp.model.inputs import Inputs
from lvlm_interp.model.score import score
from lvlm_interp.reference.architecture import END
from lvlm_interp.reference.scenes import HELD_OUT_STYLE, Question, Scene, Style, make_scenes

if TYPE_CHECKING:
    from lvlm_interp.model.vlm import HookedVLM

AT_ONCE = 10  # scenes of one task


@dataclass(frozen=True)
class Asked:
    """One question that was asked, and whether the answer was right with and without the image."""

    question: Question
    right: bool
    right_blind: bool


def one_of_each_kind(scene: Scene) -> list[Question]:
    """The first question of each kind, so that no kind crowds out another; recoloured objects come first."""
    recolored = {item.noun for item in scene.items if item.recolored}
    first: dict[str, Question] = {}
    for question in sorted(scene.questions(), key=lambda q: q.kind == "color" and q.noun not in recolored):
        first.setdefault(question.kind, question)
    return list(first.values())


def greedy_is_right(vlm: HookedVLM, x: Inputs) -> tuple[bool, bool]:
    """Whether greedy decoding gives exactly the answer of `x`, with the image and with its tokens hidden.

    It does if and only if every token of it, the end of the turn included, is the most likely one after those before.
    """
    end = vlm.prompter.tokenizer.convert_tokens_to_ids(END)
    whole = x.with_answer([*x.answer_ids.tolist(), end], [*x.answer_tokens, END], x.answer)
    logits = score(vlm, whole, torch.stack([whole.hidden(), whole.hidden("image")])).logits()
    seen, blind = (logits.argmax(-1).cpu() == whole.answer_ids.cpu()).all(1).tolist()
    return seen, blind


def ask(vlm: HookedVLM, scenes: Iterable[Scene]) -> Iterator[Asked]:
    """Ask one question of each kind about every scene."""
    for scene in scenes:
        for question in one_of_each_kind(scene):
            x = vlm.prepare(question.text, scene.image, answer=question.answer)
            yield Asked(question, *greedy_is_right(vlm, x))


def summary(asked: Sequence[Asked]) -> dict[str, dict[str, float]]:
    """For each kind: questions, share right with and without the image, and what the best constant answer gets."""
    groups: dict[str, list[Asked]] = defaultdict(list)
    for one in asked:
        groups[one.question.kind].append(one)
    return {
        kind: {
            "questions": len(group),
            "right": round(sum(a.right for a in group) / len(group), 4),
            "image_hidden": round(sum(a.right_blind for a in group) / len(group), 4),
            "blind_guess": round(Counter(a.question.answer for a in group).most_common(1)[0][1] / len(group), 4),
        }
        for kind, group in sorted(groups.items())
    }


@functools.cache
def _opened(model: str) -> HookedVLM:
    """The model, opened once in each worker; two workers of one thread do more than one of two."""
    from lvlm_interp.model.opening import load

    torch.set_num_threads(1)
    return load(model)


def _some(task: tuple[str, int, int, Style | None]) -> list[Asked]:
    model, count, seed, style = task
    return list(ask(_opened(model), make_scenes(count, seed, style)))


def evaluate(
    model: str, count: int, seed: int = 0, style: Style | None = None, workers: int = 2
) -> dict[str, dict[str, float]]:
    """The summary over the scenes of seeds `seed` … `seed + count - 1`, in the trained styles or in one style."""
    tasks = [(model, min(AT_ONCE, seed + count - first), first, style) for first in range(seed, seed + count, AT_ONCE)]
    with get_context("spawn").Pool(workers) as pool:
        name = f"{AT_ONCE} scenes each ({style or 'trained styles'})"
        found = list(tqdm(pool.imap(_some, tasks), total=len(tasks), desc=name))
    return summary([one for some in found for one in some])


def main(arguments: Sequence[str] | None = None) -> None:
    from lvlm_interp.model.opening import load

    parser = argparse.ArgumentParser(description="Held-out scores of the reference model.")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--unseen", type=int, default=100, help="scenes in the style that was not trained on")
    parser.add_argument("--seed", type=int, default=0, help="first scene; training never used seeds below 1000000")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, help="write the scores as JSON")
    options = parser.parse_args(arguments)
    vlm = load(options.model)
    found = {
        "trained styles": evaluate(options.model, options.scenes, options.seed, None, options.workers),
        f"unseen style ({HELD_OUT_STYLE})": evaluate(
            options.model, options.unseen, options.seed, HELD_OUT_STYLE, options.workers
        ),
    }
    text = json.dumps({"model": vlm.name, "weights": vlm.fingerprint, "seed": options.seed, **found}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
