"""What was seen while an answer was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.fields import LOGPROB, POSITIVE, SHARE, Range
from lvlm_interp.generation.watched import Watched
from lvlm_interp.results import Result, heading, html, shown_frame, table, text
from lvlm_interp.shown import table_html

LN2 = 0.6931471805599453
OF_STEPS = ("logit", "logprob", "entropy")
OF_STREAMS = ("delta", "delta_nats", "kl", "jensen_shannon", "hellinger", "rank", "entropy_without")


@dataclass(frozen=True)
class Trace(Result):
    """An answer, token by token as it was written, beside what would have been written without the image.

    All streams read the same tokens: those of the answer. Distributions are those of the next token, before
    anything is drawn from them; distances are from the stream that sees everything, to each other one.

    Attributes:
        answer: the text.
        tokens: its tokens as text.
        ids: their ids.
        finished: whether it ended by itself.
        streams: what the others went without, `[stream]`.
        logit, logprob: of the token that was written, with everything seen, `[step]`; raw, and nats.
        entropy: of the whole distribution, nats, `[step]`.
        delta: CAL's Δ of the token, in raw logits, `[stream, step]`.
        delta_nats: the same in nats.
        kl: KL(with ‖ without), nats.
        jensen_shannon: divergence, nats, at most log 2.
        hellinger: distance, 0 (same) … 1 (disjoint).
        rank: how many tokens are likelier than the written one, without.
        entropy_without: nats.
        inside: where tokens looked, what heads made of the image, what layers knew; None where that was not asked for.
    """

    along: ClassVar[Mapping[str, str]] = {"tokens": "step", "streams": "stream"}
    ranges: ClassVar[Mapping[str, Range]] = {
        "logprob": LOGPROB,
        "entropy": POSITIVE,
        "entropy_without": POSITIVE,
        "kl": POSITIVE,
        "jensen_shannon": (0, LN2),
        "hellinger": SHARE,
        "rank": POSITIVE,
    }
    answer: str
    tokens: tuple[str, ...]
    ids: Int[Tensor, " step"]
    finished: bool
    streams: tuple[str, ...]
    logit: Float[Tensor, " step"]
    logprob: Float[Tensor, " step"]
    entropy: Float[Tensor, " step"]
    delta: Float[Tensor, "stream step"]
    delta_nats: Float[Tensor, "stream step"]
    kl: Float[Tensor, "stream step"]
    jensen_shannon: Float[Tensor, "stream step"]
    hellinger: Float[Tensor, "stream step"]
    rank: Int[Tensor, "stream step"]
    entropy_without: Float[Tensor, "stream step"]
    inside: Watched | None = None

    @property
    def note(self) -> str:
        end = "" if self.finished else "; not finished"
        return f"{len(self.tokens)} tokens beside {', '.join(self.streams)}; delta in logits, distances in nats{end}"

    def number(self, stream: str | int = 0) -> int:
        """The number of a stream, by its name or its number.

        Raises:
            InputError: there is none.
        """
        known = dict(zip(self.streams, range(len(self.streams)), strict=True))
        found = known.get(stream) if isinstance(stream, str) else stream
        if found is None or isinstance(found, bool) or not 0 <= found < len(known):
            raise InputError(f"no stream {stream!r}: there are {[*known]}, counted from 0")
        return found

    def to_frame(self) -> pd.DataFrame:
        """One row for each stream and step."""
        frames = [
            pd.DataFrame(
                {
                    "without": name,
                    "step": range(len(self.tokens)),
                    "token": self.tokens,
                    **{column: getattr(self, column).tolist() for column in OF_STEPS},
                    **{column: getattr(self, column)[n].tolist() for column in OF_STREAMS},
                }
            )
            for n, name in enumerate(self.streams)
        ]
        return self.identified(pd.concat(frames, ignore_index=True))


@text.register
def _as_text(result: Trace) -> str:
    return f"{heading(result)}\n{result.answer}\n{table(shown_frame(result))}"


@html.register
def _as_html(result: Trace) -> str:
    return table_html(shown_frame(result), caption=result.note)


def compared(logits: Float[Tensor, "stream vocabulary"], token: int) -> dict[str, Tensor]:
    """One step: the numbers of `Trace` from the logits of all streams, the first of which sees everything."""
    logprobs = logits.double().log_softmax(-1)
    chances = logprobs.exp()
    entropy = -(chances * logprobs.clamp(min=-1e300)).sum(-1)
    seen, others = logprobs[:1], logprobs[1:]
    middle = torch.logaddexp(seen, others) - LN2
    half = [(one.exp() * (one - middle)).sum(-1) for one in (seen.expand_as(others), others)]
    roots = ((seen / 2).exp() - (others / 2).exp()).square().sum(-1) / 2
    return {
        "logit": logits[0, token],
        "logprob": seen[0, token],
        "entropy": entropy[0],
        "delta": logits[0, token] - logits[1:, token],
        "delta_nats": seen[0, token] - others[:, token],
        "kl": (seen.exp() * (seen - others)).sum(-1).clamp(min=0),
        "jensen_shannon": ((half[0] + half[1]) / 2).clamp(min=0),
        "hellinger": roots.sqrt(),
        "rank": (logits[1:] > logits[1:, token, None]).sum(-1),
        "entropy_without": entropy[1:],
    }
