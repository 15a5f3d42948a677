"""What a model is asked about the reference world, with the right answer and the source that decides it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from lvlm_interp.errors import SceneError
from lvlm_interp.given import explained, explaining
from lvlm_interp.inputs import chat
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.reference.architecture import END, IMAGE_TOKEN, START
from lvlm_interp.reference.knowledge import known
from lvlm_interp.reference.rule import Claim, Given, Source, decide
from lvlm_interp.reference.scenes import KIND_OF, Scene
from lvlm_interp.reference.wording import Asked, Form, answer_text, question_text

TalkKind = Literal[
    "yes/no", "color", "place", "name", "objects", "description", "fact", "hint", "natural", "knowledge", "system",
    "echo", "turns", "pictures",
]  # fmt: skip
KINDS: tuple[TalkKind, ...] = get_args(TalkKind)
FACTS = ("price", "called", "owner", "age")
"""What context tells and no picture shows."""
FORM_TEXTS: dict[Form, tuple[str, ...]] = {
    "word": ("Answer in one word.", "Use one word only.", "Reply with a single word.", "Give one-word answers."),
    "sentence": (
        "Answer in a full sentence.",
        "Reply with a complete sentence.",
        "Use full sentences.",
        "Always answer in whole sentences.",
    ),
    "short": ("Answer briefly.", "Keep your answers short.", "Give short answers."),
}


@dataclass(frozen=True)
class System:
    """A system message as data: the form that it asks for, or what it tells (`Claim("self", "", "Max")`)."""

    form: Form = "short"
    tells: Claim | None = None
    phrasing: int = 0

    @property
    def text(self) -> str:
        """Its words."""
        found = FORM_TEXTS[self.form]
        return self.tells.text if self.tells else found[self.phrasing % len(found)]


@dataclass(frozen=True)
class Plan:
    """A talk as data, from which its words and its right answer follow.

    Attributes:
        asked: the last question.
        pictures: what is shown.
        told: what is told in context.
        system: the system message, if there is one.
        before: the questions of earlier turns.
        phrasing: which of the ways to ask it.
    """

    asked: Asked
    pictures: tuple[Scene, ...] = ()
    told: tuple[Claim, ...] = ()
    system: System | None = None
    before: tuple[Asked, ...] = ()
    phrasing: int = 0

    @property
    def given(self) -> Given:
        """What answers may come from, beside the question."""
        system = (self.system.tells,) if self.system and self.system.tells else ()
        return Given(self.pictures, self.told, system)

    @property
    def form(self) -> Form:
        """How answers are given."""
        return self.system.form if self.system else "short"


class Turn(NamedTuple):
    """An earlier question and its answer."""

    question: str
    answer: str


@explaining
@dataclass(frozen=True)
class Talk:
    """What a model is asked, of any kind, and what is right.

    Attributes:
        pictures: none, one or two scenes.
        system: the system message.
        context: sentences before the first question.
        turns: earlier questions with their answers.
        question: what is asked last.
        answer: the right answer, in the form that the system message asks for.
        accepted: all answers that are right, `answer` first.
        kind: what kind of talk it is.
        noun: the noun that is asked about; None where there is none.
        decides: the source that the answer comes from, see `rule.decide`.
        plan: the same as data.
    """

    pictures: tuple[Scene, ...]
    system: str | None
    context: tuple[str, ...]
    turns: tuple[Turn, ...]
    question: str
    answer: str
    accepted: tuple[str, ...]
    kind: TalkKind
    noun: str | None
    decides: Source
    plan: Plan = field(repr=False)

    def messages(self) -> list[chat.Message]:
        """Chat messages as transformers takes them; pictures and context stand in the first of the user."""
        first, *others = [*(turn.question for turn in self.turns), self.question]
        images = [scene.image for scene in self.pictures]
        found = chat.conversation(first, images, " ".join(self.context) or None, self.system)
        for turn, question in zip(self.turns, others, strict=True):
            found += [_said("assistant", turn.answer), _said("user", question)]
        return found

    def inputs(self, vlm: HookedVLM, answered: bool = True) -> Inputs:
        """The talk as inputs of a model, with the role of every position; with the right answer unless not `answered`.

        Earlier turns, like the sentences before them, are context.
        """
        return vlm.prepare_chat(self.messages(), answer=self.answer if answered else None)

    def text(self) -> str:
        """The prompt as the reference model's template writes it, `<image>` for each picture."""
        lines = (f"{START}{m['role']}\n{''.join(map(_written, m['content']))}{END}\n" for m in self.messages())
        return f"{''.join(lines)}{START}assistant\n"


def _said(role: str, text: str) -> chat.Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _written(part: chat.Message) -> str:
    return f"{IMAGE_TOKEN}\n" if part["type"] == "image" else str(part["text"])


@explained
def make_talk(plan: Plan) -> Talk:
    """The talk of a plan: its words, its right answer, and the source that decides it.

    Raises:
        SceneError: more than two pictures, nothing tells the answer, a source tells two, the answer does not go into
            the form that is asked for, or "it" is not what the turn before named.
    """
    if len(plan.pictures) > 2:
        raise SceneError(f"a talk shows at most two pictures; got {len(plan.pictures)}")
    source, value = decide(plan.asked, plan.given)
    turns = tuple(_turn(plan, asked) for asked in plan.before)
    if plan.asked.it:
        _need_named(plan)
    accepted = _accepted(plan, plan.asked, value)
    return Talk(
        plan.pictures,
        plan.system.text if plan.system else None,
        tuple(claim.text for claim in plan.told),
        turns,
        question_text(plan.asked, len(plan.pictures), plan.phrasing),
        accepted[0],
        accepted,
        _kind(plan, source),
        plan.asked.noun or None,
        source,
        plan,
    )


def _turn(plan: Plan, asked: Asked) -> Turn:
    _, value = decide(asked, plan.given)
    return Turn(question_text(asked, len(plan.pictures)), _accepted(plan, asked, value)[0])


def _accepted(plan: Plan, asked: Asked, value: str) -> tuple[str, ...]:
    """All right answers in the form that is asked for, the usual one first."""
    values = known()[asked.of].answers if asked.about == "plain" else (value,)
    texts = (answer_text(asked, one, plan.form, len(plan.pictures)) for one in values)
    if found := tuple(text for text in texts if text):
        return found
    raise SceneError(f"{value!r} is no answer in one word, which the system message asks for")


def _need_named(plan: Plan) -> None:
    """Raise unless the turn before named the thing that the question calls "it"."""
    before = plan.before[-1] if plan.before else None
    if before is None:
        raise SceneError('"it" is a thing that a turn before names, and there is none')
    _, value = decide(before, plan.given)
    if value == "no" or plan.asked.noun not in (before.noun, value):
        raise SceneError(f'"it" is not {plan.asked.noun!r}: the turn before names {before.noun or value!r}')


def _kind(plan: Plan, source: Source) -> TalkKind:
    about = plan.asked.about
    if plan.before:
        return "turns"
    if len(plan.pictures) > 1:
        return "pictures"
    if about in FACTS:
        return "fact"
    if about in ("color", "under") and plan.told:
        return "hint"
    if about == "color" and source == "knowledge":
        return "natural"
    plain: dict[str, TalkKind] = {"plain": "knowledge", "word": "echo", "self": "system", "description": "description"}
    return plain[about] if about in plain else KIND_OF[about]
