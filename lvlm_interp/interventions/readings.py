"""What an answer is worth in passes under interventions, each of which goes on from the untouched one."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.attribution.against import Against
from lvlm_interp.attribution.value import Evidence, Target, Value, target_of, values_of
from lvlm_interp.engine.resumed import Change, Resumed, Whole, passes_over
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Unit, Word
from lvlm_interp.interventions.intervention import Ledger
from lvlm_interp.interventions.places import layer_of
from lvlm_interp.model.finite import need_finite
from lvlm_interp.model.sites import Site
from lvlm_interp.model.vlm import HookedVLM

Ids = tuple[int, ...]


def default_value(against: Any) -> str:
    """What is told of an answer: how likely it is, or how far it leads."""
    return "logprob" if against is None else "difference" if isinstance(against, str) else "odds"


@dataclass(frozen=True, eq=False)
class Reading:
    """What one pass says of an answer.

    Attributes:
        values: each value of each part, float64.
        kl: KL(untouched ‖ this pass) at each token, over the whole vocabulary, in nats.
        logit: how large the logit of each token is.
    """

    values: Float[Tensor, "value part"]
    kl: Float[Tensor, " answer"]
    logit: Float[Tensor, " answer"]


class Readings:
    """Readings of one answer, and of what it is compared with, which is found untouched.

    Attributes:
        target: what is told, compared with what was found.
        alternatives: of each part, as text.
    """

    def __init__(self, vlm: HookedVLM, x: Inputs, target: Target) -> None:
        self.vlm, self.x, self.target = vlm, x, target
        self.alternatives: tuple[tuple[str, ...], ...] = ()
        self._rivals: tuple[tuple[Ids, ...], ...] = ((),) * len(target.parts)
        if target.compares:
            found = values_of(vlm, x, x.everything[None], target)
            self.target, self.alternatives, self._rivals = found.held(target), found.alternatives, found.alternative_ids
        self._own: Ids = tuple(x.answer_ids.tolist())
        self._passes: dict[Ids, Whole | Resumed] = {}
        self._plain = self._logprobs(self._over(self._own).states(UNTOUCHED))

    def _over(self, ids: Ids) -> Whole | Resumed:
        """Passes over the prompt with an answer of these tokens: one untouched, whatever comes after it."""
        if ids not in self._passes:
            self._passes[ids] = passes_over(self.vlm, self.x, ids)
        return self._passes[ids]

    @functools.cached_property
    def untouched(self) -> Reading:
        return self.under(UNTOUCHED)

    def under(self, change: Change) -> Reading:
        """What a pass says.

        Raises:
            ModelError: the model gives NaN or infinity.
        """
        states = self._over(self._own).states(change)
        logits = self.vlm.readout.logits(states).float()
        need_finite(self.vlm, self.x, logits)
        logprobs = logits.double().log_softmax(-1).cpu()
        others = [self._others(part, n, change, logprobs) for n, part in enumerate(self.target.parts)]
        evidence = [
            self._evidence(part, logits.double().cpu(), logprobs, other)
            for part, other in zip(self.target.parts, others, strict=True)
        ]
        values = torch.stack([torch.cat([value.of(one) for one in evidence]) for value in self.target.values])
        kl = (self._plain.exp() * (self._plain - logprobs)).sum(-1).clamp(min=0)
        own = logits.cpu().gather(-1, torch.tensor(self._own)[:, None])[:, 0]
        return Reading(values, kl, own)

    def _logprobs(self, states: Float[Tensor, "answer width"]) -> Float[Tensor, "answer vocabulary"]:
        return self.vlm.readout.logits(states).double().log_softmax(-1).cpu()

    def _evidence(self, part: Word, logits: Tensor, logprobs: Tensor, others: Tensor) -> Evidence:
        rows = torch.arange(part.start, part.stop)
        ids = torch.tensor(self._own[part.start : part.stop])
        others_at = logits[rows].scatter(-1, ids[:, None], -torch.inf).logsumexp(-1)
        logit = logits[rows, ids]
        return Evidence(
            logit[None], logprobs[rows, ids][None], (logit - others_at)[None], others[None], self.vlm.readout.vocabulary
        )

    def _others(self, part: Word, number: int, change: Change, logprobs: Tensor) -> Float[Tensor, " rival"]:
        """Log-probability of each alternative to a part; one of a single token is read where the part's own is."""
        found = []
        for ids in self._rivals[number]:
            first = logprobs[part.start, ids[0]]
            found.append(first if len(ids) == 1 else first + self._following(part, ids, change))
        return torch.stack(found) if found else torch.empty(0, dtype=torch.float64)

    def _following(self, part: Word, ids: Ids, change: Change) -> Float[Tensor, ""]:
        """Log-probability of what follows the first token of an alternative."""
        answer = (*self._own[: part.start], *ids)
        logprobs = self._logprobs(self._over(answer).states(change))[part.start + 1 :]
        return logprobs.gather(-1, torch.tensor(ids[1:])[:, None]).sum()

    @property
    def share(self) -> float:
        """How much of as many whole passes was computed, on average."""
        shares = [share for passes in self._passes.values() for share in passes.shares]
        return sum(shares) / max(len(shares), 1)


UNTOUCHED = Change({}, 0, 1 << 62)
"""No change at all: the states are those of the untouched pass."""


def change_of(ledger: Ledger, acting: bool = True) -> Change:
    """What a ledger's interventions change, and where that begins."""
    layers = [layer_of(act.site.name) for act in ledger.acts]
    block = None if None in layers else min(layers)  # type: ignore[type-var]
    visits: Mapping[Site, Any] = ledger.visits(acting)
    return Change(visits, block, min(act.first for act in ledger.acts))


def readings_of(
    vlm: HookedVLM,
    x: Inputs,
    values: Sequence[str | Value | None] = (None,),
    unit: Unit = "token",
    against: Against | None = None,
    word: int = 0,
) -> Readings:
    """Readings of what a user asks to be told; a value that is None is the usual one.

    Raises:
        InputError: no answer, or a value, unit or alternatives that do not fit.
    """
    x.need_answer()
    chosen = [value or default_value(against) for value in values]
    return Readings(vlm, x, target_of(vlm, x, chosen, unit, against, word))
