"""Which token is written next: a small object, given the logits of all streams; the first sees everything."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.given import explaining, need_arguments


@explaining
class Choosing(abc.ABC):
    """A way to choose; subclasses are frozen dataclasses, whose fields are its parameters."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        explaining(cls)

    def __post_init__(self) -> None:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        need_arguments(type(self).__init__, self, **{one.name: getattr(self, one.name) for one in fields})

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
