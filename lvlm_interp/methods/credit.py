"""Prompt, image, or what the language model knew: an exact split of each answer token.

v(S) is a value of the answer token when only the roles in S may be seen (and what is kept, and the answer so far). The
prior is v(∅); each role gets its exact Shapley value over the 2^k coalitions of the k roles present, so that

    prior + Σ credits = v(all).

Two values, both always computed:

- `odds`: log p(y|S) − log mean p(a|S) over alternatives a: why this word *rather than another*. Zero is "no better than
  the alternatives".
- `full`: log p(y|S) + log V: why this word rather than *any* word. Zero is a uniform guess over the vocabulary (a word
  of n tokens has n·log V).

Shapley 1953; dividends after Harsanyi 1963.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.errors import InputError, VisibilityError
from lvlm_interp.methods.words import Word, continues, split_words
from lvlm_interp.model.inputs import CREDITED, Inputs, Role
from lvlm_interp.model.score import DecoderInputs, decoder_inputs, score_answers
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Provenance, Result

Value = Literal["odds", "full"]
Unit = Literal["token", "word"]
LONGEST_ALTERNATIVE = 6  # tokens that a found alternative word is spelt out to
TOLERANCE = 1e-4  # nats by which a split may miss its total


@dataclass(frozen=True)
class CreditSplit(Result):
    """How much of each answer token (or word) each source accounts for, in nats.

    Attributes:
        tokens: the answer tokens or words as text.
        roles: the players, in order.
        value: which value `prior`, `credits` and `total` speak of.
        odds, full: both values under every coalition, `[answer, 2^k]`; coalition number S has bit i set where role i
            may be seen.
        alternatives: for each token, the words that `odds` compares it with.
        kept: the roles that are always visible.
    """

    tokens: tuple[str, ...]
    roles: tuple[Role, ...]
    value: Value
    odds: Float[Tensor, "answer coalition"]
    full: Float[Tensor, "answer coalition"]
    alternatives: tuple[tuple[str, ...], ...]
    kept: tuple[str, ...]

    @property
    def values(self) -> Float[Tensor, "answer coalition"]:
        """v(S) of the chosen value."""
        return self.odds if self.value == "odds" else self.full

    @property
    def prior(self) -> Float[Tensor, " answer"]:
        """v(∅): what is there with nothing of the user's to see."""
        return self.values[:, 0]

    @property
    def total(self) -> Float[Tensor, " answer"]:
        """v(all)."""
        return self.values[:, -1]

    @property
    def credits(self) -> Float[Tensor, "answer role"]:
        """Shapley value of every role."""
        return self.values @ shapley_weights(len(self.roles)).T

    def of(self, role: str) -> Float[Tensor, " answer"]:
        """Credit of one role (or `prior`, `total`).

        Raises:
            VisibilityError: the role is not among the players.
        """
        if role in ("prior", "total"):
            return self.prior if role == "prior" else self.total
        if role not in self.roles:
            raise VisibilityError(f"{role!r} has no credit here; the players are {list(self.roles)}")
        return self.credits[:, self.roles.index(role)]

    @property
    def question(self) -> Float[Tensor, " answer"]:
        return self.of("question")

    @property
    def context(self) -> Float[Tensor, " answer"]:
        return self.of("context")

    @property
    def system(self) -> Float[Tensor, " answer"]:
        return self.of("system")

    @property
    def image(self) -> Float[Tensor, " answer"]:
        return self.of("image")

    @property
    def interactions(self) -> dict[tuple[Role, ...], Float[Tensor, " answer"]]:
        """Harsanyi dividends of the coalitions of two and more roles: what they do together beyond their parts.

        A role's Shapley value is the sum, over the coalitions that it is in, of their dividends shared out equally.
        """
        found = {}
        for number in range(1 << len(self.roles)):
            members = tuple(role for i, role in enumerate(self.roles) if number >> i & 1)
            if len(members) > 1:
                found[members] = self.values @ dividend_weights(len(self.roles))[number]
        return found

    def keeping(self, *roles: str) -> CreditSplit:
        """The split in which these roles are always visible, as `credit(…, keep=…)` gives it; no model is run.

        Raises:
            VisibilityError: a role that is not among the players.
        """
        for role in roles:
            self.of(role)
        always = sum(1 << i for i, role in enumerate(self.roles) if role in roles)
        columns = [s for s in range(1 << len(self.roles)) if s & always == always]
        return dataclasses.replace(
            self,
            roles=tuple(role for role in self.roles if role not in roles),
            odds=self.odds[:, columns],
            full=self.full[:, columns],
            kept=_kept((*self.kept, *roles)),
        )

    def with_value(self, value: Value) -> CreditSplit:
        """The same split by the other value."""
        return dataclasses.replace(self, value=_checked(value))

    def group(self, **groups: Sequence[str]) -> pd.DataFrame:
        """Credits added up: `group(text=("question", "context", "system"))` gives text / image / prior.

        Roles that are in no group stay as they are; roles that are not present count 0.
        """
        frame = self.to_frame()
        for name, members in groups.items():
            unknown = [m for m in members if m not in (*CREDITED, "prior")]
            if unknown:
                raise VisibilityError(f"cannot group {unknown}; roles are {[*CREDITED, 'prior']}")
            inside = [m for m in members if m in frame]
            frame.insert(len(frame.columns) - 1, name, frame[inside].sum(axis=1))
            frame = frame.drop(columns=inside)
        return frame

    def to_frame(self) -> pd.DataFrame:
        """Columns `token`, `prior`, one for each role, `total`; nats."""
        numbers = {name: self.of(name).tolist() for name in ("prior", *self.roles, "total")}
        return pd.DataFrame({"token": self.tokens} | numbers)

    def _repr_html_(self) -> str:
        note = f"nats, value {self.value!r}; prior + credits = total"
        return self.to_frame().style.format(precision=2, escape="html").set_caption(note).to_html()


