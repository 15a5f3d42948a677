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
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.engine.decoder import DecoderInputs, run_to_decoder
from lvlm_interp.engine.score import score_answers
from lvlm_interp.errors import InputError, VisibilityError
from lvlm_interp.inputs.example import CREDITED, Inputs, Role
from lvlm_interp.inputs.words import Word, continues, split_words
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Provenance, Result

Value = Literal["odds", "full"]
Unit = Literal["token", "word"]
LONGEST_ALTERNATIVE = 6  # tokens that a found alternative word is spelt out to
PLAUSIBLE = 0.01  # chance from which a found alternative counts
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
        self._need(role)
        return self.credits[:, self.roles.index(role)]

    def _need(self, role: str) -> None:
        if role not in self.roles:
            raise VisibilityError(f"{role!r} has no credit here; the players are {list(self.roles)}")

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

        The alternatives stay: with `keep=`, roles other than the question may lead to others.

        Raises:
            VisibilityError: a role that is not among the players.
        """
        for role in roles:
            self._need(role)
        about, kept = self.provenance, _kept((*self.kept, *roles))
        always = sum(1 << i for i, role in enumerate(self.roles) if role in roles)
        columns = [s for s in range(1 << len(self.roles)) if s & always == always]
        return dataclasses.replace(
            self,
            roles=tuple(role for role in self.roles if role not in roles),
            odds=self.odds[:, columns],
            full=self.full[:, columns],
            kept=kept,
            provenance=dataclasses.replace(about, parameters={**about.parameters, "keep": list(kept)}),
        )

    def with_value(self, value: Value) -> CreditSplit:
        """The same split by the other value."""
        return dataclasses.replace(self, value=_checked(value))

    def group(self, **groups: Sequence[str]) -> pd.DataFrame:
        """Credits added up: `group(text=("question", "context", "system"))` gives text / image / prior.

        Roles that are in no group stay as they are; roles that are not present count 0.

        Raises:
            VisibilityError: an unknown role, one that is grouped twice, or a group named like another column.
        """
        frame = self.to_frame()
        grouped = [member for members in groups.values() for member in members]
        if unknown := [m for m in grouped if m not in (*CREDITED, "prior")]:
            raise VisibilityError(f"cannot group {unknown}; roles are {[*CREDITED, 'prior']}")
        if twice := [m for m in dict.fromkeys(grouped) if grouped.count(m) > 1]:
            raise VisibilityError(f"{twice} would count twice: give each role to one group, once")
        sums = {name: frame[[m for m in members if m in frame]].sum(axis=1) for name, members in groups.items()}
        frame = frame.drop(columns=[m for m in grouped if m in frame])
        if taken := [name for name in sums if name in frame]:
            raise VisibilityError(f"no group can be named {taken[0]!r}: that is another column")
        for name, values in sums.items():
            frame.insert(len(frame.columns) - 1, name, values)
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
    decoder_inputs: DecoderInputs | None = None,
) -> CreditSplit:
    """Split every answer token between prior, question, context, system and image.

    Args:
        vlm: the model.
        x: an example with an answer.
        keep: roles that are always visible; `("template", "question")` asks what the model knew once asked, and with
            `value="full"` the image's credit is then CAL's contrast in nats.
        value: which of the two values the result shows first.
        against: the alternatives of `odds` for one word of the answer (`word`), as text; found if not given: the most
            likely other tokens over the coalitions that see the question, each with a chance of at least 1% there.
        unit: `token`, or `word`: a word of several tokens is scored as a whole, against whole words.
        word: which word of the answer `against` stands against, counted from 0.
        alternatives: how many alternatives to find at most.
        decoder_inputs: of the example (`run_to_decoder`), if it is scored by several methods.

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
    if isinstance(against, str):
        raise InputError(f"against is a list of words, got the text {against!r}; give [{against!r}]")
    if against is not None and not 0 <= word < len(words):
        raise InputError(f"the answer has {len(words)} words; there is no word {word}")
    if unit not in ("token", "word"):
        raise InputError(f"unit is 'token' or 'word', got {unit!r}")
    parts = words if unit == "word" else _tokens(x)
    given_words = {words[word].start: against} if against is not None else {}
    decoder_inputs = decoder_inputs or run_to_decoder(vlm, x, keep_prompt=True)
    found = _each(vlm, x, decoder_inputs, parts, visible, asked, unit, alternatives, given_words)
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
    decoder_inputs: DecoderInputs,
    parts: Sequence[Word],
    visible: Bool[Tensor, "coalition position"],
    asked: Bool[Tensor, " coalition"],
    unit: Unit,
    count: int,
    against: Mapping[int, Sequence[str]],
) -> list[_Found]:
    """Both values of every part of the answer; `against` has the given alternatives by the part's first token."""
    scored = score_answers(vlm, x, visible, [x.answer_ids], decoder_inputs=decoder_inputs)[0]
    rivals = []
    for part in parts:
        logprobs = _logprobs(vlm, scored.states[:, part.start])
        if part.start in against:
            one = _given(vlm, x, part, against[part.start], unit)
        else:
            likely = _likely(logprobs, asked, int(x.answer_ids[part.start]), count).tolist()
            one = _Rivals(part, [[token] for token in likely], unit == "word" and part.is_content)
        # not the whole vocabulary of every part at once: with a long answer that would be gigabytes
        begun = {ids[0]: logprobs[:, ids[0]].clone() for ids in one.ids}
        rivals.append(dataclasses.replace(one, begun=begun))
    spelt = _spelt_out(vlm, x, visible[-1:], decoder_inputs, rivals)
    others = _rest(vlm, x, visible, decoder_inputs, spelt)
    own = [scored.logprob[:, part.start : part.stop].double().sum(1) for part in parts]
    return [_found(vlm, *row) for row in zip(own, spelt, others, strict=True)]


