"""Definitions of credit: rules that name, from a split, the source that an answer came from. Each is data.

A rule takes the nats of every source, `prior` among them, and names one. Which rule is right is not settled by how it
is derived, but by the swap test (`attribution.swap`), where the real input is changed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lvlm_interp.attribution.shapley import shares
from lvlm_interp.attribution.split import CreditSplit
from lvlm_interp.errors import InputError
from lvlm_interp.given import explained, explaining

PROMPT = ("question", "context", "system")
Part = Literal["answer", "word", "token"]
PARTS: tuple[Part, ...] = get_args(Part)
Nats = Mapping[str, float]
"""What `prior` and each source have."""


def grouped(shares: Nats) -> dict[str, float]:
    """Shares of the three things that a word can come from: `prompt`, `image` and `prior`."""
    prompt = sum(shares.get(name, 0.0) for name in PROMPT)
    return {"prompt": prompt, "image": shares.get("image", 0.0), "prior": shares.get("prior", 0.0)}


def dominant(shares: Nats) -> str | None:
    """The source that leads the group with the largest share; None if nothing speaks for the word."""
    groups = grouped(shares)
    best = max(groups, key=lambda name: groups[name])
    if not groups[best]:
        return None
    return best if best != "prompt" else max(PROMPT, key=lambda name: shares.get(name, 0.0))


def largest(nats: Nats) -> str | None:
    """The source that has most."""
    return max(nats, key=lambda name: nats[name]) if nats else None


def as_told(nats: Nats) -> str | None:
    """The source that the sentence of a diagnosis names; None where all together speak against the word."""
    return dominant(shares(dict(nats))) if sum(nats.values()) >= 0 else None


def shapley(split: CreditSplit) -> dict[str, float]:
    """Shapley values and the prior, added up over the parts of the answer."""
    return {name: float(split.of(name).sum()) for name in ("prior", *split.players)}


def hidden_alone(split: CreditSplit) -> dict[str, float]:
    """What the answer loses when the tokens of one source alone are hidden; and what it has with all hidden."""
    values, last = split.values.double().sum(0), (1 << len(split.players)) - 1
    lost = {name: float(values[last] - values[last - (1 << i)]) for i, name in enumerate(split.players)}
    return {"prior": float(values[0]), **lost}


@explaining
@dataclass(frozen=True)
class Definition:
    """A rule that names the source of an answer. Another one is another object: `judged` takes it like these.

    Attributes:
        name: in tables.
        value: which value is split (`attribution.value`).
        part: what of the answer is split: all of it, the word that tells (`deciding.telling_word`), or its first token.
        keep: roles that are always visible, beside the template.
        asking: whether the question asks, as by default, or is a player like the others (`credit`).
        of: from a split to nats of `prior` and of each role.
        choose: from these to the source that is named; None where there is none.
    """

    name: str
    value: str = "odds"
    part: Part = "answer"
    keep: tuple[str, ...] = ()
    asking: bool = True
    of: Callable[[CreditSplit], dict[str, float]] = shapley
    choose: Callable[[Nats], str | None] = largest

    def __post_init__(self) -> None:
        if isinstance(self.keep, str) or not set(self.keep) <= {*PROMPT, "image"}:
            raise InputError(f"keep is a tuple of roles, of {[*PROMPT, 'image']}; got {self.keep!r}")
        if self.part not in PARTS:
            raise InputError(f"part is one of {list(PARTS)}; got {self.part!r}")

    def nats(self, split: CreditSplit) -> dict[str, float]:
        """What each source has by this definition; `knowledge` for the prior, the largest first.

        Raises:
            InputError: the split has no such value.
        """
        found = self.of(self._seen(split))
        told = {"knowledge" if name == "prior" else name: value for name, value in found.items()}
        return dict(sorted(told.items(), key=lambda pair: -pair[1]))

    def names(self, split: CreditSplit) -> str:
        """The source that it names; empty where it names none."""
        nats = self.of(self._seen(split))
        if not nats or any(math.isnan(value) for value in nats.values()):
            raise InputError(f"{self.name!r} gives no number of nats for each source: {nats}")
        found = self.choose(nats)
        return {"prior": "knowledge", None: ""}.get(found, found or "")

    def _seen(self, split: CreditSplit) -> CreditSplit:
        kept = [role for role in self.keep if role in split.player_roles]
        seen = split.with_value(self.value).keeping(*kept)
        return seen if self.asking else seen.together()


RULES: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "together": {"asking": False},
    "once asked": {"keep": ("question",)},
    "one hidden": {"asking": False, "of": hidden_alone},
}
"""How nats are shared out: as `credit` does; with the question a player like the others, as it did before; with the
question always visible, so that it is never named; and tokens hidden one source at a time."""


def _named(value: str, part: Part, rule: str) -> Definition:
    """A definition that is called by what it is made of."""
    return Definition(", ".join(filter(None, (value, part, rule))), value, part, **RULES[rule])


TOLD = "as a diagnosis says"
DEFINITIONS: dict[str, Definition] = {
    definition.name: definition
    for definition in (
        *itertools.starmap(_named, itertools.product(("odds", "full"), PARTS, RULES)),
        Definition(TOLD, part="word", choose=as_told),
        Definition(f"{TOLD}, together", part="word", asking=False, choose=as_told),
    )
}
"""Both values, of each part, by each rule; and what the sentence of a diagnosis says, now and before."""


@explained
def definition_of(definition: str | Definition) -> Definition:
    """A definition by its name.

    Raises:
        InputError: there is none of that name.
    """
    if isinstance(definition, Definition):
        return definition
    if definition not in DEFINITIONS:
        raise InputError(f"no definition {definition!r}; there are {list(DEFINITIONS)}, and a Definition of your own")
    return DEFINITIONS[definition]


def described(definition: Definition) -> dict[str, Any]:
    """A definition in a result's provenance."""
    told = {name: getattr(definition, name) for name in ("name", "value", "part")}
    return {**told, "keep": list(definition.keep), "asking": definition.asking}
