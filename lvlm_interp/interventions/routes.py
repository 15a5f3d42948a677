"""By which routes an answer gets to where it is read: attention between parts of the prompt is cut, layer by layer.

Cross-modal information flow (Zhang et al. 2024, arXiv 2411.18620), after Geva et al. 2023: a route is cut in a window
of layers, and the answer's first token is looked at. Windows overlap and so blur where a route is needed: narrow ones
stand beside wide ones. A cut that takes as many other keys, or as much attention to other keys, says what any cut would
do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.attribution.value import Value
from lvlm_interp.bootstrap import bootstrap_weights, interval
from lvlm_interp.columns import Column, numbered
from lvlm_interp.errors import InputError
from lvlm_interp.fields import POSITIVE, Range
from lvlm_interp.given import explained, need_seed
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.view import Box
from lvlm_interp.inputs.words import Unit, unit_name
from lvlm_interp.interventions.axes import windows
from lvlm_interp.interventions.controls import KINDS, Route
from lvlm_interp.interventions.places import Layers, Places, Region, chosen_layers
from lvlm_interp.interventions.readings import Readings, readings_of
from lvlm_interp.interventions.sweep import under
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result

WHOLE = {
    "image → question": ("question", "image"),
    "image → last": ("last", "image"),
    "question → last": ("last", "question"),
}
Routed = Mapping[str, tuple[Places, Places]]
"""By name, the rows that read and the keys that are read."""


@dataclass(frozen=True)
class Routes(Result):
    """What answers gain, on average, where a route is cut in a window of layers.

    Attributes:
        routes: their names.
        kinds: `route`, its own cut; `equal size`, as many other keys; `equal mass`, as much attention to others.
        widths: of the windows, in layers.
        layers: in whose middle each window stands.
        change: the mean over examples, `[route, kind, width, layer]`; NaN where no example has such other keys.
        low, high: its interval.
        counts: of how many examples each is.
        untouched: the mean value without a cut.
        examples: how many there are.
        value, unit: which value, of the first part of each answer.
        confidence: of the intervals.
    """

    along: ClassVar[Mapping[str, str]] = {"routes": "route", "kinds": "kind", "widths": "width", "layers": "layer"}
    blank: ClassVar[frozenset[str]] = frozenset({"change", "low", "high"})
    ranges: ClassVar[Mapping[str, Range]] = {"counts": POSITIVE, "examples": POSITIVE, "confidence": (0, 1)}
    routes: tuple[str, ...]
    kinds: tuple[str, ...]
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    change: Float[Tensor, "route kind width layer"]
    low: Float[Tensor, "route kind width layer"]
    high: Float[Tensor, "route kind width layer"]
    counts: Int[Tensor, "route kind width layer"]
    untouched: float
    examples: int
    value: str
    unit: str
    confidence: float

    @property
    def note(self) -> str:
        return (
            f"mean change of {self.value} over {self.examples} examples, {self.confidence:.0%} intervals, in "
            f"{self.unit}; untouched it is {self.untouched:.3g}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each route, kind of cut, width and layer."""
        names = ["route", "kind", "width", "layer"]
        index = pd.MultiIndex.from_product([self.routes, self.kinds, self.widths, self.layers], names=names)
        numbers = {name: getattr(self, name).flatten().tolist() for name in ("change", "low", "high", "counts")}
        return self.identified(pd.DataFrame(numbers, index=index).reset_index())


