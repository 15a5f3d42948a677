"""What an answer is compared with: words that were given, or those that the model finds most likely instead."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.engine.decoder import DecoderInputs
from lvlm_interp.engine.score import HideFrom, score_answers
from lvlm_interp.errors import InputError
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Word, continues
from lvlm_interp.model.readout import Readout
from lvlm_interp.model.vlm import HookedVLM

LONGEST_ALTERNATIVE = 6  # tokens that a found alternative word is spelt out to
PLAUSIBLE = 0.01  # chance from which a found alternative counts


@dataclass(frozen=True)
class Search:
    """How alternatives are come by.

    Attributes:
        unit: of the parts: single tokens are compared by first tokens, words with words, longer parts with as many
            tokens.
        given: alternatives as text, by the number of the part; others are found.
        count: how many are found at most.
    """

    unit: str | tuple[int, int] = "token"
    given: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    count: int = 10


@dataclass(frozen=True)
class Rivals:
    """What a part of the answer is compared with.

    Attributes:
        part: the part.
        ids: token ids of each alternative.
        longest: how many tokens they are still to be spelt out to.
        in_word: whether they end where a word ends.
        begun: log-probability of their first tokens under every coalition, float64.
    """

    part: Word
    ids: list[list[int]]
    longest: int = 1
    in_word: bool = False
    begun: Mapping[int, Float[Tensor, " coalition"]] = field(default_factory=dict)


def rivals_of(
    vlm: HookedVLM,
    x: Inputs,
    parts: Sequence[Word],
    search: Search,
    states: Float[Tensor, "coalition answer width"],
    asked: Bool[Tensor, " coalition"],
    decoder_inputs: DecoderInputs,
) -> list[Rivals]:
    """The alternatives of every part.

    Args:
        vlm: the model.
        x: an example with an answer.
        parts: of the answer.
        search: what is given, and how the rest is found.
        states: what predicts each answer token under every coalition.
        asked: the coalitions that find alternatives: those that know what is asked.
        decoder_inputs: of the example.

    Raises:
        InputError: alternatives that are the part itself, none, or too many to be found.
    """
    begun = []
    for number, part in enumerate(parts):
        first = Beginnings(vlm.readout, states[:, part.start])
        if number in search.given:
            one = _given(vlm, x, part, search.given[number], search.unit)
        else:
            one = _found(first.likely(asked, int(x.answer_ids[part.start]), search.count).tolist(), part, search.unit)
        starts = list(dict.fromkeys(ids[0] for ids in one.ids))
        begun.append(dataclasses.replace(one, begun=dict(zip(starts, first.of(starts).unbind(1), strict=True))))
    return _spelt_out(vlm, x, decoder_inputs, begun)


def others_of(
    vlm: HookedVLM,
    x: Inputs,
    visible: Bool[Tensor, "coalition position"],
    rivals: Sequence[Rivals],
    hide_from: HideFrom,
    decoder_inputs: DecoderInputs,
) -> list[Float[Tensor, "coalition rival"]]:
    """Log-probability of every alternative under every coalition: its first token, and what follows."""
    rest = _rest(vlm, x, visible, rivals, hide_from, decoder_inputs)
    begun = [torch.stack([rival.begun[ids[0]] for ids in rival.ids], 1) for rival in rivals]
    return [first + following for first, following in zip(begun, rest, strict=True)]


def names_of(vlm: HookedVLM, rivals: Rivals) -> tuple[str, ...]:
    """The alternatives as text."""
    return tuple("".join(vlm.token_strings(ids)) for ids in rivals.ids)


@dataclass(frozen=True, eq=False)
class Beginnings:
    """Distributions of the token that a part begins with, under every coalition.

    Never the whole vocabulary under all of many coalitions: what does not fit at once is computed again when asked.
    """

    readout: Readout
    states: Float[Tensor, "coalition width"]

    def __iter__(self) -> Iterator[tuple[slice, Float[Tensor, "some vocabulary"]]]:
        return iter(self._only or self._each())

    def _each(self) -> Iterator[tuple[slice, Float[Tensor, "some vocabulary"]]]:
        for rows, logits in self.readout.few_at_once(self.states):
            yield rows, logits.double().log_softmax(-1).cpu()

    @functools.cached_property
    def _only(self) -> list[tuple[slice, Float[Tensor, "some vocabulary"]]]:
        """All of it, where all of it fits at once."""
        first = next(self._each())
        return [first] if len(first[1]) == len(self.states) else []

    def of(self, ids: Sequence[int]) -> Float[Tensor, "coalition token"]:
        """Log-probability of some tokens."""
        return torch.cat([logprobs[:, ids].clone() for _, logprobs in self])

    def likely(self, asked: Bool[Tensor, " coalition"], token: int, count: int) -> Int[Tensor, " alternative"]:
        """The tokens, other than this one, that some coalition that knows the question finds most likely.

        At most `count`, and none but the first that no such coalition gives a chance of `PLAUSIBLE`: what is left of
        the vocabulary is never really in question, and would only dilute the mean.
        """
        bests = [logprobs[asked[rows]].amax(0) for rows, logprobs in self if asked[rows].any()]
        best = torch.stack(bests).amax(0)
        best[token] = -math.inf
        if not 1 <= count < len(best):
            raise InputError(f"alternatives is between 1 and {len(best) - 1}, got {count}")
        top = best.topk(count)
        plausible = top.values >= math.log(PLAUSIBLE)
        plausible[0] = True
        return top.indices[plausible]


def _found(tokens: Sequence[int], part: Word, unit: str | tuple[int, int]) -> Rivals:
    """Alternatives that begin with these tokens, spelt out to the end of a word, or to the length of the part."""
    ids = [[token] for token in tokens]
    if unit == "word":
        return Rivals(part, ids, LONGEST_ALTERNATIVE if part.is_content else 1, in_word=True)
    return Rivals(part, ids, part.stop - part.start)


def _given(vlm: HookedVLM, x: Inputs, part: Word, against: Sequence[str], unit: str | tuple[int, int]) -> Rivals:
    """Given words; where the unit is the token, their first tokens decide."""
    own = x.answer_ids[part.start : part.stop].tolist()
    blank = vlm.token_strings(own)[0].startswith(" ")
    others = [vlm.prompter.word_ids(text.strip(), blank) for text in against]
    if unit == "token":
        others = [ids[:1] for ids in others]
    if not others or own in others:
        raise InputError(
            f"the alternatives {list(against)} must be others than {part.text.strip()!r}"
            + (" (words that begin with the same token need unit='word')" if unit == "token" else "")
        )
    return Rivals(part, others)


Key = tuple[int, tuple[int, ...]]  # where in the answer an alternative begins, and with which tokens


def _spelt_out(vlm: HookedVLM, x: Inputs, decoder_inputs: DecoderInputs, rivals: Sequence[Rivals]) -> list[Rivals]:
    """First tokens continued greedily, as the model would go on seeing everything.

    All parts of the answer together, a token of each at a time.
    """
    kinds: dict[Key, Rivals] = {
        (rival.part.start, tuple(ids)): rival for rival in rivals if rival.longest > 1 for ids in rival.ids
    }
    spelt, waiting = {key: list(key[1]) for key in kinds}, list(kinds)
    while waiting:
        # The engine reads the state before each token; a stand-in token asks for the state after the last one.
        asked = [torch.cat([x.answer_ids[: key[0]].cpu(), torch.tensor([*spelt[key], 0])]) for key in waiting]
        everything, last = x.everything[None], [1] * len(asked)
        scored = score_answers(vlm, x, everything, asked, decoder_inputs=decoder_inputs, reads=last)
        following = vlm.readout.logits(torch.stack([s.states[0, 0] for s in scored])).argmax(-1).tolist()
        pairs = zip(waiting, following, strict=True)
        grown = [(key, token) for key, token in pairs if _goes_on(vlm, kinds[key], spelt[key], token)]
        for key, token in grown:
            spelt[key].append(token)
        waiting = [key for key, _ in grown if len(spelt[key]) < kinds[key].longest]
    return [_distinct(vlm, x, rival, spelt) for rival in rivals]


def _goes_on(vlm: HookedVLM, rivals: Rivals, ids: Sequence[int], token: int) -> bool:
    """Whether an alternative goes on with this token, or ends before it."""
    if rivals.in_word:
        return continues("".join(vlm.token_strings(ids)), vlm.token_strings([token])[0])
    return token not in vlm.stops()


def _distinct(vlm: HookedVLM, x: Inputs, rivals: Rivals, spelt: Mapping[Key, list[int]]) -> Rivals:
    """What came out, each once: those that read as the part itself, or as a likelier one, are left out."""
    if rivals.longest == 1:
        return rivals
    words = [spelt[rivals.part.start, tuple(ids)] for ids in rivals.ids]
    own = x.answer_ids[rivals.part.start : rivals.part.stop].tolist()
    texts = ["".join(vlm.token_strings(ids)).strip().casefold() for ids in (own, *words)]
    kept = [ids for n, ids in enumerate(words, 1) if texts[n] not in texts[:n]]
    return dataclasses.replace(rivals, ids=kept or words[:1], longest=1)


def _rest(
    vlm: HookedVLM,
    x: Inputs,
    visible: Bool[Tensor, "coalition position"],
    rivals: Sequence[Rivals],
    hide_from: HideFrom,
    decoder_inputs: DecoderInputs,
) -> list[Float[Tensor, "coalition rival"]]:
    """Log-probability of what follows the first token of every alternative; 0 where nothing does."""
    rest = [torch.zeros(len(visible), len(rival.ids), dtype=torch.float64) for rival in rivals]
    longer = [(p, n, ids) for p, rival in enumerate(rivals) for n, ids in enumerate(rival.ids) if len(ids) > 1]
    if not longer:
        return rest
    so_far = [x.answer_ids[: rival.part.start].cpu() for rival in rivals]
    answers = [torch.cat([so_far[p], torch.tensor(ids)]) for p, _, ids in longer]
    reads = [len(ids) - 1 for _, _, ids in longer]
    scored = score_answers(vlm, x, visible, answers, hide_from, decoder_inputs=decoder_inputs, reads=reads)
    for (p, n, _), scores in zip(longer, scored, strict=True):
        rest[p][:, n] = scores.logprob.double().sum(1)
    return rest
