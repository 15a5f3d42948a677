"""The value to explain: one number for a token, a word, a sentence, a span or the whole answer, under any visibility.

What is explained is chosen in one place, and every method takes it: which parts of the answer, which value of them, and
what they are compared with. Of a part y of n tokens, with p(y|S) the product of its tokens' probabilities when S is
seen, each given the answer so far, and V tokens in the vocabulary:

| value        | is                               | zero                              | unit   |
|--------------|----------------------------------|-----------------------------------|--------|
| `logit`      | Σ logits of its tokens           | none                              | logits |
| `logprob`    | log p(y|S)                       | certain                           | nats   |
| `logodds`    | log p(y|S) − log(1 − p(y|S))     | as likely as not                  | nats   |
| `odds`       | log p(y|S) − log mean p(a|S)     | as likely as the alternatives a   | nats   |
| `full`       | log p(y|S) + n · log V           | a uniform guess                   | nats   |
| `difference` | log p(y|S) − log p(a|S)          | as likely as the one alternative  | nats   |

The last is the difference of two answers; of single tokens, it is the difference of their logits too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.attribution.against import Against, by_part, ids_by_part, listed, of_each, plain
from lvlm_interp.attribution.alternatives import given_rivals, names_of, others_of, rivals_of
from lvlm_interp.attribution.rivals import Rivals, Search, Spellings
from lvlm_interp.engine.decoder import DecoderInputs, run_to_decoder
from lvlm_interp.engine.score import HideFrom, Scores, score_answers
from lvlm_interp.errors import InputError
from lvlm_interp.given import explained, explaining, whole
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Unit, Word, parts_of, unit_name
from lvlm_interp.model.vlm import HookedVLM


@dataclass(frozen=True)
class Evidence:
    """What a value of one part of the answer is computed from, under every coalition; float64.

    Attributes:
        logit, logprob, logodds: of each of its tokens.
        others: log-probability of each alternative as a whole, those that are likelier first; none where the value
            compares with none.
        vocabulary: how many tokens there are to choose from.
    """

    logit: Float[Tensor, "coalition token"]
    logprob: Float[Tensor, "coalition token"]
    logodds: Float[Tensor, "coalition token"]
    others: Float[Tensor, "coalition rival"]
    vocabulary: int


@dataclass(frozen=True)
class Value:
    """A number that can be explained. Another one is another object: methods take it like those that have a name.

    Attributes:
        name: in results.
        unit: `nats` or `logits`.
        of: the value `[coalition]` from the evidence; differentiable, if the evidence is.
        compares: whether it needs alternatives.
    """

    name: str
    unit: Literal["nats", "logits"]
    of: Callable[[Evidence], Tensor]
    compares: bool = False


def logprob(found: Evidence) -> Float[Tensor, " coalition"]:
    """Of the part as a whole: the sum over its tokens."""
    return found.logprob.sum(1)


def logodds(found: Evidence) -> Float[Tensor, " coalition"]:
    """Of the part as a whole, exact also where it is nearly certain.

    It fails at its first, second, … token: (1 − p) / p = Σ_j (1 − p_j) / (p_j · Π_{i>j} p_i).
    """
    none = torch.zeros_like(found.logprob[:, :1])
    later = torch.cat([found.logprob.flip(1).cumsum(1).flip(1)[:, 1:], none], 1)
    return -(-found.logodds - later).logsumexp(1)


def odds(found: Evidence) -> Float[Tensor, " coalition"]:
    """Against the mean of the alternatives."""
    return logprob(found) - (found.others.logsumexp(-1) - math.log(found.others.shape[-1]))


def full(found: Evidence) -> Float[Tensor, " coalition"]:
    """Against a uniform guess."""
    return logprob(found) + found.logprob.shape[1] * math.log(found.vocabulary)


VALUES: dict[str, Value] = {
    value.name: value
    for value in (
        Value("odds", "nats", odds, compares=True),
        Value("full", "nats", full),
        Value("logprob", "nats", logprob),
        Value("logodds", "nats", logodds),
        Value("logit", "logits", lambda found: found.logit.sum(1)),
        Value("difference", "nats", lambda found: logprob(found) - found.others[:, 0], compares=True),
    )
}


def named(value: str | Value) -> Value:
    """A value by its name.

    Raises:
        InputError: there is none of that name, or one of the user's own has it too.
    """
    if isinstance(value, Value):
        if VALUES.get(value.name, value) != value:
            raise InputError(f"there is a value {value.name!r} already: give a Value of your own another name")
        return value
    if value not in VALUES:
        raise InputError(f"value is {', '.join(map(repr, VALUES))} or a Value, got {value!r}")
    return VALUES[value]


@explaining
@dataclass(frozen=True)
class Target:
    """What is explained.

    Attributes:
        values: the values, of every part.
        parts: the parts of the answer.
        search: how the alternatives are come by, if a value compares with some.
    """

    values: tuple[Value, ...]
    parts: tuple[Word, ...]
    search: Search

    def __post_init__(self) -> None:
        wrong = [texts for texts in self.search.given.values() if len(texts) != 1]
        if wrong and VALUES["difference"] in self.values:
            raise InputError(
                f"value='difference' is the difference of two answers: against is one text, got {list(wrong[0])}; "
                "value='odds' takes several"
            )

    @property
    def compares(self) -> bool:
        return any(value.compares for value in self.values)

    def only(self, place: int | str, against: Against | None = None) -> Target:
        """One of the parts, by its number or its text, and what it is compared with; by default, what it was.

        Raises:
            InputError: no such part, or several that read so.
        """
        number = self._number(place)
        own = self.search.given.get(number) if against is None else listed(against)
        given = {} if own is None else {0: own}
        ids = {0: self.search.ids.get(number, ())} if against is None else {}
        search = dataclasses.replace(self.search, given=given, ids=ids)
        return Target(self.values, self.parts[number : number + 1], search)

    def _number(self, place: int | str) -> int:
        texts = [part.text.strip() for part in self.parts]
        wanted = str(place).strip().casefold()
        found = [
            n for n, text in enumerate(texts) if (text.casefold() == wanted if isinstance(place, str) else n == place)
        ]
        if isinstance(place, bool | float):
            raise InputError(f"a part is named by its number, counted from 0, or its text; got {place!r}")
        if len(found) != 1:
            raise InputError(
                f"{len(found) or 'no'} parts of the answer are {place!r}; by {unit_name(self.search.unit)!r} they are, "
                f"counted from 0, {list(enumerate(texts))}"
            )
        return found[0]


@explained
def target_of(
    vlm: HookedVLM,
    x: Inputs,
    values: Sequence[str | Value],
    unit: Unit | str = "token",
    against: Against | None = None,
    place: int = 0,
    count: int = 10,
) -> Target:
    """What a user asks to have explained.

    Args:
        vlm: the model.
        x: an example with an answer.
        values: names of values, or values.
        unit: the parts: every token, word or sentence of the answer, the answer, one span (start, stop) of tokens, or
            what cuts a text into words.
        against: alternatives to one part, or to each (`attribution.against`), as text; the others' are found.
        place: which part that is, counted from 0; by token too, the number of the word.
        count: how many alternatives are found at most; a difference has one.

    Raises:
        InputError: no answer, an unknown value or unit, a part that is not there, or alternatives that do not fit.
    """
    x.need_answer()
    parts = parts_of(x, unit, vlm.decode)
    chosen = tuple(dict.fromkeys(map(named, values)))
    count = min(count, 1) if VALUES["difference"] in chosen else count
    if against is not None and of_each(against):
        found = not isinstance(against, Sequence | Mapping)
        given, ids = by_part(against, parts), ids_by_part(against)
        search = Search(unit, given, count, exact=unit == "token", written=found, ids=ids)
        return Target(chosen, parts, search)
    given = {} if against is None else {_number(vlm, x, parts, unit, whole(place)): listed(against)}
    return Target(chosen, parts, Search(unit, given, count))


def _number(vlm: HookedVLM, x: Inputs, parts: Sequence[Word], unit: Unit | str, place: int) -> int:
    """The number of the part that alternatives are given for."""
    counted = parts_of(x, "word", vlm.decode) if unit == "token" else parts
    kind = {"token": "word", "word": "word", "sentence": "sentence"}.get(str(unit), "part")
    if not 0 <= place < len(counted):
        raise InputError(f"the answer has {len(counted)} {kind}s; there is no {kind} {place}, counted from 0")
    return counted[place].start if unit == "token" else place


@explaining
@dataclass(frozen=True)
class Valued:
    """The values of every part under every coalition, float64, and what each was compared with, and its tokens."""

    numbers: Float[Tensor, "value part coalition"]
    alternatives: tuple[tuple[str, ...], ...]
    alternative_ids: tuple[Spellings, ...]

    def held(self, target: Target) -> Target:
        """The same target, compared with what it was compared with here, whatever is seen."""
        if not target.compares:
            return target
        given, ids = dict(enumerate(self.alternatives)), dict(enumerate(self.alternative_ids))
        search = dataclasses.replace(target.search, given=given, ids=ids, written=True)
        return dataclasses.replace(target, search=search)


@explained
@torch.no_grad()
def values_of(
    vlm: HookedVLM,
    x: Inputs,
    visible: Bool[Tensor, "coalition position"],
    target: Target,
    *,
    asked: Bool[Tensor, "part coalition"] | None = None,
    hide_from: HideFrom = "all",
    progress: bool = False,
    decoder_inputs: DecoderInputs | None = None,
) -> Valued:
    """The values of a target under every coalition.

    Args:
        vlm: the model.
        x: an example with an answer.
        visible: which positions each coalition sees.
        target: what is explained (`target_of`).
        asked: of each part, the coalitions that alternatives are found in: those that know what is asked, say; all by
            default.
        hide_from: who loses sight of what is hidden (`score`).
        progress: show a progress bar.
        decoder_inputs: of the example (`run_to_decoder`), if it is scored by several methods.

    Raises:
        InputError: alternatives that do not fit.
        VisibilityError: a matrix that does not fit.
    """
    given = given_rivals(vlm, x, target.parts, target.search) if target.compares else {}
    if decoder_inputs is None and target.compares:
        decoder_inputs = run_to_decoder(vlm, x, keep_prompt=hide_from == "all")
    scores = score_answers(vlm, x, visible, [x.answer_ids], hide_from, progress, decoder_inputs)[0]
    rivals: list[Rivals] = []
    others = [torch.empty(len(visible), 0, dtype=torch.float64)] * len(target.parts)
    if target.compares:
        assert decoder_inputs is not None
        asked = torch.ones(len(target.parts), len(visible), dtype=torch.bool) if asked is None else asked
        rivals = rivals_of(vlm, x, target.parts, target.search, scores, asked, decoder_inputs, given)
        others = others_of(vlm, x, visible, rivals, hide_from, decoder_inputs)
    found = [evidence(vlm, scores, *pair) for pair in zip(target.parts, others, strict=True)]
    numbers = torch.stack([torch.stack([value.of(one) for one in found]) for value in target.values])
    if not rivals:
        return Valued(numbers, ((),) * len(target.parts), ((),) * len(target.parts))
    ids = tuple(tuple(map(tuple, rival.ids)) for rival in rivals)
    return Valued(numbers, tuple(names_of(vlm, rival) for rival in rivals), ids)


def evidence(vlm: HookedVLM, scores: Scores, part: Word, others: Float[Tensor, "coalition rival"]) -> Evidence:
    """What scores of an answer say of a part of it, beside its alternatives."""
    logit, logprob, logodds = (
        numbers[:, part.start : part.stop].double() for numbers in (scores.logit, scores.logprob, scores.logodds)
    )
    return Evidence(logit, logprob, logodds, others, vlm.readout.vocabulary)


def texts_of(parts: Sequence[Word]) -> tuple[str, ...]:
    return tuple(part.text for part in parts)


def described(target: Target, against: Against | None, place: int) -> dict[str, Any]:
    """The choice of alternatives, for a result's provenance."""
    if against is not None:
        return {"against": plain(against), **({} if of_each(against) else {"word": place})}
    return {"alternatives": target.search.count}