def _found(
    vlm: HookedVLM,
    own: Float[Tensor, " coalition"],
    rivals: _Rivals,
    rest: Float[Tensor, "coalition alternative"],
) -> _Found:
    """Both values of one part: its log-probability against those of its rivals, the first token and what follows."""
    others = torch.stack([rivals.begun[ids[0]] for ids in rivals.ids], 1) + rest
    length = rivals.part.stop - rivals.part.start
    names = tuple("".join(vlm.token_strings(ids)) for ids in rivals.ids)
    return _Found(own - _log_mean(others), own + length * math.log(vlm.readout.vocabulary), names)


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


# --- alternatives ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rivals:
    """What a part of the answer is compared with: token ids of each, and whether they are still to be spelt out.

    `begun` has the log-probability of their first tokens under every coalition.
    """

    part: Word
    ids: list[list[int]]
    unfinished: bool = False
    begun: Mapping[int, Float[Tensor, " coalition"]] = field(default_factory=dict)


def _logprobs(vlm: HookedVLM, hidden: Float[Tensor, "coalition width"]) -> Float[Tensor, "coalition vocabulary"]:
    with torch.no_grad():
        return vlm.readout.logits(hidden).double().log_softmax(-1).cpu()


def _likely(
    logprobs: Float[Tensor, "coalition vocabulary"], asked: Bool[Tensor, " coalition"], token: int, count: int
) -> Int[Tensor, " alternative"]:
    """The tokens, other than this one, that some coalition that knows the question finds most likely.

    At most `count`, and none but the first that no such coalition gives a chance of `PLAUSIBLE`: what is left of the
    vocabulary is never really in question, and would only dilute the mean.
    """
    best = logprobs[asked].max(0).values
    best[token] = -math.inf
    if not 1 <= count < len(best):
        raise InputError(f"alternatives is between 1 and {len(best) - 1}, got {count}")
    top = best.topk(count)
    plausible = top.values >= math.log(PLAUSIBLE)
    plausible[0] = True
    return top.indices[plausible]


def _given(vlm: HookedVLM, x: Inputs, part: Word, against: Sequence[str], unit: Unit) -> _Rivals:
    """Given words; where the unit is the token, their first tokens decide."""
    own = x.answer_ids[part.start : part.stop].tolist()
    blank = vlm.token_strings(own)[0].startswith(" ")
    others = [_ids_of(vlm, text.strip(), blank) for text in against]
    if unit == "token":
        others = [ids[:1] for ids in others]
    if not others or own in others:
        raise InputError(
            f"the alternatives {list(against)} must be others than {part.text.strip()!r}"
            + (" (words that begin with the same token need unit='word')" if unit == "token" else "")
        )
    return _Rivals(part, others)


