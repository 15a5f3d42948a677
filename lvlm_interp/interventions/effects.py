"""What interventions do to an answer, with proof that they took place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.attribution.against import Against
from lvlm_interp.attribution.value import (
    Target,
    Value,
    Valued,
    described,
    evidence,
    target_of,
    texts_of,
    values_of,
)
from lvlm_interp.engine.score import Scores, score
from lvlm_interp.fields import LOGPROB, POSITIVE, Range
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Unit, unit_name
from lvlm_interp.interventions.intervention import Certificate, Intervention, ledger_of
from lvlm_interp.interventions.readings import default_value
from lvlm_interp.model.finite import need_finite
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result, heading, html, table, text
from lvlm_interp.shown import table_html

RUNS = ("untouched", "intervened")


@dataclass(frozen=True)
class Effects(Result):
    """An answer's tokens without and with interventions, `run` being untouched, then intervened.

    Attributes:
        tokens: the answer tokens as text.
        logit: raw logits, `[run, answer]`.
        logprob: log-probabilities in nats, `[run, answer]`.
        rank: how many tokens are likelier, `[run, answer]`.
        kl: KL(untouched ‖ intervened), over the whole vocabulary, in nats, `[answer]`.
        parts: the parts of the answer whose value is told, as text.
        values: the value of each, `[run, part]`.
        value, unit: which value.
        alternatives: for each part, what its value compares it with, found untouched.
        certificates: where and how often each intervention fired, and what it achieved.
        parity: the largest difference of a logit between the untouched run and the plain model.
    """

    along: ClassVar[Mapping[str, str]] = {"tokens": "answer", "parts": "part"}
    ranges: ClassVar[Mapping[str, Range]] = {"logprob": LOGPROB, "rank": POSITIVE, "parity": POSITIVE}
    tokens: tuple[str, ...]
    logit: Float[Tensor, "run answer"]
    logprob: Float[Tensor, "run answer"]
    rank: Int[Tensor, "run answer"]
    kl: Float[Tensor, " answer"]
    parts: tuple[str, ...]
    values: Float[Tensor, "run part"]
    value: str
    unit: str
    alternatives: tuple[tuple[str, ...], ...]
    certificates: tuple[Certificate, ...]
    parity: float

    @property
    def change(self) -> Float[Tensor, " part"]:
        """What each part gains by the interventions."""
        return self.values[1] - self.values[0]

    @property
    def note(self) -> str:
        fired = sum(one.fired for one in self.certificates)
        return f"{self.value} in {self.unit}; {len(self.certificates)} changes fired {fired} times, all certified"

    def to_frame(self) -> pd.DataFrame:
        """One row for each part: its value untouched, intervened, and the change."""
        columns = dict(zip(RUNS, self.values.tolist(), strict=True))
        return self.identified(pd.DataFrame({"part": self.parts, **columns, "change": self.change.tolist()}))

    def by_token(self) -> pd.DataFrame:
        """One row for each token: logits, log-probabilities (nats) and ranks of both runs, and the divergence."""
        found: dict[str, Sequence[object]] = {"token": self.tokens}
        for name in ("logit", "logprob", "rank"):
            found |= {f"{name} {run}": row for run, row in zip(RUNS, getattr(self, name).tolist(), strict=True)}
        return self.identified(pd.DataFrame({**found, "kl": self.kl.tolist()}))

    def certified(self) -> pd.DataFrame:
        """One row for each certificate and what was measured."""
        rows = [
            {
                **{name: getattr(one, name) for name in ("intervention", "site", "fired", "changed", "holds")},
                "measure": name,
                "untouched": one.untouched.get(name),
                "achieved": achieved,
            }
            for one in self.certificates
            for name, achieved in one.achieved.items()
        ]
        return pd.DataFrame(rows)


@text.register
def _as_text(result: Effects) -> str:
    return f"{heading(result)}\n{table(result.to_frame().drop(columns='example'))}"


@html.register
def _as_html(result: Effects) -> str:
    return table_html(result.to_frame().drop(columns="example"), caption=result.note)


@explained
@in_one_go
@torch.no_grad()
def intervene(
    vlm: HookedVLM,
    x: Inputs,
    interventions: Intervention,
    *,
    value: str | Value | None = None,
    unit: Unit = "token",
    against: Against | None = None,
    word: int = 0,
) -> Effects:
    """What an answer would be worth if something inside were otherwise.

    `intervene(vlm, x, Knockout("last", "image"), unit="word", against="Yellow")` tells by how much "Purple" loses its
    lead over "Yellow" where its first token cannot look at the image.

    Args:
        vlm: the model.
        x: an example with an answer.
        interventions: one, or several, `one + other`, applied in this order.
        value: what is told of each part (`attribution.value`); by default `logprob`, or `difference` with `against`.
        unit: the parts: `token`, `word`, `sentence`, `answer`, a span (start, stop), or what cuts a text into words.
        against: alternatives to one part, or to each, as text (`attribution.against`).
        word: which part the alternatives are to, counted from 0.

    Raises:
        InputError: no answer; an intervention that changes nothing, or did not achieve what it was to; examples whose
            positions do not fit.
        SiteError: a site, layer, head or neuron that is not there.
        ModelError: the model gives NaN or infinity.
    """
    x.need_answer()
    target = target_of(vlm, x, [value or default_value(against)], unit, against, word)
    ledger = ledger_of(vlm, x, interventions)
    plain = vlm.run(x)[0, x.answer_start - 1 : -1].float()
    with vlm.visiting(ledger.visits(acting=False)):
        before, own, valued = _run(vlm, x, target)
    with vlm.visiting(ledger.visits(acting=True)):
        after, changed, _ = _run(vlm, x, target if valued is None else valued.held(target))
    ledger.need_done()
    logits = torch.stack([before.logits(0), after.logits(0)])
    need_finite(vlm, x, logits[0])
    told = {"interventions": interventions.described, "value": target.values[0].name, "unit": unit_name(unit)}
    return Effects(
        tokens=x.answer_tokens,
        **_by_token(logits, x.answer_ids),
        parts=texts_of(target.parts),
        values=torch.stack([own, changed]).float(),
        value=target.values[0].name,
        unit=target.values[0].unit,
        alternatives=() if valued is None else valued.alternatives,
        certificates=ledger.certificates,
        parity=float((logits[0] - plain.to(logits.device)).abs().max()),
        provenance=vlm.provenance("intervene", x, **told, **described(target, against, word)),
    )


def _run(vlm: HookedVLM, x: Inputs, target: Target) -> tuple[Scores, Float[Tensor, " part"], Valued | None]:
    """The scores of the answer, what each part is worth, and what that was compared with."""
    everything = x.everything[None]
    scores = score(vlm, x, everything)
    if target.compares:
        valued = values_of(vlm, x, everything, target)
        return scores, valued.numbers[0, :, 0], valued
    none = torch.empty(1, 0, dtype=torch.float64)
    return scores, torch.cat([target.values[0].of(evidence(vlm, scores, part, none)) for part in target.parts]), None


def _by_token(logits: Float[Tensor, "run answer vocabulary"], ids: Int[Tensor, " answer"]) -> dict[str, Tensor]:
    at = ids.to(logits.device).expand(len(logits), -1)[..., None]
    logprobs, own = logits.log_softmax(-1), logits.gather(-1, at)
    untouched, intervened = logprobs
    found = {
        "logit": own[..., 0],
        "logprob": logprobs.gather(-1, at)[..., 0],
        "rank": (logits > own).sum(-1),
        "kl": (untouched.exp() * (untouched - intervened)).sum(-1),
    }
    return {name: values.cpu() for name, values in found.items()}
