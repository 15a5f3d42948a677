"""The value as a function of the image's features that can be differentiated: one pass of the model with a graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.value import Evidence, Valued, values_of
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Word

EMBEDDED = "hook_embed"
Read = Callable[[Tensor, Tensor], None]
"""Is given a value and the derivative by it, both of one shape."""


class Differentiable:
    """v of every part of the answer, as a function of what the language model is given for the image's tokens.

    Where a family hands features to deeper layers as well (Qwen3-VL's deepstack), those are held as they are.

    Attributes:
        valued: what it is compared with, where that was found before.
        features: what it is given, `[1, token, width]`, in the order of the image's positions.
    """

    def __init__(self, asked: Asked, valued: Valued | None = None) -> None:
        with torch.inference_mode(False):  # what is made under it can be part of no graph
            self.asked, self._positions = asked, asked.view.positions.clone()
        self._valued = valued

    @functools.cached_property
    def features(self) -> Float[Tensor, "1 ..."]:
        with torch.inference_mode(False):
            found = self.asked.vlm.capture(self.asked.x, EMBEDDED, positions=self._positions)
            return found[EMBEDDED].clone()

    @functools.cached_property
    def valued(self) -> Valued:
        """The value as it is, and what it is compared with."""
        if self._valued is not None:
            return self._valued
        asked = self.asked
        options = {"decoder_inputs": asked.decoder_inputs}
        return values_of(asked.vlm, asked.x, asked.x.everything[None], asked.target, **options)  # type: ignore[arg-type]

    def __call__(self, features: Float[Tensor, "1 ..."] | None) -> Float[Tensor, "1 part"]:
        """v of every part, where the image's tokens are these; None leaves the tower's own, and their graph."""
        rows = self._rows(self.asked.x, features)
        parts = zip(self.asked.target.parts, self.valued.alternative_ids, strict=True)
        found = [self._evidence(part, others, rows, features) for part, others in parts]
        return torch.stack([self.asked.value.of(one)[0] for one in found])[None]

    @property
    def spread(self) -> float:
        """How far features are apart, of which noise is a share."""
        return float(self.features.max() - self.features.min())

    def start(self, baseline: Any) -> tuple[Tensor, dict[str, Any]]:
        """Features that a way to these begins at, and what provenance tells of them.

        The `mean` of the image's tokens at each of them, or `zero`.
        """
        mean = self.features.mean(1, keepdim=True).expand_as(self.features)
        return (mean if baseline == "mean" else torch.zeros_like(mean)).contiguous(), {"baseline": baseline}

    def by_patch(self, values: Float[Tensor, "part ..."]) -> Float[Tensor, "part patch"]:
        """Numbers like the features, added up over the tokens that show each patch."""
        return by_patch(self.asked, values.sum(-1))

    def _rows(self, x: Inputs, features: Tensor | None) -> Float[Tensor, "answer vocabulary"]:
        """Logits of the rows that predict the answer."""

        def put(value: Tensor) -> Tensor:
            if features is None:
                return value
            return value.index_copy(1, self._positions.to(value.device), features.to(value))

        found = self.asked.vlm.capture(x, EMBEDDED, positions=x.answer_positions - 1, grad=True, edits={EMBEDDED: put})
        return found["logits"][0]

    def _evidence(
        self, part: Word, others: tuple[tuple[int, ...], ...], rows: Tensor, features: Tensor | None
    ) -> Evidence:
        ids = self.asked.x.answer_ids[part.start : part.stop].to(rows.device).clone()
        logits = rows[part.start : part.stop].double()
        logit = logits.gather(1, ids[:, None])[:, 0]
        rest = logits.scatter(1, ids[:, None], -torch.inf).logsumexp(1)
        against = [self._logprob(part, other, rows, features) for other in others]
        return Evidence(
            logit[None],
            (logit - logits.logsumexp(1))[None],
            (logit - rest)[None],
            torch.stack(against)[None] if against else logit.new_empty(1, 0),
            self.asked.vlm.readout.vocabulary,
        )

    def _logprob(self, part: Word, other: tuple[int, ...], rows: Tensor, features: Tensor | None) -> Float[Tensor, ""]:
        """Log-probability of an alternative: read where the part's own is, or in a pass of its own if it is longer."""
        if len(other) > 1:
            x, vlm = self.asked.x, self.asked.vlm
            ids = [*x.answer_ids[: part.start].tolist(), *other]
            rows = self._rows(x.with_answer(ids, vlm.token_strings(ids), ""), features)
        chances = rows[part.start : part.start + len(other)].double().log_softmax(1)
        return chances.gather(1, torch.tensor(other, device=rows.device)[:, None]).sum()


class Watched(torch.autograd.Function):
    """A value as it is; on the way back, it is read together with its derivative."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, read: Read) -> Tensor:
        ctx.save_for_backward(value)  # which what is made of it keeps anyway
        ctx.read = read
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *derivatives: Any) -> Any:
        ctx.read(*ctx.saved_tensors, *derivatives)
        return *derivatives, None


def by_patch(asked: Asked, tokens: Float[Tensor, "part token"]) -> Float[Tensor, "part patch"]:
    """Numbers of the image's tokens, added up over those that show each patch."""
    return tokens.cpu().double() @ asked.shares[:, asked.view.positions].T
