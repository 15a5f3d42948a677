"""Which token is written next: a small object, given the logits of all streams; the first sees everything."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.given import Parametric, explaining


@explaining
class Choosing(Parametric, abc.ABC):
    """A way to choose; subclasses are frozen dataclasses, whose fields are its parameters."""

    @abc.abstractmethod
    def choose(self, logits: Float[Tensor, "stream vocabulary"], ids: Sequence[int], generator: torch.Generator) -> int:
        """The next token.

        Args:
            logits: of each stream.
            ids: what was written so far.
            generator: what is drawn is drawn from it.
        """

    @property
    def described(self) -> str:
        """It, in a line, for results."""
        return repr(self)


@dataclass(frozen=True)
class Greedy(Choosing):
    """The likeliest, as `vlm.generate` does."""

    def choose(self, logits: Float[Tensor, "stream vocabulary"], ids: Sequence[int], generator: torch.Generator) -> int:
        return int(logits[0].argmax())


@dataclass(frozen=True)
class Sampled(Choosing):
    """Drawn.

    Attributes:
        temperature: logits are divided by it.
        top_p: of the likeliest tokens that have this much of the probability together (Holtzman et al. 2020).
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise InputError(f"temperature is above 0, and top_p from 0 to 1; got {self.temperature}, {self.top_p}")

    def choose(self, logits: Float[Tensor, "stream vocabulary"], ids: Sequence[int], generator: torch.Generator) -> int:
        chances, order = (logits[0].cpu().double() / self.temperature).softmax(-1).sort(descending=True, stable=True)
        kept = chances * (chances.cumsum(0) - chances < self.top_p)
        return int(order[torch.multinomial(kept, 1, generator=generator)])


@dataclass(frozen=True)
class Contrastive(Choosing):
    """Contrastive decoding: what the image adds to a token's logit counts once more.

    l + w · (l − l'), where l is with everything seen and l' of another stream; tokens that are much less likely than
    the likeliest, p < cut · max p, are out (the plausibility cut). Which tokens that makes more frequent, the cut or
    the contrast, is told by the same with `weight=0`.

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
    then: Choosing = field(default_factory=Greedy)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cut <= 1 or not 0 <= self.gate <= 1 or (self.fading is not None and self.fading < 0):
            raise InputError(
                f"cut and gate are probabilities, and fading is 0 or more; got {self.cut}, {self.gate}, {self.fading}"
            )

    def choose(self, logits: Float[Tensor, "stream vocabulary"], ids: Sequence[int], generator: torch.Generator) -> int:
        return self.then.choose(self.contrasted(logits, len(ids) + 1)[None], ids, generator)

    def contrasted(self, logits: Float[Tensor, "stream vocabulary"], step: int) -> Float[Tensor, " vocabulary"]:
        """What a token is taken of, at a step counted from 1.

        Raises:
            InputError: there is no such stream.
        """
        if not 0 <= self.stream < len(logits) - 1:
            raise InputError(f"no stream {self.stream} to contrast with: there are {len(logits) - 1}, counted from 0")
        read = logits.log_softmax(-1) if self.of == "logprobs" else logits
        seen, other = read[0], read[self.stream + 1]
        sure = float(logits[0].softmax(-1).max())
        weight = 0.0 if self.gate and sure >= self.gate else self._weight(step)
        low = logits[0] < logits[0].max() + math.log(self.cut) if self.cut else torch.zeros_like(seen, dtype=torch.bool)
        return (seen + weight * (seen - other)).masked_fill(low, -torch.inf)

    def _weight(self, step: int) -> float:
        return self.weight if self.fading is None else math.expm1(self.fading * step)


CONTRASTIVE: dict[str, Contrastive] = {
    "vcd": Contrastive(),  # Leng et al. 2024, against "noise"
    "icd": Contrastive(),  # Wang et al. 2024, against another instruction
    "crg": Contrastive(cut=0.0),  # Wan et al. 2024, against a black box
    "pai": Contrastive(weight=0.1, of="logprobs"),  # Liu et al. 2024: γ = 1.1, against "hidden"; without its attention
    # Favero et al. 2024, against "hidden", as public code has it: VCD's cut in the place of the paper's gate.
    "m3id": Contrastive(fading=0.02, of="logprobs"),
}
"""Published settings by name."""
