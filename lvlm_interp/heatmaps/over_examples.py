"""Faithfulness over a data set: which map is better, with intervals that know which examples share a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
import xxhash
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.bootstrap import bootstrap_weights, interval
from lvlm_interp.columns import Column, numbered
from lvlm_interp.errors import InputError
from lvlm_interp.given import explained, need_seed
from lvlm_interp.heatmaps.faithfulness import Faithfulness
from lvlm_interp.heatmaps.hiding import named
from lvlm_interp.results import Provenance, Result

NUMBERS = ("mean", "low", "high", "less_first", "less_first_low", "less_first_high")
MEASURES = ("insertion", "deletion", "comprehensiveness", "sufficiency", "sensitivity")


@dataclass(frozen=True)
class FaithfulnessOver(Result):
    """Means over examples, and intervals by a bootstrap of whole groups.

    Attributes:
        maps, substrates: as in `Faithfulness`, the same for all examples.
        measures: `insertion` and `deletion` are areas less the mean of random orders; the others as they are.
        mean, low, high: `[measure, map, substrate]`.
        less_first: the paired difference to the first map; with its interval, `less_first_low`, `less_first_high`.
        examples, groups: how many there were.
        confidence: of the intervals.
    """

    along: ClassVar[dict[str, str]] = {"measures": "measure", "maps": "map", "substrates": "substrate"}
    blank: ClassVar[frozenset[str]] = frozenset(NUMBERS)
    maps: tuple[str, ...]
    substrates: tuple[str, ...]
    measures: tuple[str, ...]
    mean: Float[Tensor, "measure map substrate"]
    low: Float[Tensor, "measure map substrate"]
    high: Float[Tensor, "measure map substrate"]
    less_first: Float[Tensor, "measure map substrate"]
    less_first_low: Float[Tensor, "measure map substrate"]
    less_first_high: Float[Tensor, "measure map substrate"]
    examples: int
    groups: int
    confidence: float

    @property
    def note(self) -> str:
        return (
            f"means over {self.examples} examples of {self.groups} groups, {self.confidence:.0%} intervals; insertion "
            "and deletion less random orders: above 0 and below 0 are better"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each measure, map and substrate."""
        index = pd.MultiIndex.from_product(
            [self.measures, self.maps, self.substrates], names=["measure", "map", "substrate"]
        )
        columns = {name.replace("_", " "): getattr(self, name).flatten().tolist() for name in NUMBERS}
        return self.identified(pd.DataFrame(columns, index=index).reset_index())


@explained
def faithfulness_over(
    found: Iterable[Faithfulness],
    groups: Column | None = None,
    *,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> FaithfulnessOver:
    """Means of measured faithfulness over examples, and paired differences between maps.

    Args:
        found: one for each example, with the same maps, substrates and value.
        groups: which examples are not independent, questions about one picture for example; by default each is alone.
        confidence: of the intervals.
        samples: of the bootstrap.
        seed: of what it draws.

    Raises:
        InputError: no examples, examples of other maps, substrates or values, another number of groups, or some that
            are missing.
    """
    need_seed(seed)
    every = [*found]
    _need_alike(every)
    numbers = torch.arange(len(every)) if groups is None else numbered(groups)
    if len(numbers) != len(every) or not 0 < confidence < 1 or samples < 2:
        raise InputError(
            f"a group for each of the {len(every)} examples, a confidence between 0 and 1 and 2 samples or more are "
            f"needed; got {len(numbers)} groups, {confidence}, {samples}"
        )
    values = torch.stack([_measured(one) for one in every])
    drawn = bootstrap_weights(numbers, samples, torch.Generator().manual_seed(int(seed))).double()
    count = int(numbers.max()) + 1
    mean, low, high = _means(values, drawn, confidence, count)
    less, less_low, less_high = _means(values - values[:, :, :1], drawn, confidence, count)
    told = {
        "examples": len(every),
        "groups": count,
        "of groups": named(numbers.numpy()),
        "confidence": confidence,
        "samples": samples,
        "seed": seed,
    }
    return FaithfulnessOver(
        every[0].maps,
        every[0].substrates,
        MEASURES,
        *(mean, low, high, less, less_low, less_high),
        examples=len(every),
        groups=count,
        confidence=confidence,
        provenance=_provenance([one.provenance for one in every], told, seed),
    )


def _need_alike(every: Sequence[Faithfulness]) -> None:
    if not every:
        raise InputError("no examples: give what li.faithfulness found of one or more")
    for name in ("maps", "substrates", "value", "unit"):
        if len(told := {getattr(one, name) for one in every}) > 1:
            raise InputError(f"examples are compared by the same {name}; these have {sorted(map(str, told))}")


def _provenance(every: Sequence[Provenance], told: Mapping[str, Any], seed: int) -> Provenance:
    """That of the first, with a digest of all examples."""
    if len(weights := {one.weights for one in every}) > 1:
        raise InputError(f"examples are compared of one model; these are of {len(weights)}")
    parameters = {**every[0].parameters, **told}
    example = xxhash.xxh3_128("".join(str(one.example) for one in every).encode()).hexdigest()
    return dataclasses.replace(every[0], method="faithfulness_over", parameters=parameters, example=example, seed=seed)


def _measured(one: Faithfulness) -> Float[Tensor, "measure map substrate"]:
    inserted = one.insertion_area - one.random_insertion.mean(0)
    deleted = one.deletion_area - one.random_deletion.mean(0)
    return torch.stack([inserted, deleted, one.comprehensiveness, one.sufficiency, one.sensitivity]).double()


def _means(
    values: Float[Tensor, "example measure map substrate"],
    drawn: Float[Tensor, "sample example"],
    confidence: float,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Means over the examples that have a number, with their intervals."""
    flat = values.flatten(1)
    there = (~flat.isnan()).double()
    scores = ((drawn @ flat.nan_to_num(0.0)) / (drawn @ there)).T
    low, high = interval(scores, confidence, groups)
    return tuple(one.view(values.shape[1:]).float() for one in (scores[:, 0], low, high))  # type: ignore[return-value]
