"""Contrastive decoding: what the image adds to a token's logit counts once more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.generation.choosing import Changing, Step, need_probabilities, unlikely


@dataclass(frozen=True)
class Contrastive(Changing):
    """l + w · (l − l'), where l is with everything seen and l' of another stream.

    Tokens that are much less likely than the likeliest, p < cut · max p, are out (the plausibility cut). Which tokens
    that makes more frequent, the cut or the contrast, is told by the same with `weight=0`.

    Attributes:
        weight: w.
        cut: the share of the largest probability that a token must have; 0 cuts none.
        fading: where it is given, w is (1 − γ) / γ with γ = exp(−fading · t) at the t-th token, counted from 1.
        gate: where the likeliest token has this probability or more, nothing is contrasted (α of M3ID's paper); 0 is
            no gate.
        of: whether l are raw logits or log-probabilities, which differ once they are multiplied and drawn from.
        stream: which other stream, by its number in `without=`, from 0.
        then: how a token is taken of what comes out.
    """

    weight: float = 1.0
    cut: float = 0.1
    fading: float | None = None
    gate: float = 0.0
    of: Literal["logits", "logprobs"] = "logits"
    stream: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        need_probabilities(cut=self.cut, gate=self.gate)
        if self.fading is not None and self.fading < 0:
            raise InputError(f"fading is 0 or more; got {self.fading}")

    def changed(self, step: Step) -> Float[Tensor, " vocabulary"]:
        """What a token is taken of.

        Raises:
            InputError: there is no such stream.
        """
        logits = step.logits
        if not 0 <= self.stream < len(logits) - 1:
            raise InputError(f"no stream {self.stream} to contrast with: there are {len(logits) - 1}, counted from 0")
        read = logits.log_softmax(-1) if self.of == "logprobs" else logits
        seen, other = read[0], read[self.stream + 1]
        sure = float(logits[0].softmax(-1).max())
        weight = 0.0 if self.gate and sure >= self.gate else self._weight(step.number)
        return (seen + weight * (seen - other)).masked_fill(unlikely(logits[0], self.cut), -math.inf)

    def _weight(self, number: int) -> float:
        return self.weight if self.fading is None else math.expm1(self.fading * number)


CONTRASTIVE: dict[str, Contrastive] = {
    "vcd": Contrastive(),  # Leng et al. 2024, against "noise"
    "icd": Contrastive(),  # Wang et al. 2024, against `counterfactuals.instruction`
    "crg": Contrastive(cut=0.0),  # Wan et al. 2024, against a black box
    "pai": Contrastive(weight=0.1, of="logprobs"),  # Liu et al. 2024: γ = 1.1, against "hidden"; its attention is Scale
    # Favero et al. 2024, against "hidden", as public code has it: VCD's cut in the place of the paper's gate.
    "m3id": Contrastive(fading=0.02, of="logprobs"),
}
"""Published settings by name."""
