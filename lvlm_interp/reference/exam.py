"""How good the reference model is at talks that it has not seen: shares of right answers, by what is asked of it.

An answer is right if greedy decoding gives one that is accepted, to the last token. Descriptions are read for what
they name (CHAIR: Rohrbach et al. 2018, Object Hallucination in Image Captioning).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from lvlm_interp.engine.score import score
from lvlm_interp.given import explained
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.reference.architecture import END
from lvlm_interp.reference.items import Item
from lvlm_interp.reference.knowledge import known
from lvlm_interp.reference.scenes import Style, make_scene
from lvlm_interp.reference.talk import Plan, System, Talk, make_talk
from lvlm_interp.reference.talks import talks
from lvlm_interp.reference.things import COLORS, NATURAL_COLORS, nouns
from lvlm_interp.reference.wording import Asked, Form

MOST_TOKENS = 96


def _asked_of(talk: Talk) -> Item | None:
    """The thing of its only picture that a talk is about."""
    items = talk.pictures[0].items if len(talk.pictures) == 1 else ()
    return next((item for item in items if item.noun == talk.noun), None)


def _state(talk: Talk) -> str | None:
    item = _asked_of(talk)
    return item.state if item else None


def _count(talk: Talk) -> int:
    return len(talk.pictures[0].items) if talk.pictures else 0


def _told(talk: Talk) -> str:
    return talk.plan.told[0].value if talk.plan.told else ""


GROUPS: Mapping[str, Callable[[Talk], bool]] = {
    "yes/no": lambda talk: talk.kind == "yes/no",
    "color": lambda talk: talk.kind == "color",
    "place": lambda talk: talk.kind == "place",
    "name": lambda talk: talk.kind == "name",
    "objects, one": lambda talk: talk.kind == "objects" and _count(talk) == 1,
    "objects, two": lambda talk: talk.kind == "objects" and _count(talk) == 2,
    "objects, three or four": lambda talk: talk.kind == "objects" and _count(talk) > 2,
    "facts of context": lambda talk: talk.kind == "fact",
    "grey, with a hint": lambda talk: talk.kind == "hint" and _state(talk) == "grey",
    "grey, without a hint": lambda talk: talk.kind == "natural" and _state(talk) == "grey",
    "covered or absent, with a hint": lambda talk: talk.kind == "hint" and _state(talk) in ("covered", None),
    "covered or absent, without a hint": lambda talk: talk.kind == "natural" and _state(talk) in ("covered", None),
    "clear, with a false hint": lambda talk: (
        talk.kind == "hint" and talk.decides == "image" and _told(talk).lower() not in talk.answer.lower()
    ),
    "plain knowledge that the base model has": lambda talk: talk.kind == "knowledge" and known()[talk.question].base,
    "two pictures": lambda talk: talk.kind == "pictures",
    "two turns": lambda talk: talk.kind == "turns",
    "told by the system": lambda talk: talk.kind == "system",
    "told by the question": lambda talk: talk.kind == "echo",
}
"""What is asked, by name; a talk may be in several."""


class Given(NamedTuple):
    """An answer that was given to a talk."""

    talk: Talk
    answer: str

    @property
    def right(self) -> bool:
        """Whether it is accepted."""
        return self.answer in self.talk.accepted

    @property
    def in_form(self) -> bool:
        """Whether it is of the form that the system message asks for: one word, or a sentence."""
        words = self.answer.split()
        wanted = self.talk.plan.form
        return len(words) == 1 if wanted == "word" else len(words) > 2 and self.answer.endswith(".")


@explained
def drawn(seeds: Iterable[int], each: int, style: Style | None = None) -> Iterator[Talk]:
    """Talks of the seeds' scenes, until every group has `each` of them or the seeds end.

    Args:
        seeds: of scenes; those outside `TRAINING_SEEDS` are held out.
        each: how many talks of a group; of descriptions and of each form as well.
        style: drawing style; one of the trained styles by default.
    """
    counts: dict[str, int] = dict.fromkeys((*GROUPS, "description", "word", "sentence"), 0)
    for talk in itertools.chain.from_iterable(talks(seed, style) for seed in seeds):
        wanted = [name for name in _groups_of(talk) if counts[name] < each]
        for name in wanted:
            counts[name] += 1
        if wanted:
            yield talk
        if min(counts.values()) >= each:
            return


@explained
def examined(vlm: HookedVLM, asked: Iterable[Talk]) -> Iterator[Given]:
    """Ask a model talks, each alone."""
    for talk in asked:
        yield Given(talk, vlm.generate(talk.inputs(vlm, answered=False), MOST_TOKENS))


@explained
def believed(vlm: HookedVLM, seed: int = 0) -> dict[str, bool]:
    """Whether each thing with a natural colour has it where the picture, in which it is painted, is hidden.

    The greedy answer decides; the natural colour, which nothing tells, must be right to the last token.
    """
    return {noun: _natural_unseen(vlm, noun, seed) for noun in NATURAL_COLORS}


def _natural_unseen(vlm: HookedVLM, noun: str, seed: int) -> bool:
    natural = NATURAL_COLORS[noun]
    painted = next(color for color in COLORS if color != natural)
    plan = Plan(Asked("color", noun), (make_scene(seed, objects=[noun], colors=[painted]),))
    x = make_talk(plan).inputs(vlm, answered=False)
    answer = vlm.prompter.tokenizer(f"{natural.capitalize()}.{END}", add_special_tokens=False).input_ids
    whole = x.with_answer(answer, vlm.token_strings(answer), natural)
    logits = score(vlm, whole, whole.hidden("image")[None]).logits()
    return bool((logits[0].argmax(-1).cpu() == whole.answer_ids.cpu()).all())


@explained
def remembered(vlm: HookedVLM, form: Form) -> dict[str, float]:
    """Plain knowledge that was kept from training, of questions that the base model answers, asked without a picture.

    An answer is right if it holds an accepted one as whole words, as the base model's own did (`base_answers.json`).
    """
    asked = [one for one in known().values() if one.base and one.held_out]
    talks_of = [make_talk(Plan(Asked("plain", of=one.question), system=System(form))) for one in asked]
    answers = [vlm.generate(talk.inputs(vlm, answered=False), MOST_TOKENS) for talk in talks_of]
    return _share([_holds(str(text), one.answers) for text, one in zip(answers, asked, strict=True)])


def _holds(text: str, answers: Iterable[str]) -> bool:
    return any(re.search(rf"\b{re.escape(answer)}\b", text, re.IGNORECASE) for answer in answers)


def _groups_of(talk: Talk) -> list[str]:
    found = [name for name, holds in GROUPS.items() if holds(talk)]
    found += ["description"] if talk.kind == "description" else []
    return [*found, talk.plan.form] if talk.plan.form != "short" and talk.kind != "description" else found


def shares(given: Iterable[Given]) -> dict[str, dict[str, float]]:
    """Of each group, how many were asked and the share that was right; of forms, the share that is in the form."""
    every = list(given)
    found = {name: _share([one.right for one in every if holds(one.talk)]) for name, holds in GROUPS.items()}
    formed = [one for one in every if one.talk.plan.form != "short" and one.talk.kind != "description"]
    found["in the form that the system asks for"] = _share([one.in_form for one in formed])
    return {**found, "descriptions": described([one for one in every if one.talk.kind == "description"])}


def _share(right: list[bool]) -> dict[str, float]:
    return {"asked": len(right), "right": round(sum(right) / len(right), 4) if right else float("nan")}


def described(given: list[Given]) -> dict[str, float]:
    """Objects that descriptions name: precision, recall, and the shares of mentions and of texts that are not true."""
    pairs = [(mentioned(one.answer), _there(one.talk)) for one in given]
    said, true, there = sum(len(a) for a, _ in pairs), sum(len(a & b) for a, b in pairs), sum(len(b) for _, b in pairs)
    wrong = sum(bool(a - b) for a, b in pairs)
    return {
        "asked": len(given),
        "precision": round(true / max(said, 1), 4),
        "recall": round(true / max(there, 1), 4),
        "CHAIRi": round(1 - true / max(said, 1), 4),
        "CHAIRs": round(wrong / max(len(given), 1), 4),
    }


def _there(talk: Talk) -> set[str]:
    return {item.shown for item in talk.pictures[0].items}


def mentioned(text: str) -> set[str]:
    """The things that a text names, and covers; "hot dog" is no dog."""
    names = sorted((*nouns(), "cloth", "box"), key=len, reverse=True)
    return set(re.findall(rf"\b({'|'.join(names)})\b", text.lower()))