def shapley_weights(players: int) -> Float[Tensor, "player coalition"]:
    """The linear map from v `[2^k]` to Shapley values `[k]`, float64."""
    count = 1 << players
    weights = torch.zeros(players, count, dtype=torch.float64)
    for coalition in range(count):
        size = coalition.bit_count()
        for i in range(players):
            inside = coalition >> i & 1
            before = size - inside  # other players that are there already
            share = math.factorial(before) * math.factorial(players - before - 1) / math.factorial(players)
            weights[i, coalition] = share if inside else -share
    return weights


def dividend_weights(players: int) -> Float[Tensor, "coalition coalition"]:
    """The linear map from v to Harsanyi dividends: d(S) = Σ_{T ⊆ S} (−1)^{|S|−|T|} v(T), float64."""
    count = 1 << players
    weights = torch.zeros(count, count, dtype=torch.float64)
    for s, t in itertools.product(range(count), repeat=2):
        if s & t == t:
            weights[s, t] = (-1.0) ** (s.bit_count() - t.bit_count())
    return weights


def coalitions(x: Inputs, roles: Sequence[Role], keep: Sequence[str]) -> Bool[Tensor, "coalition position"]:
    """The 2^k coalitions of these roles, each with what is kept; coalition S has bit i set where role i is seen."""
    subsets = range(1 << len(roles))
    return torch.stack([x.visible(*keep, *(r for i, r in enumerate(roles) if s >> i & 1)) for s in subsets])


@torch.no_grad()
def credit(
    vlm: HookedVLM,
    x: Inputs,
    keep: Sequence[Role] = ("template",),
    value: Value = "odds",
    against: Sequence[str] | None = None,
    *,
    unit: Unit = "token",
    word: int = 0,
    alternatives: int = 10,
) -> CreditSplit:
    """Split every answer token between prior, question, context, system and image.

    Args:
        vlm: the model.
        x: an example with an answer.
        keep: roles that are always visible; `("template", "question")` asks what the model knew once asked, and with
            `value="full"` the image's credit is then CAL's contrast in nats.
        value: which of the two values the result shows first.
        against: the alternatives of `odds` for one word of the answer (`word`), as text; found if not given: the most
            likely other tokens over the coalitions that see the question.
        unit: `token`, or `word`: a word of several tokens is scored as a whole, against whole words.
        word: which word of the answer `against` stands against, counted from 0.
        alternatives: how many alternatives to find.

    Returns:
        The split; prior + credits = total to float error, checked.

    Raises:
        InputError: no answer, or alternatives that do not fit.
        VisibilityError: an unknown role in `keep`.
    """
    x.need_answer()
    players = tuple(role for role in CREDITED if role in x.present and role not in keep)
    visible = coalitions(x, players, _kept(keep))
    asked = _asking(players)
    words = split_words(x.answer_tokens)
    if against is not None and not 0 <= word < len(words):
        raise InputError(f"the answer has {len(words)} words; there is no word {word}")
    if unit not in ("token", "word"):
        raise InputError(f"unit is 'token' or 'word', got {unit!r}")
    parts = words if unit == "word" else _tokens(x)
    given_words = {words[word].start: against} if against is not None else {}
    found = _each(vlm, x, parts, visible, asked, unit, alternatives, given_words)
    split = CreditSplit(
        tokens=tuple(part.text for part in parts),
        roles=players,
        value=_checked(value),
        odds=torch.stack([f.odds for f in found]),
        full=torch.stack([f.full for f in found]),
        alternatives=tuple(f.names for f in found),
        kept=_kept(keep),
        provenance=_provenance(vlm, keep, against, unit, word, alternatives),
    )
    return _closing(split)


