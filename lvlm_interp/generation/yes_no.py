"""Whether a way to decode answers yes or no better, or only says yes more often.

A benchmark of yes and no rewards whoever says yes as often as it is right, whatever is in the picture. So beside each
way stands the untouched model with its threshold moved until it says yes as often: what a way gains over that is its
own. Beside them stand controls that look at nothing more than they did before (Yin et al. 2025, "The mirage of
performance gains", arXiv 2504.10020).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.bootstrap import bootstrap_weights, interval
from lvlm_interp.counterfactuals.counterfactual import Counterfactual, applied
from lvlm_interp.counterfactuals.texts import instruction
from lvlm_interp.errors import InputError
from lvlm_interp.fields import SHARE, Range
from lvlm_interp.generation.choosing import Choosing, Greedy, Sampled
from lvlm_interp.generation.contrasting import Contrastive
from lvlm_interp.generation.trace import trace
from lvlm_interp.given import Parametric, explained, need_seed
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.interventions.intervention import Intervention, intervening
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result

YES, NO, OTHER = 1, 0, -1
WORDS = {"yes": YES, "no": NO}


@dataclass(frozen=True)
class Way(Parametric):
    """A way to answer.

    Attributes:
        choosing: which token is written.
        without: what the other stream goes without.
        before: an instruction before the question.
        interventions: in force meanwhile, such as `li.Scale` for PAI's attention.
    """

    choosing: Choosing = field(default_factory=Greedy)
    without: str | Counterfactual = "hidden"
    before: str = ""
    interventions: Intervention | None = None


CONTROLS: dict[str, Way] = {
    "greedy": Way(),
    "drawn": Way(Sampled()),
    "drawn, cut alone": Way(Contrastive(weight=0.0, then=Sampled())),
    "told to say yes": Way(before="Answer yes whenever possible."),
}
"""Ways that look at nothing more: what they gain is nobody's insight."""


@dataclass(frozen=True)
class Decodings(Result):
    """How often ways to decode are right about yes and no.

    Attributes:
        ways: their names, controls first.
        answers: what each said, `[way][example]`.
        accuracy: with its interval `low`, `high`; what is neither yes nor no is wrong.
        precision, recall, f1: of yes; NaN where no yes was said, or none is right.
        yes_rate, other_rate: how often yes was said, and neither.
        matched: how often the untouched model is right, if it says yes to as many: those of whose yes it is surest.
        gain: `accuracy` less `matched`, with its interval `gain_low`, `gain_high`, of the same examples.
        confidence: of the intervals.
    """

    along: ClassVar[Mapping[str, str]] = {"ways": "way"}
    ranges: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(("accuracy", "precision", "recall", "f1", "yes_rate", "other_rate", "matched"), SHARE),
        "confidence": SHARE,
    }
    blank: ClassVar[frozenset[str]] = frozenset({"precision", "recall", "f1", "low", "high", "gain_low", "gain_high"})
    ways: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    accuracy: Float[Tensor, " way"]
    low: Float[Tensor, " way"]
    high: Float[Tensor, " way"]
    precision: Float[Tensor, " way"]
    recall: Float[Tensor, " way"]
    f1: Float[Tensor, " way"]
    yes_rate: Float[Tensor, " way"]
    other_rate: Float[Tensor, " way"]
    matched: Float[Tensor, " way"]
    gain: Float[Tensor, " way"]
    gain_low: Float[Tensor, " way"]
    gain_high: Float[Tensor, " way"]
    confidence: float

    @property
    def note(self) -> str:
        return f"{len(self.answers[0])} examples; gain: over the untouched model saying yes as often"

    def to_frame(self) -> pd.DataFrame:
        """One row for each way."""
        names = [one for one in self.__dataclass_fields__ if isinstance(getattr(self, one), Tensor)]
        return self.identified(pd.DataFrame({"way": self.ways, **{n: getattr(self, n).tolist() for n in names}}))


