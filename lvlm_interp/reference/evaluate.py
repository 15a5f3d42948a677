"""How good the reference model is on scenes that it has not seen.

Each question alone, greedy, right to the last token; the same questions with the image hidden, and what a blind guess
(the most frequent answer of each kind) gets.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from lvlm_interp.engine.score import score
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.reference.architecture import END
from lvlm_interp.reference.scenes import Question, Scene


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
    logits = score(vlm, whole, torch.stack([whole.everything, whole.hidden("image")])).logits()
    seen, blind = (logits.argmax(-1).cpu() == whole.answer_ids.cpu()).all(1).tolist()
    return seen, blind


@explained
def ask(vlm: HookedVLM, scenes: Iterable[Scene]) -> Iterator[Asked]:
    """Ask one question of each kind about every scene."""
    for scene in scenes:
        for question in one_of_each_kind(scene):
            x = vlm.prepare(question.text, scene.image, answer=question.answer)
            yield Asked(question, *greedy_is_right(vlm, x))


@explained
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