def _ids_of(vlm: HookedVLM, word: str, blank: bool) -> list[int]:
    """A word as tokens, alone or behind a blank; which of the two a tokenizer takes a text's beginning for differs."""
    ids = vlm.prompter.answer_ids((), word)
    if not blank:
        return ids
    before, both = (vlm.prompter.answer_ids((), text) for text in ("a", f"a {word}"))
    return both[len(before) :] if both[: len(before)] == before else vlm.prompter.answer_ids((), f" {word}")


def _spelt_out(
    vlm: HookedVLM,
    x: Inputs,
    visible: Bool[Tensor, "1 position"],
    decoder_inputs: DecoderInputs,
    rivals: Sequence[_Rivals],
) -> list[_Rivals]:
    """First tokens continued greedily to the end of their words, as the model would go on seeing everything.

    All parts of the answer together, a token of each at a time.
    """
    growing = [(rival.part.start, ids) for rival in rivals if rival.unfinished for ids in rival.ids]
    spelt: dict[tuple[int, tuple[int, ...]], list[int]] = {(start, tuple(ids)): list(ids) for start, ids in growing}
    waiting = list(spelt)
    for _ in range(LONGEST_ALTERNATIVE - 1):
        if not waiting:
            break
        # The engine reads the state before each token; a stand-in token asks for the state after the last one.
        asked = [torch.cat([x.answer_ids[: key[0]].cpu(), torch.tensor([*spelt[key], 0])]) for key in waiting]
        scored = score_answers(vlm, x, visible, asked, decoder_inputs=decoder_inputs, reads=[1] * len(asked))
        following = vlm.readout.logits(torch.stack([s.states[0, 0] for s in scored])).argmax(-1).tolist()
        more = zip(waiting, following, vlm.token_strings(following), strict=True)
        grown = [(key, token) for key, token, text in more if continues("".join(vlm.token_strings(spelt[key])), text)]
        for key, token in grown:
            spelt[key].append(token)
        waiting = [key for key, _ in grown]
    return [_distinct(vlm, x, rival, spelt) for rival in rivals]


def _distinct(
    vlm: HookedVLM, x: Inputs, rivals: _Rivals, spelt: Mapping[tuple[int, tuple[int, ...]], list[int]]
) -> _Rivals:
    """The words that came out, each once: those that read as the word itself, or as a likelier one, are left out."""
    if not rivals.unfinished:
        return rivals
    words = [spelt[rivals.part.start, tuple(ids)] for ids in rivals.ids]
    own = x.answer_ids[rivals.part.start : rivals.part.stop].tolist()
    texts = ["".join(vlm.token_strings(ids)).strip().casefold() for ids in (own, *words)]
    kept = [ids for n, ids in enumerate(words, 1) if texts[n] not in texts[:n]]
    return dataclasses.replace(rivals, ids=kept or words[:1], unfinished=False)


def _rest(
    vlm: HookedVLM,
    x: Inputs,
    visible: Bool[Tensor, "coalition position"],
    decoder_inputs: DecoderInputs,
    rivals: Sequence[_Rivals],
) -> list[Float[Tensor, "coalition alternative"]]:
    """Log-probability of what follows the first token of every rival; 0 where nothing does."""
    rest = [torch.zeros(len(visible), len(rival.ids), dtype=torch.float64) for rival in rivals]
    longer = [(p, n, ids) for p, rival in enumerate(rivals) for n, ids in enumerate(rival.ids) if len(ids) > 1]
    if not longer:
        return rest
    so_far = [x.answer_ids[: rival.part.start].cpu() for rival in rivals]
    answers = [torch.cat([so_far[p], torch.tensor(ids)]) for p, _, ids in longer]
    reads = [len(ids) - 1 for _, _, ids in longer]
    scored = score_answers(vlm, x, visible, answers, decoder_inputs=decoder_inputs, reads=reads)
    for (p, n, _), scores in zip(longer, scored, strict=True):
        rest[p][:, n] = scores.logprob.double().sum(1)
    return rest


def shares(credits: Mapping[str, float]) -> dict[str, float]:
    """Positive credits as shares of their sum; for reading, not for adding up."""
    positive = {name: max(0.0, value) for name, value in credits.items()}
    whole = sum(positive.values())
    return {name: value / whole if whole else 0.0 for name, value in positive.items()}
