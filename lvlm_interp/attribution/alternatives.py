"""What an answer is compared with: words that were given, or those that the model finds most likely instead."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.attribution.rivals import Rivals, Search, Spellings, showing_of, spelt_out
from lvlm_interp.engine.decoder import DecoderInputs, standing
from lvlm_interp.engine.score import HideFrom, Scores, score_answers
from lvlm_interp.errors import InputError, LvlmInterpWarning
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Word
from lvlm_interp.model.readout import Readout
from lvlm_interp.model.vlm import HookedVLM

LONGEST_ALTERNATIVE = 6  # tokens that a found alternative word is spelt out to
CLOSING = ".,;:!?…)]}%'’”。，、；：！？"
PLAUSIBLE = 0.01  # chance from which a found alternative counts


@explained
def given_rivals(vlm: HookedVLM, x: Inputs, parts: Sequence[Word], search: Search) -> dict[int, Rivals]:
    """The alternatives that a user gives, by the number of the part.

    Raises:
        InputError: they are the part itself, or none; or too many others are to be found.
    """
    if not 1 <= search.count < vlm.readout.vocabulary:
        raise InputError(f"alternatives is between 1 and {vlm.readout.vocabulary - 1}, got {search.count}")
    return {n: _given(vlm, x, parts[n], against, search, search.ids.get(n, ())) for n, against in search.given.items()}


@explained
def rivals_of(
    vlm: HookedVLM,
    x: Inputs,
    parts: Sequence[Word],
    search: Search,
    scores: Scores,
    asked: Bool[Tensor, "part coalition"],
    decoder_inputs: DecoderInputs,
    given: Mapping[int, Rivals],
) -> list[Rivals]:
    """The alternatives of every part.

    Args:
        vlm: the model.
        x: an example with an answer.
        parts: of the answer.
        search: what is given, and how the rest is found.
        scores: of the answer under every coalition.
        asked: of each part, the coalitions that find alternatives.
        decoder_inputs: of the example.
        given: those that are given (`given_rivals`).
    """
    begun = []
    for number, part in enumerate(parts):
        one = given.get(number) or _found(vlm, x, part, search, scores, asked[number])
        starts = list(dict.fromkeys(ids[0] for ids in (*one.ids, *one.reserve)))
        first = Beginnings(vlm.readout, scores.states[:, part.start]).of(starts).unbind(1)
        begun.append(dataclasses.replace(one, begun=dict(zip(starts, first, strict=True))))
    return spelt_out(vlm, x, decoder_inputs, begun)


@explained
def others_of(
    vlm: HookedVLM,
    x: Inputs,
    visible: Bool[Tensor, "coalition position"],
    rivals: Sequence[Rivals],
    hide_from: HideFrom,
    decoder_inputs: DecoderInputs,
) -> list[Float[Tensor, "coalition rival"]]:
    """Log-probability of every alternative under every coalition: its first token, and what follows.

    The first is read where the answer's own is. Not under an edit, and not in layers of a user's own: these may count
    positions from the end, where an alternative of another length has other rows, so that it is scored whole.
    """
    if vlm.active_edits or standing(vlm):
        return _scored(vlm, x, visible, rivals, hide_from, decoder_inputs, begun=0)
    rest = _scored(vlm, x, visible, rivals, hide_from, decoder_inputs, begun=1)
    begun = [torch.stack([rival.begun[ids[0]] for ids in rival.ids], 1) for rival in rivals]
    return [first + following for first, following in zip(begun, rest, strict=True)]


def names_of(vlm: HookedVLM, rivals: Rivals) -> tuple[str, ...]:
    """The alternatives as text."""
    return tuple(vlm.text_of(ids) for ids in rivals.ids)


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

    def likely(
        self,
        asked: Bool[Tensor, " coalition"],
        without: Sequence[int],
        count: int,
        before: Float[Tensor, " coalition"] | None = None,
    ) -> tuple[Float[Tensor, " alternative"], Int[Tensor, " alternative"]]:
        """The tokens, other than these, that some coalition that knows the question finds most likely.

        Args:
            asked: these coalitions.
            without: these tokens.
            count: how many.
            before: log-probability of what they follow, 0 by default.

        Returns:
            Their log-probabilities in the coalition where they are likeliest, with what is before; and the tokens.
        """
        added = torch.zeros(len(self.states), dtype=torch.float64) if before is None else before
        bests = [(ps[asked[n]] + added[n][asked[n]][:, None]).amax(0) for n, ps in self if asked[n].any()]
        best = torch.stack(bests).amax(0)
        best[list(without)] = -math.inf
        values, indices = best.topk(count)
        return values, indices


def _found(
    vlm: HookedVLM, x: Inputs, part: Word, search: Search, scores: Scores, asked: Bool[Tensor, " coalition"]
) -> Rivals:
    """What some coalition that is asked would rather say, by its beginning: that may be the part's own.

    At most `count` that such a coalition gives a chance of `PLAUSIBLE`: what is left of the vocabulary is never really
    in question, and would only dilute the mean. If there is none, the likeliest that begins otherwise. Words are spelt
    out to their end, other parts to the length of the part.
    """
    own = x.answer_ids[part.start : part.stop].tolist()
    found: list[tuple[float, list[int]]] = []
    showing = showing_of(vlm)
    for n in _branches(part, search, scores, asked):
        at = part.start + n
        before = scores.logprob[:, part.start : at].double().sum(1)
        likely = Beginnings(vlm.readout, scores.states[:, at]).likely(asked, [own[n], *showing], search.count, before)
        found += [(value, [*own[:n], token]) for value, token in zip(*(t.tolist() for t in likely), strict=True)]
    found.sort(key=lambda one: -one[0])
    chosen = [ids for value, ids in found[: search.count] if value >= math.log(PLAUSIBLE)]
    if not chosen:  # what begins as the part does is lost with it when the source of both is hidden
        found.sort(key=lambda one: one[1][0] == own[0])
    likeliest = [ids for _, ids in found]
    count = max(1, len(chosen))
    ids, reserve = likeliest[:count], likeliest[count : count + search.count]
    if search.unit == "token":
        return Rivals(part, ids)
    if search.by_word:
        longest = LONGEST_ALTERNATIVE + len(own) - 1 if part.is_content else 1
        return Rivals(part, ids, longest, search.segmenter, reserve)
    return Rivals(part, ids, len(own), None, reserve)


def _branches(part: Word, search: Search, scores: Scores, asked: Bool[Tensor, " coalition"]) -> list[int]:
    """At which of its tokens something else may be said: the first, and those where that has a plausible chance."""
    if search.unit == "token":
        return [0]
    logprob, logodds = (t[asked, part.start : part.stop].double() for t in (scores.logprob, scores.logodds))
    before = logprob.cumsum(1) - logprob
    other = (before + logprob - logodds).amax(0)  # log p(what is before) + log (1 − p)
    return [n for n in range(part.stop - part.start) if not n or other[n] >= math.log(PLAUSIBLE)]


def _given(
    vlm: HookedVLM, x: Inputs, part: Word, against: Sequence[str], search: Search, known: Spellings = ()
) -> Rivals:
    """Given words, each once; where the unit is the token, their first tokens decide. `known` are their tokens, unless
    this model reads them as something else: those of another are not its own."""
    own = x.answer_ids[part.start : part.stop].tolist()
    others = [list(ids) for ids in known]
    if not known or [_read(vlm, ids) for ids in others] != list(against):
        read, ids_of = vlm.prompter, _tokeniser(vlm, x, part, own, search.written)
        others = [[read.token_id(text)] if search.exact or not text.strip() else ids_of(text) for text in against]
    if search.unit == "token":
        _need_letters(vlm, against, others)
        others = [ids[:1] for ids in others]
    if not others:
        raise InputError("against= holds no alternative; None has some found")
    if own in others:
        raise InputError(
            f"the alternatives {list(against)} must be others than {part.text.strip()!r}"
            + (" (words that begin with the same token need unit='word')" if search.unit == "token" else "")
        )
    different = [list(ids) for ids in dict.fromkeys(map(tuple, others))]
    if len(different) < len(others):
        warnings.warn(
            f"of the alternatives {list(against)}, some are the same "
            + ("first token, and are compared with" if search.unit == "token" else "tokens, and weigh")
            + f" once: {list(map(vlm.text_of, different))}"
            + ("; unit='word' tells them apart" if search.unit == "token" else ""),
            LvlmInterpWarning,
            stacklevel=2,
        )
    return Rivals(part, different)


def _tokeniser(vlm: HookedVLM, x: Inputs, part: Word, own: list[int], written: bool) -> Callable[[str], list[int]]:
    """What makes tokens of an alternative: where the answer begins, as an answer; else as a word behind what it is.

    An answer may begin without the blank that a word begins with (a special token, a Chinese letter).
    """
    if written:
        return lambda text: _as_written(vlm, text, part.start == 0)
    read, blank = vlm.prompter, vlm.token_strings(own)[0].startswith(" ")
    answer, opened = x.texts.get("answer", "").strip(), x.opening if x.opened is None else x.opened
    if part.start == 0 and answer and read.any_reply(answer).behind(x.opening, opened)[: part.stop] == own:
        return lambda text: read.any_reply(text.strip()).behind(x.opening, opened)
    parted = any(token.startswith(" ") for token in x.answer_tokens)

    def ids_of(text: str) -> list[int]:
        usual = blank if _closes(text) == _closes(part.text) else parted and not _closes(text)
        return read.word_ids(text.strip(), usual or text[:1].isspace())

    return ids_of


def _read(vlm: HookedVLM, ids: Sequence[int]) -> str | None:
    """What token ids read as; None where this model has no such tokens."""
    return vlm.text_of(ids) if all(0 <= token < vlm.readout.vocabulary for token in ids) else None


def _as_written(vlm: HookedVLM, text: str, first: bool) -> list[int]:
    """The tokens that read so, of which an earlier result has the text: one token, a word, or with special tokens."""
    read = vlm.prompter
    ways = (
        *((lambda: read.any_reply(text).ids,) if first else ()),
        lambda: [read.token_id(text)],
        lambda: read.word_ids(text),
        lambda: read.tokenizer(text, add_special_tokens=False).input_ids,
    )
    for way in ways:
        with contextlib.suppress(InputError):
            if vlm.text_of(ids := way()) == text:
                return list(ids)
    return read.word_ids(text)


def _closes(text: str) -> bool:
    """Whether it stands right behind a word, where words have blanks between them: a comma, the end of "it's"."""
    return text.strip().startswith(tuple(CLOSING))


def _need_letters(vlm: HookedVLM, against: Sequence[str], others: Sequence[Sequence[int]]) -> None:
    """Raise where an alternative begins with a token that is only a blank: any other word may follow it."""
    for text, ids in zip(against, others, strict=True):
        if len(ids) > 1 and not vlm.token_strings(ids[:1])[0].strip():
            raise InputError(
                f"the alternative {text!r} begins with a blank that is a token of its own, as other words do: compare "
                "whole words, unit='word'"
            )


def _scored(
    vlm: HookedVLM,
    x: Inputs,
    visible: Bool[Tensor, "coalition position"],
    rivals: Sequence[Rivals],
    hide_from: HideFrom,
    decoder_inputs: DecoderInputs,
    begun: int,
) -> list[Float[Tensor, "coalition rival"]]:
    """Log-probability of every alternative behind so many of its tokens; 0 where nothing follows."""
    rest = [torch.zeros(len(visible), len(rival.ids), dtype=torch.float64) for rival in rivals]
    longer = [(p, n, ids) for p, rival in enumerate(rivals) for n, ids in enumerate(rival.ids) if len(ids) > begun]
    if not longer:
        return rest
    so_far = [x.answer_ids[: rival.part.start].cpu() for rival in rivals]
    answers = [torch.cat([so_far[p], torch.tensor(ids)]) for p, _, ids in longer]
    reads = [len(ids) - begun for _, _, ids in longer]
    scored = score_answers(vlm, x, visible, answers, hide_from, decoder_inputs=decoder_inputs, reads=reads)
    for (p, n, _), scores in zip(longer, scored, strict=True):
        rest[p][:, n] = scores.logprob.double().sum(1)
    return rest
