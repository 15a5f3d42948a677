"""What a push along directions does, from as far back to as far forth, beside random directions as long as they are.

A direction is a cause of what it is named after only if more of it does more, the other sign does the reverse, and
another direction of the same length does nothing of the kind (the controls that Tan et al. 2024, arXiv 2407.12404, find
missing most).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.attribution.against import Against
from lvlm_interp.attribution.value import Value
from lvlm_interp.bootstrap import bootstrap_weights, interval
from lvlm_interp.errors import InputError
from lvlm_interp.fields import POSITIVE, SHARE, Range
from lvlm_interp.given import explained, need_seed
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Unit, unit_name
from lvlm_interp.interventions.directions import Directions
from lvlm_interp.interventions.effects import intervene
from lvlm_interp.interventions.intervention import intervening
from lvlm_interp.interventions.places import Places
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result

ALPHAS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
YES = re.compile(r"\W*yes\b", re.IGNORECASE)


@dataclass(frozen=True)
class DoseResponse(Result):
    """The mean value of examples' answers under pushes of several lengths.

    Attributes:
        alphas: how far, in lengths of the directions.
        mean: with its interval `low`, `high`, of examples that are drawn again.
        random: the mean under each random direction of the same length, `[direction, alpha]`.
        length, yes_rate: mean length in tokens of what is written under the push, and how often it begins with yes; NaN
            where nothing was written.
        examples: how many.
        value, unit: of the mean.
        confidence: of the interval.
    """

    along: ClassVar[Mapping[str, str]] = {"alphas": "alpha"}
    ranges: ClassVar[Mapping[str, Range]] = {
        "length": POSITIVE,
        "yes_rate": SHARE,
        "examples": POSITIVE,
        "confidence": SHARE,
    }
    blank: ClassVar[frozenset[str]] = frozenset({"low", "high", "length", "yes_rate"})
    alphas: tuple[float, ...]
    mean: Float[Tensor, " alpha"]
    low: Float[Tensor, " alpha"]
    high: Float[Tensor, " alpha"]
    random: Float[Tensor, "direction alpha"]
    length: Float[Tensor, " alpha"]
    yes_rate: Float[Tensor, " alpha"]
    examples: int
    value: str
    unit: str
    confidence: float

    @property
    def slope(self) -> float:
        """How much the mean grows with each length, by least squares."""
        return float(_slopes(torch.tensor(self.alphas), self.mean[None])[0])

    @property
    def random_slopes(self) -> Float[Tensor, " direction"]:
        """The same of random directions: the null."""
        return _slopes(torch.tensor(self.alphas), self.random)

    @property
    def note(self) -> str:
        steeper = int((self.random_slopes.abs() >= abs(self.slope)).sum())
        return (
            f"{self.value} in {self.unit}, examples: {self.examples}; slope {self.slope:+.3f} a length, "
            f"{steeper} of {len(self.random)} random directions are as steep"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each length: the mean with its interval, and the least and the most under random directions."""
        told = {name: getattr(self, name).tolist() for name in ("mean", "low", "high")}
        span = {"random least": self.random.amin(0).tolist(), "random most": self.random.amax(0).tolist()}
        written = {name: getattr(self, name).tolist() for name in ("length", "yes_rate")}
        return self.identified(pd.DataFrame({"alpha": self.alphas, **told, **span, **written}))


