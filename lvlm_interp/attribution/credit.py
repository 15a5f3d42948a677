"""Prompt, image, or what the language model knew: an exact split of each part of an answer.

v(S) is a value (`attribution.value`) of a part of the answer when only the players in S may be seen, and what is kept,
and the answer so far. The question asks: it comes first, and each of the other players gets its exact Shapley value
over the coalitions that see it. What the question brings is the prior's: v(question), what the model would say once
asked. Only where the words of the part stand in the question ("Say red") is it the question's own, and the prior is
v(∅). So

    prior + Σ credits = v(all).

With `asking=False` the question is a player like the others. A question says what an answer is about, so that most of
what a model knew is then the question's: the swap test (`attribution.swap`) has how often each names what decides.

Two values are computed by default:

- `odds`: log p(y|S) − log mean p(a|S) over alternatives a: why this word *rather than another*. Zero is "no better than
  the alternatives".
- `full`: log p(y|S) + log V: why this word rather than *any* word. Zero is a uniform guess over the vocabulary (a word
  of n tokens has n·log V).

Shapley 1953; players that come first after Frye, Rowat and Feige 2020, Asymmetric Shapley values; dividends after
Harsanyi 1963.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lvlm_interp.attribution.against import Against, need_word
from lvlm_interp.attribution.players import Player, Players, coalitions, players_of, runs_of, subsets
from lvlm_interp.attribution.saying import stands_in
from lvlm_interp.attribution.shapley import shares
from lvlm_interp.attribution.split import CreditSplit, kept_always
from lvlm_interp.attribution.value import Value, described, named, target_of, texts_of, values_of
from lvlm_interp.engine.decoder import DecoderInputs, run_to_decoder
from lvlm_interp.errors import InputError
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Unit, Word, parts_of, unit_name
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM

__all__ = ["CreditSplit", "coalitions", "credit", "shares"]

FREE = ("full", "logprob", "logodds", "logit")  # values that compare with nothing
TOLERANCE = 1e-4  # nats or logits by which a split may miss its total


@explained
@in_one_go
@torch.no_grad()
def credit(
    vlm: HookedVLM,
    x: Inputs,
    keep: Sequence[str] = ("template",),
    value: str | Value = "odds",
    against: Against | None = None,
    *,
    asking: bool = True,
    unit: Unit = "token",
    word: int = 0,
    alternatives: int = 10,
    players: Players = "roles",
    decoder_inputs: DecoderInputs | None = None,
) -> CreditSplit:
    """Split every token, word or sentence of an answer between prior, question, context, system and image.

    Args:
        vlm: the model.
        x: an example with an answer.
        keep: roles (or players) that are always visible.
        value: which value the result shows first, by name or a `Value`. Those that compare with nothing are always
            computed too, and `odds`, unless one of them was asked for without alternatives.
        against: the alternatives of `odds` (or the one of `difference`) for one word of the answer (`word`), as text,
            each once; or of every part, as a list with an entry for each, a mapping from their numbers, or an earlier
            result, so that two models are compared on the same. Found if not given: the most likely other tokens over
            the coalitions that see the question, each with a chance of at least 1% there; of a part whose words stand
            in the question, over all coalitions, since it is what would be said without the question that tells what
            the question brings. Of words and longer parts, something else may be said at any of their tokens ("ten
            euros" for "ten dollars"), and each is gone on with as the model would, to the end of the word, or to the
            part's length.
        asking: whether the question asks: it comes first, and what it brings is the prior's, unless the words of the
            part stand in it. With `value="full"`, and no context or system message, the image's credit is then CAL's
            contrast in nats. False: it is a player like the others, and the prior is v(∅); so it is where `players`
            splits it, or a part of it is kept.
        unit: `token`, `word`, `sentence`, `answer`, a span (start, stop) of answer tokens, or a function that cuts a
            text into words. A part of several tokens is scored as a whole, against wholes. By token here, as in every
            function that returns numbers; reports (`diagnose`, the command line) are by word.
        word: which word (or sentence) of the answer `against` stands against, counted from 0.
        alternatives: how many alternatives to find at most.
        players: among whom: `roles`, each of the `images`, each of the `turns` of a chat or of the `sentences` of the
            context, masks or positions by name, or several of these; what is not split stays the player of its role.
            At most 12.
        decoder_inputs: of the example (`run_to_decoder`), if it is scored by several methods.

    Returns:
        The split; prior + credits = total to float error, checked.

    Raises:
        InputError: no answer, an unknown value, unit or way to split, alternatives that do not fit, or too many
            players.
        VisibilityError: an unknown role in `keep`, or masks that overlap, are empty or cover what cannot be hidden.
    """
    if isinstance(keep, str):
        raise InputError(f"keep is several roles or players, got the text {keep!r}; give ({keep!r},)")
    if not isinstance(asking, bool):
        raise InputError(f"asking is True or False, got {asking!r}")
    need_word(word, against)
    chosen = named(value)
    target = target_of(vlm, x, _values(chosen, against), unit, against, word, alternatives)
    parts = players_of(x, players, keep, vlm.decode)
    always = ~torch.stack([part.positions for part in parts]).any(0) if parts else x.everything
    visible = subsets([part.positions for part in parts], always)
    quoting = _quoting(vlm, x, target.parts, parts)
    asked = visible[:, x.where("question")].all(1)[None].repeat(len(target.parts), 1)
    asked[torch.tensor(quoting, dtype=torch.bool).nonzero().flatten()] = True  # unasked, what else would be said?
    computed = decoder_inputs or run_to_decoder(vlm, x, keep_prompt=True)
    found = values_of(vlm, x, visible, target, asked=asked, decoder_inputs=computed)
    quoting = quoting if asking else ()
    split = CreditSplit(
        tokens=texts_of(target.parts),
        players=tuple(part.name for part in parts),
        player_roles=tuple(part.role for part in parts),
        player_texts=tuple(part.text for part in parts),
        value=chosen.name,
        computed=tuple(one.name for one in target.values),
        units=tuple(one.unit for one in target.values),
        numbers=found.numbers,
        alternatives=found.alternatives,
        kept=kept_always(keep),
        quoting=quoting,
        alternative_ids=found.alternative_ids,
        provenance=vlm.provenance(
            "credit",
            x,
            keep=list(keep),
            asking=bool(quoting),
            unit=unit_name(unit),
            **described(target, against, word),
            **_asked(players, parts),
        ),
    )
    return _closing(split)


def _quoting(vlm: HookedVLM, x: Inputs, parts: Sequence[Word], players: Sequence[Player]) -> tuple[bool, ...]:
    """Of each part, whether its words stand in the question: of a token, the word that it is in.

    Empty where the question is not one player, whole.
    """
    if not any(p.name == "question" and torch.equal(p.positions, x.where("question")) for p in players):
        return ()
    question = next(player.text for player in players if player.name == "question")
    words = parts_of(x, "word", vlm.decode)
    texts = (" ".join(w.text for w in words if w.start < part.stop and part.start < w.stop) for part in parts)
    return tuple(stands_in(text, question) for text in texts)


def _values(chosen: Value, against: Against | None) -> list[str | Value]:
    """What is computed: the value that is asked for, and what costs nothing more."""
    compares = chosen.compares or chosen.name == "full" or against is not None
    return [*(("odds",) if compares else ()), *FREE, chosen]


def _asked(players: Players, parts: Sequence[Player]) -> dict[str, Any]:
    """The players in a result's provenance; masks with their positions, of which a text may tell nothing."""
    splits = [players] if not isinstance(players, Sequence) or isinstance(players, str) else list(players)
    where = {part.name: part.positions.nonzero().flatten().tolist() for part in parts}
    told = [
        split if isinstance(split, str) else {name: runs_of(where.get(name, ())) for name in split} for split in splits
    ]
    return {} if told == ["roles"] else {"players": told}


def _closing(split: CreditSplit) -> CreditSplit:
    """The promise: prior + credits = total, for every value."""
    for by in map(split.with_value, split.computed):
        gap = (by.prior + by.credits.sum(1) - by.total).abs().max()
        if not gap <= TOLERANCE:
            raise ArithmeticError(
                f"the credits of {by.value!r} miss their total by {float(gap)} {by.unit} (NaN weights?)"
            )
    return split