@dataclass(frozen=True)
class _Found:
    """Both values of one token or word under every coalition, and what it was compared with."""

    odds: Float[Tensor, " coalition"]
    full: Float[Tensor, " coalition"]
    names: tuple[str, ...]


def _each(
    vlm: HookedVLM,
    x: Inputs,
    parts: Sequence[Word],
    visible: Bool[Tensor, "coalition position"],
    asked: Bool[Tensor, " coalition"],
    unit: Unit,
    count: int,
    against: Mapping[int, Sequence[str]],
) -> list[_Found]:
    """Both values of every part of the answer; `against` has the given alternatives by the part's first token."""
    given, found = decoder_inputs(vlm, x, keep_prefixes=True), []
    hidden = score_answers(vlm, x, visible, [x.answer_ids], given=given)[0].hidden
    for part in parts:
        before = _up_to(x, part, visible)
        if part.start in against:
            found.append(_against(vlm, before, part, given, against[part.start], unit))
            continue
        logprobs = _logprobs(vlm, hidden[:, part.start])
        others = _likely(logprobs, asked, before.ids[0], count)
        if unit == "word":
            found.append(_word(vlm, before, part, given, others))
        else:
            found.append(_token(vlm, logprobs, before.ids[0], others))
    return found


def _kept(keep: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(("template", *keep)))  # the template holds the attention sink and is always there


def _checked(value: str) -> Value:
    if value not in ("odds", "full"):
        raise InputError(f"value is 'odds' or 'full', got {value!r}")
    return value  # type: ignore[return-value]


def _provenance(
    vlm: HookedVLM, keep: Sequence[str], against: Sequence[str] | None, unit: str, word: int, alternatives: int
) -> Provenance:
    given = {"against": list(against), "word": word} if against is not None else {"alternatives": alternatives}
    return vlm.provenance("credit", keep=list(keep), unit=unit, **given)


def _closing(split: CreditSplit) -> CreditSplit:
    """The promise: prior + credits = total, for both values."""
    for by in (split.with_value("odds"), split.with_value("full")):
        gap = (by.prior + by.credits.sum(1) - by.total).abs().max()
        if not gap <= TOLERANCE:
            raise ArithmeticError(f"the credits of {by.value!r} miss their total by {float(gap)} nats (NaN weights?)")
    return split


def _asking(players: Sequence[Role]) -> Bool[Tensor, " coalition"]:
    """The coalitions that see the question: alternatives are looked for where the model knows what is asked."""
    if "question" not in players:
        return torch.ones(1 << len(players), dtype=torch.bool)
    bit = list(players).index("question")
    return torch.tensor([bool(s >> bit & 1) for s in range(1 << len(players))])


def _tokens(x: Inputs) -> tuple[Word, ...]:
    return tuple(Word(text, i, i + 1) for i, text in enumerate(x.answer_tokens))


def _log_mean(logprobs: Float[Tensor, "coalition alternative"]) -> Float[Tensor, " coalition"]:
    return logprobs.logsumexp(-1) - math.log(logprobs.shape[-1])


# --- alternatives that are tokens -----------------------------------------------------------------


def _token(vlm: HookedVLM, logprobs: Float[Tensor, "coalition vocabulary"], token: int, others: Tensor) -> _Found:
    odds = logprobs[:, token] - _log_mean(logprobs[:, others])
    full = logprobs[:, token] + math.log(logprobs.shape[1])
    return _Found(odds, full, vlm.token_strings(others.tolist()))


def _logprobs(vlm: HookedVLM, hidden: Float[Tensor, "coalition width"]) -> Float[Tensor, "coalition vocabulary"]:
    with torch.no_grad():
        return vlm.readout.logits(hidden).double().log_softmax(-1).cpu()