@explained
@in_one_go
def dose_response(
    vlm: HookedVLM,
    examples: Sequence[Inputs],
    directions: Directions,
    *,
    alphas: Sequence[float] = ALPHAS,
    positions: Places | None = None,
    random: int = 4,
    write: int = 0,
    value: str | Value | None = None,
    unit: Unit = "answer",
    against: Against | None = None,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> DoseResponse:
    """Push along directions by several lengths, and read what that does to answers.

    Args:
        vlm: the model.
        examples: with their answers; take others than the directions come from.
        directions: of which sites, and how long.
        alphas: lengths, 0 among them, which is the untouched model.
        positions: which are pushed; None means all.
        random: how many random directions, as long at each site.
        write: have the model write so many tokens at most under each push, for their length and how often it says yes.
        value, unit, against: what is read of an answer, whose first part it is, as in `intervene`.
        confidence, samples: of intervals, and how often examples are drawn for them.
        seed: of random directions and samples.
        progress: show a progress bar.

    Raises:
        InputError: no examples or answers, lengths without 0 or twice, no random direction, or directions of another
            model.
    """
    need_seed(seed)
    lengths = tuple(float(one) for one in alphas)
    if not examples or 0.0 not in lengths or len({*lengths}) < 2 or len({*lengths}) < len(lengths) or random < 1:
        raise InputError(
            "give an example or more, a random direction or more, and lengths, each once, with 0 among them and "
            f"another; got {len(examples)} examples, random={random}, alphas={lengths}"
        )
    if directions.provenance.weights != vlm.identity:
        raise InputError("these directions are of another model, or of this one before its weights changed")
    for x in examples:
        x.need_answer()
    generator = torch.Generator().manual_seed(int(seed))
    every = [directions, *(_at_random(directions, generator) for _ in range(random))]
    told: dict[str, Any] = {"value": value, "unit": unit, "against": against}
    read, names = torch.zeros(len(every), len(lengths), len(examples), dtype=torch.float64), ("", "")
    with tqdm(total=read.numel(), desc="pushes", disable=not progress, leave=False) as bar:
        for e, x in enumerate(examples):
            for d, some in enumerate(every):
                values, names = _values(vlm, x, some, lengths, positions, told, bar)
                read[d, :, e] = values
    written = [_written(vlm, examples, directions, alpha, positions, write) for alpha in lengths]
    drawn = bootstrap_weights(torch.arange(len(examples)), samples, generator).double()
    means = drawn @ read[0].T / drawn.sum(1, keepdim=True)
    low, high = interval(means.T, confidence, len(examples))
    length, yes_rate = torch.tensor(written).unbind(1)
    about = {"directions": directions.source, "sites": directions.sites, "positions": positions, "write": write}
    about |= {"directions_of": directions.provenance.example, "samples": samples, "random": random}
    return DoseResponse(
        alphas=lengths,
        mean=means[0].float(),
        low=low.float(),
        high=high.float(),
        random=read[1:].mean(-1).float(),
        length=length,
        yes_rate=yes_rate,
        examples=len(examples),
        value=names[0],
        unit=names[1],
        confidence=confidence,
        provenance=vlm.provenance("dose_response", *examples, seed=seed, of=unit_name(unit), **about),
    )


def _at_random(directions: Directions, generator: torch.Generator) -> Directions:
    """Another direction at each site, as long."""
    drawn = torch.randn(directions.direction.shape, generator=generator)
    lengths = directions.direction.norm(dim=-1, keepdim=True)
    return dataclasses.replace(directions, direction=drawn / drawn.norm(dim=-1, keepdim=True) * lengths)


def _values(
    vlm: HookedVLM,
    x: Inputs,
    directions: Directions,
    alphas: Sequence[float],
    positions: Places | None,
    told: Mapping[str, Any],
    bar: Any,
) -> tuple[Float[Tensor, " alpha"], tuple[str, str]]:
    """At each length; 0 is the untouched run, which every push has beside it."""
    read, untouched, names = list[float | None](), 0.0, ("", "")
    for alpha in alphas:
        bar.update()
        if not alpha:
            read.append(None)
            continue
        found = intervene(vlm, x, directions.steer(alpha, positions=positions), **told)
        untouched, names = float(found.values[0, 0]), (found.value, found.unit)
        read.append(float(found.values[1, 0]))
    return torch.tensor([untouched if one is None else one for one in read], dtype=torch.float64), names


def _written(
    vlm: HookedVLM,
    examples: Sequence[Inputs],
    directions: Directions,
    alpha: float,
    positions: Places | None,
    most: int,
) -> tuple[float, float]:
    """The mean length of what is written under a push, and the share of it that begins with yes."""
    if not most:
        return torch.nan, torch.nan
    answers = []
    for x in examples:
        if alpha:
            with intervening(vlm, x.prompt, directions.steer(alpha, positions=positions)):
                answers.append(vlm.generate(x.prompt, most))
        else:
            answers.append(vlm.generate(x.prompt, most))
    said = [bool(YES.match(str(answer))) for answer in answers]
    return sum(len(answer.ids) for answer in answers) / len(answers), sum(said) / len(said)


def _slopes(alphas: Float[Tensor, " alpha"], means: Float[Tensor, "row alpha"]) -> Float[Tensor, " row"]:
    apart = alphas.double() - alphas.double().mean()
    return (means.double() @ apart / apart.square().sum()).float()
