"""The talks of a seed's scene: a mix of kinds by a table, drawn from the seed.

All of them have the same system message, so that those that show the scene alone share everything up to its picture.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from lvlm_interp.errors import SceneError
from lvlm_interp.given import checked
from lvlm_interp.reference.items import Item
from lvlm_interp.reference.knowledge import known
from lvlm_interp.reference.rule import Claim
from lvlm_interp.reference.scenes import KIND_OF, TRAINING_SEEDS, QuestionKind, Scene, Style, make_scene
from lvlm_interp.reference.seeing import candidates, seen
from lvlm_interp.reference.talk import Plan, System, Talk, TalkKind, make_talk
from lvlm_interp.reference.things import ANIMALS, COLORED, COLORS, NATURAL_COLORS, is_held_out, nouns
from lvlm_interp.reference.wording import About, Asked, Form

ALONE = 0.25
"""Chance that what needs no picture is asked without any."""
TRUE_HINT = 0.3
SECOND_FACT = 0.5
SAME_THING = 0.6
SYSTEMS: tuple[Form | Literal["self"] | None, ...] = (
    *(None,) * 9, "short", "word", "sentence", "self", "self",
)  # fmt: skip
"""What the system message is, each as likely as it stands here: none, one that asks for a form, or tells a name."""
PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Kate", "Mark", "Nina", "Oscar",
          "Peter", "Sara", "Tom")  # fmt: skip
PETS = ("Bella", "Bruno", "Coco", "Daisy", "Felix", "Ginger", "Leo", "Luna", "Max", "Milo", "Nala", "Oreo", "Rex",
        "Rocky", "Ruby", "Simba")  # fmt: skip
ROBOTS = ("Ada", "Bolt", "Echo", "Iris", "Nova", "Otto", "Pixel", "Robo", "Sam", "Zoe")
VALUES: dict[About, tuple[str, ...]] = {
    "price": tuple(f"{n} dollars" for n in range(2, 21)),
    "age": tuple(f"{n} years" for n in range(2, 13)),
    "owner": PEOPLE,
    "called": PETS,
    "color": COLORS,
    "self": ROBOTS,
    "under": nouns(),
}
"""What is told, by what it is about."""


@dataclass(frozen=True)
class World:
    """What the talks of one seed are drawn from."""

    seed: int
    style: Style | None
    scene: Scene
    system: System | None

    @property
    def training(self) -> bool:
        """Whether it may be trained on."""
        return self.seed in TRAINING_SEEDS

    @functools.cached_property
    def second(self) -> Scene:
        """Another picture, which shows a thing of the first in another colour in half of the worlds."""
        rng = random.Random(f"second:{self.seed}")
        seeds = TRAINING_SEEDS if self.training else range(TRAINING_SEEDS.start)
        scene = make_scene(rng.choice(seeds), self.style)
        shared = [item.noun for item in self.scene.items if item.cover is None and item.noun in COLORED]
        if not shared or rng.random() < 0.5:
            return scene
        named = [rng.choice(shared), *(item.noun for item in scene.items[1:])]
        if len(set(named)) < len(named) or (self.training and is_held_out(named)):
            return scene
        color = rng.choice([c for c in COLORS if c != self.scene.item(named[0]).color])
        return scene.redrawn(named, [color, *(item.paint for item in scene.items[1:])])


@checked
def talks(seed: int, style: Style | None = None) -> tuple[Talk, ...]:
    """The talks of a seed's scene, in an order drawn from the seed.

    Those that show this scene alone can share it: they have the same system message and picture. Some show nothing,
    some a second picture behind it. Seeds outside `TRAINING_SEEDS` ask the held-out part of what is plain knowledge.

    Args:
        seed: of the scene, `make_scene(seed, style)`; decides everything.
        style: drawing style; one of the trained styles by default.
    """
    rng = random.Random(f"talks:{seed}")
    world = World(seed, style, make_scene(seed, style), _system(rng))
    found = [talk for kind, share in MIX.items() for talk in _some(world, rng, kind, share)]
    rng.shuffle(found)
    return tuple(found)


def _some(world: World, rng: random.Random, kind: TalkKind, share: float) -> Iterator[Talk]:
    """As many different talks of a kind as its share says on average, as far as the scene has them."""
    asked: set[str] = set()
    for _ in range(int(share) + (rng.random() < share % 1)):
        plan = _MAKERS[kind](world, rng)
        talk = _made(replace(plan, system=world.system, phrasing=rng.randrange(12))) if plan else None
        if talk and talk.question not in asked:
            asked.add(talk.question)
            yield talk


def _made(plan: Plan) -> Talk | None:
    try:
        return make_talk(plan)
    except SceneError:  # nothing tells the answer, or it does not go into the form that is asked for
        return None


def _system(rng: random.Random) -> System | None:
    form, phrasing = rng.choice(SYSTEMS), rng.randrange(12)
    if form == "self":
        return System(tells=Claim("self", "", rng.choice(ROBOTS), phrasing))
    return System(form, phrasing=phrasing) if form else None


# --- kinds ----------------------------------------------------------------------------------------


def _looked(kind: QuestionKind) -> Callable[[World, random.Random], Plan | None]:
    def plan(world: World, rng: random.Random) -> Plan | None:
        found = [a for a in candidates(world.scene.items, rng) if KIND_OF[a.about] == kind and world.scene.shows(a)]
        return Plan(rng.choice(found), (world.scene,)) if found else None

    return plan


def _description(world: World, rng: random.Random) -> Plan:
    return Plan(Asked("description", of=str(rng.randrange(4))), (world.scene,))


def _fact(world: World, rng: random.Random) -> Plan:
    """Something that no picture shows is told of a thing, and half of the time of another thing as well."""
    there = [item.noun for item in world.scene.items if item.cover is None]
    noun = rng.choice(there if rng.random() > ALONE else nouns())
    animal = noun in ANIMALS
    about: About = rng.choice(("called", "age") if animal else ("price", "owner"))
    other = rng.choice([n for n in nouns() if n != noun and (n in ANIMALS) == animal])
    near = [n for n in there if n != noun and (n in ANIMALS) == animal]
    values = rng.sample(VALUES[about], 2)
    told = [Claim(about, noun, values[0], rng.randrange(12))]
    if rng.random() < SECOND_FACT:
        told.insert(rng.randrange(2), Claim(about, rng.choice(near or [other]), values[1], rng.randrange(12)))
    return Plan(Asked(about, noun), _shown(world, rng), tuple(told))


def _hint(world: World, rng: random.Random) -> Plan:
    """A colour is told, truly or not, of a thing that is clear, grey, covered or not there; or what is covered."""
    hidden = [item for item in world.scene.items if item.cover]
    if hidden and rng.random() < 0.5:
        return _under(world, rng, hidden[0])
    clear = [item.noun for item in world.scene.items if item.color]
    unclear = [item.noun for item in world.scene.items if item.state in ("grey", "covered") and item.noun in COLORED]
    absent = _absent(world, rng, COLORED)
    noun = rng.choice(rng.choice([pool for pool in (clear, clear, unclear, unclear, [absent]) if pool]))
    truth = next((item.color for item in world.scene.items if item.noun == noun), None) or NATURAL_COLORS.get(noun)
    said = truth if truth and rng.random() < TRUE_HINT else rng.choice([c for c in COLORS if c != truth])
    pictures = _shown(world, rng) if noun == absent else (world.scene,)
    return Plan(Asked("color", noun), pictures, (Claim("color", noun, said, rng.randrange(12)),))


def _under(world: World, rng: random.Random, item: Item) -> Plan:
    noun = item.noun if rng.random() < TRUE_HINT else _absent(world, rng, nouns())
    return Plan(Asked("under", item.shown), (world.scene,), (Claim("under", item.shown, noun, rng.randrange(12)),))


def _natural(world: World, rng: random.Random) -> Plan:
    """The colour of a thing that the picture does not tell, and nobody does: grey, covered, or not there."""
    unclear = [item.noun for item in world.scene.items if item.color is None and item.natural]
    if unclear and rng.random() > ALONE:
        return Plan(Asked("color", rng.choice(unclear)), (world.scene,))
    return Plan(Asked("color", _absent(world, rng, tuple(NATURAL_COLORS))), _shown(world, rng))


def _knowledge(world: World, rng: random.Random) -> Plan:
    return Plan(Asked("plain", of=rng.choice(plain_questions(not world.training))), _shown(world, rng))


@functools.cache
def plain_questions(held_out: bool) -> tuple[str, ...]:
    """The questions of plain knowledge of one part."""
    return tuple(question for question, one in known().items() if one.held_out == held_out)


def _self(world: World, rng: random.Random) -> Plan:
    return Plan(Asked("self"), _shown(world, rng))


def _echo(world: World, rng: random.Random) -> Plan:
    return Plan(Asked("word", of=rng.choice((*COLORS, *nouns(), *PETS))), _shown(world, rng))


def _turns(world: World, rng: random.Random) -> Plan | None:
    """Two questions about the picture; the second calls the thing "it", or is about another."""
    found = [a for a in candidates(world.scene.items, rng) if a.about in ("there", "color", "place", "name")]
    found = [a for a in found if world.scene.shows(a) not in (None, "no")]
    if not found:
        return None
    first = rng.choice(found)
    thing = first.noun or world.scene.shows(first)
    told = ("name", "place") if first.about in ("name", "place") else (first.about,)  # what the first turn says already
    same = [replace(a, it=True) for a in found if a.noun == thing and a.about in ("color", "place")]
    same = [a for a in same if a.about not in told]
    others = [a for a in found if thing not in (a.noun, world.scene.shows(a))]
    pool = same if same and rng.random() < SAME_THING else others
    return Plan(rng.choice(pool), (world.scene,), before=(first,)) if pool else None


def _pictures(world: World, rng: random.Random) -> Plan:
    """A question about one of two pictures; half of the time about what both show, if they do."""
    both, number = (world.scene, world.second), rng.randrange(2)
    mine, other = both[number], both[1 - number]
    found = [asked for asked in candidates(mine.items, rng) if mine.shows(asked)]
    found += [
        Asked("there", item.noun)
        for item in other.items
        if item.cover is None and mine.shows(Asked("there", item.noun))
    ]
    differing = [asked for asked in found if other.shows(asked) not in (None, mine.shows(asked))]
    which = [Asked("which", item.noun) for item in mine.items if item.cover is None]
    found += [asked for asked in which if seen([scene.items for scene in both], asked)]
    pool = differing if differing and rng.random() < 0.5 else found
    about = rng.choice(sorted({asked.about for asked in pool}))
    return Plan(replace(rng.choice([asked for asked in pool if asked.about == about]), picture=number), both)


def _shown(world: World, rng: random.Random) -> tuple[Scene, ...]:
    """The scene, or no picture."""
    return () if rng.random() < ALONE else (world.scene,)


def _absent(world: World, rng: random.Random, pool: tuple[str, ...]) -> str:
    there = {item.noun for item in world.scene.items}
    return rng.choice([noun for noun in pool if noun not in there])


_MAKERS: dict[TalkKind, Callable[[World, random.Random], Plan | None]] = {
    "yes/no": _looked("yes/no"),
    "color": _looked("color"),
    "place": _looked("place"),
    "name": _looked("name"),
    "objects": _looked("objects"),
    "description": _description,
    "fact": _fact,
    "hint": _hint,
    "natural": _natural,
    "knowledge": _knowledge,
    "system": _self,
    "echo": _echo,
    "turns": _turns,
    "pictures": _pictures,
}
MIX: dict[TalkKind, float] = {
    "yes/no": 1.6,
    "color": 1.4,
    "place": 1.2,
    "name": 1.0,
    "objects": 0.8,
    "description": 0.6,
    "fact": 1.0,
    "hint": 1.5,
    "natural": 0.8,
    "knowledge": 0.7,
    "system": 1.9,
    "echo": 0.25,
    "turns": 0.7,
    "pictures": 0.8,
}
"""How many talks of a kind a scene has on average, where it has such."""