@explained
@in_one_go
@torch.no_grad()
def attention_routes(
    vlm: HookedVLM,
    examples: Sequence[Inputs],
    boxes: Sequence[Box] | None = None,
    *,
    routes: Routed | None = None,
    widths: Sequence[int] = (1, 5, 9),
    layers: Layers = None,
    controls: bool = True,
    value: str | Value = "logprob",
    unit: Unit = "token",
    groups: Column | None = None,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Routes:
    """Cut routes of attention, in windows of layers, for many examples.

    Take examples that the model answers rightly: where it does not, there is no answer whose way could be followed.

    Args:
        vlm: the model.
        examples: with answers.
        boxes: of the object that is asked about, (left, top, right, bottom) in pixels of each picture; then the object
            and the rest of the image are routes of their own.
        routes: others than from image to question, from image to the last position, and from question to it.
        widths: of the windows.
        layers: in whose middle windows stand; all by default.
        controls: cut as many other keys as well, and as much attention to other keys.
        value, unit: what is told, of the first part of each answer.
        groups: which examples are not independent, such as questions about one picture; by default each is alone.
        confidence: of the intervals.
        samples: of the bootstrap.
        seed: of what is drawn.
        progress: show a progress bar.

    Raises:
        InputError: no examples, no answer, another number of boxes or groups, or a cut that did not achieve what it was
            to.
        SiteError: attention whose edges cannot be told apart.
    """
    need_seed(seed)
    names = [*_routes(routes, None if boxes is None else (0, 0, 1, 1))]
    numbers = _need_all(examples, boxes, names, widths, groups, confidence, samples)
    centres, kinds = chosen_layers(vlm, layers), KINDS if controls else KINDS[:1]
    spans = [[windows(vlm, width)[layer] for layer in centres] for width in widths]
    found, plain = [], []
    for n, x in enumerate(tqdm(examples, desc="examples", disable=not progress, leave=False)):
        readings = readings_of(vlm, x, [value], unit)
        own = _routes(routes, None if boxes is None else boxes[n])
        found.append(torch.stack([_cut(readings, Route(vlm, x, *own[name], seed + n), kinds, spans) for name in own]))
        plain.append(float(readings.untouched.values[0, 0]))
    told = {"widths": widths, "value": readings.target.values[0].name, "unit": unit_name(unit), "samples": samples}
    changes = torch.stack(found)
    return Routes(
        routes=tuple(names),
        kinds=tuple(kinds),
        widths=tuple(widths),
        layers=tuple(centres),
        **_means(changes, numbers, confidence, samples, seed),
        counts=(~changes.isnan()).sum(0),
        untouched=sum(plain) / len(plain),
        examples=len(examples),
        value=readings.target.values[0].name,
        unit=readings.target.values[0].unit,
        confidence=confidence,
        provenance=vlm.provenance("attention_routes", *examples, seed=seed, **told),
    )


def _need_all(
    examples: Sequence[Inputs],
    boxes: Sequence[Box] | None,
    names: Sequence[str],
    widths: Sequence[int],
    groups: Column | None,
    confidence: float,
    samples: int,
) -> Int[Tensor, " example"]:
    """The number of each example's group, once all is there that is needed."""
    if not examples or (boxes is not None and len(boxes) != len(examples)) or not names or not widths:
        raise InputError(
            f"{len(examples)} examples, {'no' if boxes is None else len(boxes)} boxes, routes {list(names)}, widths "
            f"{list(widths)}: give at least one of each, and a box for each example or none"
        )
    numbers = torch.arange(len(examples)) if groups is None else numbered(groups)
    if len(numbers) != len(examples) or not 0 < confidence < 1 or samples < 2:
        raise InputError(
            f"a group for each of the {len(examples)} examples, a confidence between 0 and 1 and 2 samples or more are "
            f"needed; got {len(numbers)} groups, {confidence}, {samples}"
        )
    for x in examples:
        x.need_answer()
    return numbers


def _routes(given: Routed | None, box: Box | None) -> Routed:
    """Those that were given; else the whole image's, and with a box the object's and the rest's."""
    if given is not None or box is None:
        return WHOLE if given is None else given
    thing, rest = Region(box), Region(box, outside=True)
    parts: Routed = {
        "object → question": ("question", thing),
        "rest of image → question": ("question", rest),
        "object → last": ("last", thing),
    }
    return {**WHOLE, **parts}


def _cut(
    readings: Readings, route: Route, kinds: Sequence[str], spans: Sequence[Sequence[range]]
) -> Float[Tensor, "kind width layer"]:
    """What the answer's first part gains by each cut; NaN where there is none of that kind."""
    plain = readings.untouched.values[0, 0]
    found = torch.full((len(kinds), len(spans), len(spans[0])), torch.nan, dtype=torch.float64)
    for k, w, n in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        cut = route.cut(kinds[k], spans[w][n])
        if cut is not None:
            found[k, w, n] = under(readings, cut)[0].values[0, 0] - plain
    return found


def _means(
    changes: Float[Tensor, "example route kind width layer"], groups: Tensor, confidence: float, samples: int, seed: int
) -> dict[str, Tensor]:
    """Means over the examples that have a number, with their intervals."""
    flat = changes.flatten(1)
    drawn = bootstrap_weights(groups, samples, torch.Generator().manual_seed(int(seed))).double()
    scores = ((drawn @ flat.nan_to_num(0.0)) / (drawn @ (~flat.isnan()).double())).T
    low, high = interval(scores, confidence, int(groups.max()) + 1)
    numbers = {"change": scores[:, 0], "low": low, "high": high}
    return {name: one.view(changes.shape[1:]).float() for name, one in numbers.items()}
