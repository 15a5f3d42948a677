"""Examples of the reference world for the swap test: talks with variants of their sources, as a table, balanced.

No source decides most of them, so that a constant guess is seldom right, and the truth of each can be told: where the
source that decides is taken away, the right answer is another one.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from lvlm_interp.errors import InputError
from lvlm_interp.given import explained
from lvlm_interp.reference.rule import Source, says
from lvlm_interp.reference.scenes import TRAINING_SEEDS
from lvlm_interp.reference.talk import Talk, TalkKind
from lvlm_interp.reference.talks import talks
from lvlm_interp.reference.variants import Variant, variants
from lvlm_interp.reference.wording import answer_text

SHARES: Mapping[Source, tuple[float, tuple[TalkKind, ...]]] = {
    "image": (0.4, (*("yes/no", "description") * 2, "color", "place", "name", "objects", "hint", "pictures")),
    "context": (0.18, ("fact", "hint")),
    "knowledge": (0.18, ("natural", "knowledge")),
    "system": (0.12, ("system",)),
    "question": (0.12, ("echo",)),
}
"""How many of the examples each source decides, and the kinds of talk among which these are shared out evenly.

A kind that stands there twice has two shares: of "Yes." and of descriptions about half cannot be judged, since other
pictures show the same. Talks of two turns are none: a table of variants has one question.
"""
HELD_OUT = range(800_000, TRAINING_SEEDS.start)


@explained
def swap_table(count: int = 40, seeds: Iterable[int] = HELD_OUT) -> pd.DataFrame:
    """Talks of the world with their variants, for `swap_test`.

    What decides the form of an answer alone, and not its content, is in no example; nor is a talk whose right answer
    stays where what decides is taken away (a yellow banana, seen or not).

    Args:
        count: how many examples; each kind has its share, as nearly as whole numbers can.
        seeds: of their scenes, in the order in which they are taken; held-out ones by default.

    Returns:
        a row for each version, with the columns that `attribution.variants.cases_of` takes. `kind` is the kind of talk,
        `group` the scene.

    Raises:
        InputError: `count` is not positive, or the seeds end before every kind has its share.
    """
    if count < 1:
        raise InputError(f"count is 1 or more examples, got {count}")
    wanted = _shared_out(count)
    rows: list[dict[str, Any]] = []
    for seed, talk in ((n, talk) for n in seeds for talk in talks(n)):
        cell = talk.decides, talk.kind
        if wanted[cell] and _content_decides(talk) and _told_apart(talk, found := variants(talk)):
            wanted[cell] -= 1
            rows += _rows(f"{seed} {talk.kind} by {talk.decides} {wanted[cell]}", seed, talk, found)
            if not wanted.total():
                return pd.DataFrame(rows)
    short = ", ".join(f"{kind} by {source}" for (source, kind), left in wanted.items() if left)
    raise InputError(f"the seeds end before there are enough talks of: {short}; give more of them")


def _shared_out(count: int) -> Counter[tuple[Source, TalkKind]]:
    """How many each kind has, by the source that decides: shares by largest remainders, the first of equals first."""
    exact = {
        (source, kind): count * share * often / len(kinds)
        for source, (share, kinds) in SHARES.items()
        for kind, often in Counter(kinds).items()
    }
    found = Counter({cell: math.floor(share) for cell, share in exact.items()})
    nearest = sorted(exact, key=lambda cell: found[cell] - exact[cell])
    found.update(nearest[: count - found.total()])
    return found


def _content_decides(talk: Talk) -> bool:
    """Whether a system message, if there is one, tells something: one that asks for a form changes every answer."""
    return talk.plan.form == "short" and (talk.plan.system is None or talk.plan.system.tells is not None)


def _told_apart(talk: Talk, found: Iterable[Variant]) -> bool:
    """Whether the right answer is another one wherever what decides is replaced or taken away."""
    own = [one for one in found if one.source == talk.decides]
    return all(one.talk.answer not in talk.accepted for one in own)


def _rows(name: str, seed: int, talk: Talk, found: Iterable[Variant]) -> Iterator[dict[str, Any]]:
    about = {"example": name, "kind": talk.kind, "group": str(seed)}
    originals: Iterator[tuple[str, Talk, str]] = iter([("original", talk, "")])
    others = ((one.source, one.talk, _says(one)) for one in found)
    for source, shown, said in itertools.chain(originals, others):
        texts = {"context": " ".join(shown.context), "question": shown.question, "system": shown.system or ""}
        yield {**about, "source": source, "picture": [s.image for s in shown.pictures], **texts, "says": said}


def _says(variant: Variant) -> str:
    """What the changed source itself says the answer is; empty where it says nothing."""
    plan = variant.talk.plan
    value = None if variant.name == "none" else says(variant.source, plan.asked, plan.given)
    return (value and answer_text(plan.asked, value, plan.form, len(plan.pictures))) or ""
