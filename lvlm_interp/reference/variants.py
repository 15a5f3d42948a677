"""Talks with one source replaced: what the right answer follows is seen by changing the real input.

A source that says something about what is asked says something else in its variants, and one that says nothing goes on
saying nothing: so a change of the answer shows which source it came from. The right answer of every variant is that of
`rule.decide`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from lvlm_interp.errors import SceneError
from lvlm_interp.given import checked
from lvlm_interp.reference.knowledge import known
from lvlm_interp.reference.rule import Source, says
from lvlm_interp.reference.scenes import TRAINING_SEEDS, Scene, make_scene
from lvlm_interp.reference.seeing import candidates
from lvlm_interp.reference.talk import Plan, System, Talk, make_talk
from lvlm_interp.reference.talks import VALUES, plain_questions
from lvlm_interp.reference.things import COLORS, is_held_out, nouns
from lvlm_interp.reference.wording import FORMS, Asked

TRIES = 24  # replacements that are looked at before a source is left without


@dataclass(frozen=True)
class Variant:
    """A talk in which one source was replaced: by `another`, which may be several, or by `none`."""

    source: Source
    name: str
    talk: Talk


@checked
def variants(talk: Talk, count: int = 2) -> tuple[Variant, ...]:
    """A talk with each of its sources replaced, always the same for the same talk.

    Args:
        talk: the original.
        count: how many others of a source there are at most; where it can, each is left out once as well.

    Returns:
        variants of the sources `image`, `context`, `question` and `system` that the talk has. Left out are those to
        which nothing tells the right answer (where something stands, if there is no picture).
    """
    found = []
    for source, others in _OTHERS.items():
        rng = random.Random(f"variants:{source}:{talk.question}:{talk.context}:{[s.seed for s in talk.pictures]}")
        made = _different(talk, islice(others(talk.plan, rng), TRIES))
        found += [Variant(source, "another", one) for one in islice(made, count)]
        left_out = _LEFT_OUT.get(source)
        if left_out and left_out(talk.plan) != talk.plan:
            found += [Variant(source, "none", one) for one in _made([left_out(talk.plan)])]
    return tuple(found)


def _made(plans: Iterable[Plan]) -> Iterator[Talk]:
    """The talks of those plans that have a right answer."""
    for plan in plans:
        try:
            yield make_talk(plan)
        except SceneError:
            continue


def _different(talk: Talk, plans: Iterable[Plan]) -> Iterator[Talk]:
    """Talks that a reader could tell from this one and from each other."""
    known = {_read(talk)}
    for made in _made(plans):
        if (read := _read(made)) not in known:
            known.add(read)
            yield made


def _read(talk: Talk) -> tuple[str | bytes, ...]:
    """All that is shown and asked: what changes under a cloth alone is not."""
    return talk.text(), *(scene.image.tobytes() for scene in talk.pictures)


# --- pictures -------------------------------------------------------------------------------------


def _pictures(plan: Plan, rng: random.Random) -> Iterator[Plan]:
    """Plans with another picture: one that shows another value of what is asked, or still shows none."""
    if not plan.pictures:
        return
    for pictures in _other_pictures(plan, rng):
        other = replace(plan, pictures=pictures)
        if _says_otherwise(plan, other) and all(map(_may_be_shown, plan.pictures, pictures)):
            yield other


def _says_otherwise(plan: Plan, other: Plan) -> bool:
    """Whether the other pictures show another value of what is asked, or, as these, none."""
    value, told = (says("image", one.asked, one.given) for one in (plan, other))
    under = plan.asked.about == "under"
    if under and not any(item.shown == plan.asked.noun for scene in other.pictures for item in scene.items):
        return False
    return told is None if value is None else told not in (None, value)


def _may_be_shown(scene: Scene, other: Scene) -> bool:
    """Whether what takes the place of a scene may be trained on, if the scene may."""
    return scene.seed not in TRAINING_SEEDS or not is_held_out([item.noun for item in other.items])


def _other_pictures(plan: Plan, rng: random.Random) -> Iterator[tuple[Scene, ...]]:
    """The pictures with one redrawn; of two that differ, first the other way round."""
    number = plan.asked.picture
    if len(plan.pictures) > 1:
        yield plan.pictures[::-1]
    for scene in _redrawn(plan.pictures[number], plan.asked, rng):
        yield (*plan.pictures[:number], scene, *plan.pictures[number + 1 :])


def _redrawn(scene: Scene, asked: Asked, rng: random.Random) -> Iterator[Scene]:
    """Redrawings on the same layout, those that change least first; at last, layouts of other seeds."""
    named, paints = [item.noun for item in scene.items], [item.paint for item in scene.items]
    at = next((n for n, item in enumerate(scene.items) if item.shown == asked.noun), None)
    if asked.about == "color" and at is not None:
        for color in rng.sample(COLORS, len(COLORS)):
            yield scene.redrawn(named, [*paints[:at], color, *paints[at + 1 :]])
    if asked.about == "there" and at is None:
        for n in rng.sample(range(len(named)), len(named)):
            yield scene.redrawn([*named[:n], asked.noun, *named[n + 1 :]], [*paints[:n], None, *paints[n + 1 :]])
    for turn in rng.sample(range(1, len(named)), len(named) - 1):
        yield scene.redrawn(named[turn:] + named[:turn], paints[turn:] + paints[:turn])
    for whole in (False, True) * 4:
        yield scene.redrawn(_replaced(scene, asked, rng, whole), paints)
        yield make_scene(rng.randrange(TRAINING_SEEDS.start), scene.style, _replaced(scene, asked, rng, whole), paints)


def _replaced(scene: Scene, asked: Asked, rng: random.Random, whole: bool) -> list[str]:
    """The nouns of a scene with others in their place: in that of what is asked as well, if `whole`."""
    kept = {item.noun for item in scene.items if not whole and asked.noun in (item.noun, item.shown)}
    pool = [noun for noun in nouns() if noun not in (asked.noun, *(item.noun for item in scene.items))]
    drawn = iter(rng.sample(pool, len(scene.items)))
    return [item.noun if item.noun in kept else next(drawn) for item in scene.items]


# --- words ----------------------------------------------------------------------------------------


def _contexts(plan: Plan, rng: random.Random) -> Iterator[Plan]:
    """Plans in which another value is told of what is asked."""
    for n, claim in enumerate(plan.told):
        if (claim.about, claim.noun) == (plan.asked.about, plan.asked.noun):
            for value in rng.sample(VALUES[claim.about], min(TRIES, len(VALUES[claim.about]))):
                if value not in [other.value for other in plan.told]:
                    yield replace(plan, told=(*plan.told[:n], replace(claim, value=value), *plan.told[n + 1 :]))


def _questions(plan: Plan, rng: random.Random) -> Iterator[Plan]:
    """Plans with another question: about what else is told or shown, or about something that one knows."""
    own = make_talk(plan).answer
    told = [Asked(claim.about, claim.noun) for claim in plan.told]
    words = [Asked("word", of=color) for color in rng.sample(COLORS, 2)] if plan.asked.about == "word" else []
    shown = [asked for scene in plan.pictures[:1] for asked in candidates(scene.items, rng)]
    plain = [Asked("plain", of=question) for question in rng.sample(plain_questions(held_out=True), 2)]
    alike = [Asked("plain", of=question) for question in _alike(plan.asked, rng)]
    near = [*told, *words, *alike, *rng.sample(shown, min(len(shown), TRIES // 2)), *plain]
    for other in _made(replace(plan, asked=asked) for asked in near if asked != plan.asked):
        if other.answer != own:
            yield other.plan


def _alike(asked: Asked, rng: random.Random) -> list[str]:
    """Plain questions that ask the same of something else: does an answer that stands in the question go along?"""
    family = known()[asked.of].family if asked.about == "plain" else None
    found = [question for question in plain_questions(held_out=True) if known()[question].family == family]
    return rng.sample(found, len(found))


def _systems(plan: Plan, rng: random.Random) -> Iterator[Plan]:
    """Plans whose system message asks for another form, or tells another name."""
    if plan.system is None:
        return
    if plan.system.tells:
        names = rng.sample(VALUES["self"], len(VALUES["self"]))
        others = [System(tells=replace(plan.system.tells, value=n)) for n in names if n != plan.system.tells.value]
    else:
        others = [System(form) for form in FORMS if form != plan.system.form]
    yield from (replace(plan, system=other) for other in others)


_OTHERS: Mapping[Source, Callable[[Plan, random.Random], Iterator[Plan]]] = {
    "image": _pictures,
    "context": _contexts,
    "question": _questions,
    "system": _systems,
}
_LEFT_OUT: Mapping[Source, Callable[[Plan], Plan]] = {
    "image": lambda plan: replace(plan, pictures=()) if len(plan.pictures) == 1 else plan,
    "context": lambda plan: replace(plan, told=()),
    "system": lambda plan: replace(plan, system=None),
}
