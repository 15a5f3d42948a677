"""Which token is written next: a small object, given the logits of all streams; the first sees everything."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.given import Parametric, explaining


@dataclass(frozen=True, eq=False)
class Step:
    """What a token is chosen of.

    Attributes:
        logits: of each stream.
        ids: what was written so far.
        layers: of the stream that sees everything, logits read off the residual stream behind these blocks (the logit
            lens), by number; those that were asked for.
    """

    logits: Float[Tensor, "stream vocabulary"]
    ids: Sequence[int] = ()
    layers: Mapping[int, Float[Tensor, " vocabulary"]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Which token it is, counted from 1."""
        return len(self.ids) + 1


@explaining
class Choosing(Parametric, abc.ABC):
    """A way to choose; subclasses are frozen dataclasses, whose fields are its parameters."""

    @abc.abstractmethod
    def choose(self, step: Step, generator: torch.Generator) -> int:
        """The next token; what is drawn is drawn from the generator."""

    def layers_of(self, depth: int) -> Sequence[int]:
        """Behind which blocks it wants logits, in a model of so many; none by default."""
        return ()

    @property
    def described(self) -> str:
        """It, in a line, for results."""
        return repr(self)


@dataclass(frozen=True)
class Greedy(Choosing):
    """The likeliest, as `vlm.generate` does."""

    def choose(self, step: Step, generator: torch.Generator) -> int:
        return int(step.logits[0].argmax())


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

    def choose(self, step: Step, generator: torch.Generator) -> int:
        chances, order = (
            (step.logits[0].cpu().double() / self.temperature).softmax(-1).sort(descending=True, stable=True)
        )
        kept = chances * (chances.cumsum(0) - chances < self.top_p)
        return int(order[torch.multinomial(kept, 1, generator=generator)])


@dataclass(frozen=True)
class Changing(Choosing):
    """Logits are changed before a token is taken of them; what cannot be written has −∞.

    Attributes:
        then: how a token is taken of what comes out.
    """

    then: Choosing = field(default_factory=Greedy, kw_only=True)

    @abc.abstractmethod
    def changed(self, step: Step) -> Float[Tensor, " vocabulary"]:
        """What a token is taken of."""

    def choose(self, step: Step, generator: torch.Generator) -> int:
        return self.then.choose(replace(step, logits=self.changed(step)[None]), generator)


def need_probabilities(**given: float) -> None:
    """Raise for numbers that are no probabilities.

    Raises:
        InputError: names the first.
    """
    for name, value in given.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is a probability, from 0 to 1; got {value}")


def unlikely(logits: Float[Tensor, " vocabulary"], cut: float) -> Tensor:
    """Which tokens are less likely than a share of the likeliest, p < cut · max p (the plausibility cut)."""
    return logits.log_softmax(-1) < logits.log_softmax(-1).max() + torch.tensor(cut).log().to(logits)