def _likely(logprobs: Float[Tensor, "coalition vocabulary"], asked: Tensor, token: int, count: int) -> Tensor:
    """The tokens, other than this one, that some coalition that knows the question finds most likely."""
    best = logprobs[asked].max(0).values
    best[token] = -math.inf
    if not 1 <= count < len(best):
        raise InputError(f"alternatives is between 1 and {len(best) - 1}, got {count}")
    return best.topk(count).indices


# --- alternatives that are words ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Before:
    """An example in which everything before a word is prompt: the coalitions over it, and the word's ids."""

    x: Inputs
    seen: Bool[Tensor, "coalition position"]
    ids: list[int]


def _up_to(x: Inputs, word: Word, visible: Tensor) -> _Before:
    start = x.answer_start + word.start
    cut = {k: v[:, :start] if v.shape == x.input_ids.shape else v for k, v in x.model_inputs.items()}
    before = dataclasses.replace(
        x, model_inputs=cut, roles=x.roles[:start], tokens=x.tokens[:start], answer_start=start
    )
    return _Before(before, visible[:, :start], x.answer_ids[word.start : word.stop].tolist())


def _word(vlm: HookedVLM, before: _Before, word: Word, given: DecoderInputs, others: Tensor) -> _Found:
    """One word against other whole words, found by spelling out the most likely other first tokens."""
    starters = [[int(i)] for i in others]
    spelt = _spelt_out(vlm, before, given, starters) if word.is_content else starters
    distinct = [ids for n, ids in enumerate(spelt) if ids != before.ids and ids not in spelt[:n]]
    return _whole(vlm, before, given, distinct)


def _against(
    vlm: HookedVLM, before: _Before, word: Word, given: DecoderInputs, against: Sequence[str], unit: Unit
) -> _Found:
    """One word against given words; where the unit is the token, their first tokens decide."""
    blank = " " if vlm.token_strings(before.ids)[0].startswith(" ") else ""
    others = [vlm.answered(before.x, blank + text.strip()).answer_ids.tolist() for text in against]
    if unit == "token":
        others = [ids[:1] for ids in others]
    if not others or before.ids in others:
        raise InputError(
            f"the alternatives {list(against)} must be others than {word.text.strip()!r}"
            + (" (words that begin with the same token need unit='word')" if unit == "token" else "")
        )
    return _whole(vlm, before, given, others)


def _spelt_out(vlm: HookedVLM, before: _Before, given: DecoderInputs, starters: list[list[int]]) -> list[list[int]]:
    """Each first token continued greedily to the end of its word, as the model would go on seeing everything."""
    spelt = [list(ids) for ids in starters]
    growing = list(range(len(spelt)))
    for _ in range(LONGEST_ALTERNATIVE - 1):
        if not growing:
            break
        # The engine reads the state before each token; a stand-in token asks for the state after the last one.
        asked = [torch.tensor([*spelt[n], 0]) for n in growing]
        scored = score_answers(vlm, before.x, before.seen[-1:], asked, given=given)
        following = vlm.readout.logits(torch.stack([s.hidden[0, -1] for s in scored])).argmax(-1).tolist()
        more = vlm.token_strings(following)
        grown = [
            n for n, text in zip(growing, more, strict=True) if continues("".join(vlm.token_strings(spelt[n])), text)
        ]
        for n, token in zip(growing, following, strict=True):
            spelt[n] += [token] if n in grown else []
        growing = grown
    return spelt


def _whole(vlm: HookedVLM, before: _Before, given: DecoderInputs, others: list[list[int]]) -> _Found:
    """Both values of a word under every coalition, scored as a whole against whole words."""
    answers = [torch.tensor(ids) for ids in (before.ids, *others)]
    scored = score_answers(vlm, before.x, before.seen, answers, given=given)
    label, *rest = (s.logprob.double().sum(1) for s in scored)
    vocabulary = vlm.model.config.get_text_config().vocab_size
    names = tuple("".join(vlm.token_strings(ids)) for ids in others)
    full = label + len(before.ids) * math.log(vocabulary)
    return _Found(label - _log_mean(torch.stack(rest, 1)), full, names)


def shares(credits: Mapping[str, float]) -> dict[str, float]:
    """Positive credits as shares of their sum; for reading, not for adding up."""
    positive = {name: max(0.0, value) for name, value in credits.items()}
    whole = sum(positive.values())
    return {name: value / whole if whole else 0.0 for name, value in positive.items()}
