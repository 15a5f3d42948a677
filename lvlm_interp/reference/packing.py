"""Questions about one scene, packed into one row that shares its image."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch

from lvlm_interp.reference import scenes
from lvlm_interp.reference.architecture import END, PROMPT
from lvlm_interp.reference.learner import GRID, Batch, Learner, Stage
from lvlm_interp.reference.scenes import Scene

ASKED_AT_MOST = {"objects": 1, "name": 1, "place": 1}  # of a scene; for the other kinds see `Stage`
IGNORED = -100
IMAGE, QUESTION = 1, 2  # sources that the last stage hides, as bits


def sample_questions(scene: Scene, stage: Stage) -> list[scenes.Question]:
    """A mix of kinds, so that yes/no questions do not crowd out the rest."""
    left, chosen = ASKED_AT_MOST | {"yes/no": stage.yes_no, "color": stage.colors}, []
    for question in scene.questions():
        if left[question.kind]:
            left[question.kind] -= 1
            chosen.append(question)
    return chosen


class Packed(NamedTuple):
    """Every row of a scene and its questions, and the kinds of the questions.

    `block` is the number of the question (0: shared prefix), `source` what the row is part of (`IMAGE`, `QUESTION` or
    0), `hidden` which of those it does not see (their sum).
    """

    ids: list[int]
    positions: list[int]
    block: list[int]
    labels: list[int]
    source: list[int]
    hidden: list[int]
    kinds: list[str]


def pack(learner: Learner, scene: Scene, stage: Stage) -> Packed:
    """The scene with its questions; what is hidden from each is drawn from the scene's seed."""
    rng = random.Random(f"hide:{scene.seed}")
    before, after = PROMPT.split("{image}")
    first = learner.ids(before)
    shared = len(first) + GRID**2
    source = [0] * len(first) + [IMAGE] * GRID**2
    row = Packed(first + [0] * GRID**2, list(range(shared)), [0] * shared, [IGNORED] * shared, source, [0] * shared, [])
    for number, question in enumerate(sample_questions(scene, stage), 1):
        asked, is_question = _asked(learner, after, question.text)
        answer = learner.ids(question.answer + END)
        length = len(asked) + len(answer)
        row.ids.extend(asked + answer)
        row.positions.extend(range(shared, shared + length))
        row.block.extend([number] * length)
        row.labels.extend([IGNORED] * len(asked) + answer)
        row.source.extend([QUESTION * i for i in is_question] + [0] * len(answer))
        row.hidden.extend([_hidden(rng, stage)] * length)
        row.kinds.append(question.kind)
    return row


def _hidden(rng: random.Random, stage: Stage) -> int:
    return QUESTION * (rng.random() < stage.hidden_question) + IMAGE * (rng.random() < stage.hidden_image)


def _asked(learner: Learner, template: str, question: str) -> tuple[list[int], list[bool]]:
    """Tokens of a question in its template, and which of them are the question's own."""
    start = template.index("{question}")
    found = learner.tokenizer(template.format(question=question), add_special_tokens=False, return_offsets_mapping=True)
    inside = [start <= a < start + len(question) for a, _ in found.offset_mapping]
    return found.input_ids, inside


def collate(learner: Learner, batch: Sequence[Scene], stage: Stage) -> Batch:
    packed = [pack(learner, scene, stage) for scene in batch]
    length = max(len(row.ids) for row in packed)
    ids, positions, block, labels, source, hidden = (
        torch.tensor([row[i] + [fill] * (length - len(row[i])) for row in packed])
        for i, fill in enumerate((0, 0, -1, IGNORED, 0, 0))
    )
    same = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])
    shown = (source[:, None, :] & hidden[:, :, None]) == 0
    see = torch.tril(torch.ones(length, length, dtype=torch.bool)) & same & shown
    return Batch(learner.features(batch), ids, positions, labels, see[:, None], [row.kinds for row in packed])