@explained
def compare_decodings(
    vlm: HookedVLM,
    examples: Sequence[Inputs],
    truth: Sequence[bool],
    ways: Mapping[str, Way | Choosing],
    *,
    groups: Sequence[Any] | None = None,
    max_new_tokens: int = 4,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Decodings:
    """Answer questions of yes and no in several ways, beside controls, and tell real gains from saying yes more often.

    Args:
        vlm: the model.
        examples: prompts with an image.
        truth: whether yes is right, for each.
        ways: by name, a `Way` or what chooses its tokens; `CONTROLS` are added.
        groups: which examples belong together, by picture say, for intervals; each alone by default.
        max_new_tokens: of an answer, whose first word is read.
        confidence, samples: of intervals, and how often examples are drawn for them.
        seed: of all that is drawn; each example has its own.
        progress: show a progress bar.

    Raises:
        InputError: no examples, other numbers of truths or groups, no way, a name of a control, or a model without a
            token for yes or for no.
    """
    need_seed(seed)
    every = {**CONTROLS, **{name: one if isinstance(one, Way) else Way(one) for name, one in ways.items()}}
    if not examples or len(truth) != len(examples) or (groups is not None and len(groups) != len(examples)):
        raise InputError(
            f"each example has a truth, and a group if there are groups; got {len(examples)} examples, {len(truth)} "
            f"truths, {len(groups) if groups is not None else 'no'} groups"
        )
    if not ways or ways.keys() & CONTROLS.keys():
        raise InputError(f"ways= are one or more by name, other than the controls {list(CONTROLS)}; got {list(ways)}")
    if samples < 2 or not 0 < confidence < 1:
        raise InputError(f"samples is 2 or more, and confidence between 0 and 1; got {samples}, {confidence}")
    ids = yes_and_no(vlm)
    margins = torch.tensor([_margin(vlm, x, ids) for x in tqdm(examples, "untouched", disable=not progress)])
    answers = []
    for name, way in every.items():
        with_bar = enumerate(tqdm(examples, name, disable=not progress, leave=False))
        answers.append(tuple(_answer(vlm, x, way, max_new_tokens, seed + n) for n, x in with_bar))
    numbered = pd.factorize(pd.Series(range(len(examples)) if groups is None else list(groups)))[0]
    drawn = bootstrap_weights(torch.tensor(numbered), samples, torch.Generator().manual_seed(int(seed))).double()
    rows = [
        scored(_read(some), torch.tensor([*truth]), margins, drawn, confidence, int(numbered.max()) + 1)
        for some in answers
    ]
    of = {"truth": [*map(bool, truth)], "groups": numbered.tolist()}
    told = {"ways": {name: repr(way) for name, way in every.items()}, "max_new_tokens": max_new_tokens}
    return Decodings(
        ways=tuple(every),
        answers=tuple(answers),
        **{name: torch.tensor([row[name] for row in rows]) for name in rows[0]},
        confidence=confidence,
        provenance=vlm.provenance("compare_decodings", *examples, seed=seed, samples=samples, **told, **of),
    )


def yes_and_no(vlm: HookedVLM) -> tuple[Int[Tensor, " yes"], Int[Tensor, " no"]]:
    """The tokens that read yes, and no, however they are written.

    Raises:
        InputError: there are none.
    """
    texts = vlm.token_strings(range(vlm.readout.vocabulary))
    found = [[n for n, text in enumerate(texts) if text.strip().casefold() == word] for word in WORDS]
    if not all(found):
        raise InputError(f"{vlm.name!r} has no tokens that read {' and '.join(map(repr, WORDS))}")
    return torch.tensor(found[0]), torch.tensor(found[1])


def _margin(vlm: HookedVLM, x: Inputs, ids: tuple[Tensor, Tensor]) -> float:
    """How much likelier yes is than no, as the first token, in nats."""
    logits = vlm.run(x.prompt)[0, -1].double()
    yes, no = (logits[one.to(logits.device)].logsumexp(0) for one in ids)
    return float(yes - no)


def _answer(vlm: HookedVLM, x: Inputs, way: Way, most: int, seed: int) -> str:
    asked = x.prompt
    if way.before:
        asked = applied(instruction(way.before), vlm, asked)
    options: dict[str, Any] = {"max_new_tokens": most, "choosing": way.choosing, "seed": seed}
    if way.interventions is None:
        return trace(vlm, asked, way.without, **options).answer
    with intervening(vlm, asked, way.interventions):
        return trace(vlm, asked, way.without, **options).answer


def _read(answers: Sequence[str]) -> Int[Tensor, " example"]:
    """Yes, no or neither, by the first word."""
    firsts = [re.search(r"\w+", answer) for answer in answers]
    return torch.tensor([WORDS.get(found.group().casefold(), OTHER) if found else OTHER for found in firsts])


def scored(
    said: Int[Tensor, " example"],
    truth: Bool[Tensor, " example"],
    margins: Float[Tensor, " example"],
    drawn: Float[Tensor, "sample example"],
    confidence: float,
    groups: int,
) -> dict[str, float]:
    """The numbers of `Decodings` for one way; the first sample is all ones."""
    right, yes = (said == truth.long()).double(), (said == YES).double()
    total = drawn.sum(1)
    accuracy = drawn @ right / total
    matched = _as_often(drawn @ yes, truth, margins, drawn)
    hits, told, there = (float(one.sum()) for one in (yes * truth, yes, truth.double()))
    precision, recall = (hits / one if one else torch.nan for one in (told, there))
    (low,), (high,) = interval(accuracy[None], confidence, groups)
    (gain_low,), (gain_high,) = interval((accuracy - matched)[None], confidence, groups)
    return {
        "accuracy": float(accuracy[0]),
        "low": float(low),
        "high": float(high),
        "precision": precision,
        "recall": recall,
        "f1": 2 * hits / (told + there) if told + there else torch.nan,
        "yes_rate": float(yes.mean()),
        "other_rate": float((said == OTHER).double().mean()),
        "matched": float(matched[0]),
        "gain": float(accuracy[0] - matched[0]),
        "gain_low": float(gain_low),
        "gain_high": float(gain_high),
    }


def _as_often(
    often: Float[Tensor, " sample"],
    truth: Bool[Tensor, " example"],
    margins: Float[Tensor, " example"],
    drawn: Float[Tensor, "sample example"],
) -> Float[Tensor, " sample"]:
    """How often the untouched model is right that says yes so often, to those of whose yes it is surest."""
    order = margins.argsort(descending=True, stable=True)
    weights, right = drawn[:, order], truth[order].double()
    before = weights.cumsum(1) - weights
    yes = (often[:, None] - before).clamp(min=torch.zeros_like(weights), max=weights)
    return (yes @ right + (weights - yes) @ (1 - right)) / weights.sum(1)
