"""What is right when a source is hidden: the answer by the same rule, from what is left to see."""

from __future__ import annotations

from collections.abc import Collection

from lvlm_interp.errors import SceneError
from lvlm_interp.reference.rule import Given, Source, decide
from lvlm_interp.reference.talk import Talk
from lvlm_interp.reference.wording import answer_text


def answer_without(talk: Talk, hidden: Collection[Source]) -> str:
    """The right answer to a talk of which these sources are not seen.

    The rule decides by what is left: without its picture a banana is yellow, or what a hint says. Where nothing that is
    left tells anything, the talk's own answer stands: over many talks it is a draw from what may be asked and shown, so
    that what is learnt is how likely each answer is.
    """
    plan = talk.plan
    pictures, told, system = plan.given.pictures, plan.given.told, plan.given.system
    if "question" in hidden:
        return talk.answer
    left = Given(
        () if "image" in hidden else pictures,
        () if "context" in hidden else told,
        () if "system" in hidden else system,
    )
    try:
        _, value = decide(plan.asked, left)
    except SceneError:
        return talk.answer
    return answer_text(plan.asked, value, plan.form, len(pictures)) or talk.answer
