"""Whether a map lies on what it should, by boxes that somebody knows: plausible, which is another thing than faithful.

Patches count by their centres: one lies in a box if its centre does. Only positive numbers speak for a place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from sklearn.metrics import average_precision_score
from torch import Tensor

from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import InputError
from lvlm_interp.fields import Range, shown
from lvlm_interp.given import explained
from lvlm_interp.inputs.view import Box
from lvlm_interp.results import Result, number_of

BINS = 256  # of Otsu's histogram


@dataclass(frozen=True)
class Located(Result):
    """How one part's map lies on boxes.

    Attributes:
        token: the part, as text.
        points: whether the largest number is in a box; where several places share it, the share of these.
        energy: the share of the positive numbers in boxes, 0 … 1; NaN where no number is positive.
        area: the share of the patches in boxes, which is what energy is by chance.
        best_iou: intersection over union with the boxes at the threshold that gives the most.
        otsu_iou: the same at Otsu's threshold, which knows nothing of the boxes.
        average_precision: of patches in boxes, ranked by their numbers; `area` by chance.
    """

    blank: ClassVar[frozenset[str]] = frozenset({"energy"})
    ranges: ClassVar[dict[str, Range]] = dict.fromkeys(
        ("points", "energy", "area", "best_iou", "otsu_iou", "average_precision"), (0, 1 + 1e-6)
    )
    token: str
    points: float
    energy: float
    area: float
    best_iou: float
    otsu_iou: float
    average_precision: float

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        names = ("token", "points", "energy", "area", "best_iou", "otsu_iou", "average_precision")
        return self.identified(pd.DataFrame([{name: getattr(self, name) for name in names}]))


@explained
def located(patches: PatchMap, boxes: Any, token: int | str = 0) -> Located:
    """How a map lies on boxes, (left, top, right, bottom) in pixels of the original picture.

    The pointing game of Zhang et al. 2018 counts a hit where the largest number lies in a box; a map of equal numbers
    hits by its share here, where public code counts it as a hit.

    Raises:
        InputError: no such part, no box, or boxes that hold the centres of no patch or of all.
    """
    number = number_of(patches.tokens, token, "the map")
    several = _several(boxes)
    inside = _inside(patches, several)
    if not inside.any() or inside.all():
        which = "all" if inside.all() else "none"
        raise InputError(
            f"{which} of the {inside.numel()} patches have their centres in {several}: nothing is told apart"
        )
    values = patches.values[number].double()
    most, positive = values == values.max(), values.clamp(min=0)
    about, told = patches.provenance, {"map": patches.provenance.method, "boxes": several, "token": number}
    return Located(
        token=patches.tokens[number],
        points=float(inside[most].double().mean()),
        energy=float(positive[inside].sum() / positive.sum()) if positive.sum() > 0 else float("nan"),
        area=float(inside.double().mean()),
        best_iou=max(_iou(values >= level, inside) for level in values.unique()),
        otsu_iou=_iou(values > otsu(values.flatten()), inside),
        average_precision=float(average_precision_score(inside.flatten().numpy(), values.flatten().numpy())),
        provenance=dataclasses.replace(about, method="located", parameters={**about.parameters, **told}),
    )


def _several(boxes: Any) -> list[Box]:
    """Boxes of whatever they are given as: one or several, numbers of any package."""
    try:
        rows = [[float(side) for side in one] for one in ([boxes] if np.ndim(boxes[0]) == 0 else boxes)]
    except (TypeError, ValueError, LookupError):
        rows = []
    if not rows or any(len(row) != 4 for row in rows):
        raise InputError(f"boxes are (left, top, right, bottom) in pixels, one or several; got {shown(boxes)}")
    return [(left, top, right, bottom) for left, top, right, bottom in rows]


def _inside(patches: PatchMap, boxes: Sequence[Box]) -> Bool[Tensor, "row column"]:
    x, y = ((patches.boxes[..., side] + patches.boxes[..., side + 2]) / 2 for side in (0, 1))
    within = [(left <= x) & (x < right) & (top <= y) & (y < bottom) for left, top, right, bottom in boxes]
    return torch.stack(within).any(0)


def _iou(chosen: Bool[Tensor, "row column"], inside: Bool[Tensor, "row column"]) -> float:
    return float((chosen & inside).sum() / (chosen | inside).sum())


def otsu(values: Float[Tensor, " patch"]) -> float:
    """The threshold between two classes of numbers with the most variance between them (Otsu 1979)."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low
    counts = torch.histc(values, BINS, low, high).double()
    middle = low + (torch.arange(BINS, dtype=torch.float64) + 0.5) * (high - low) / BINS
    below, sums = counts.cumsum(0), (counts * middle).cumsum(0)
    above = below[-1] - below
    means = sums / below.clamp(min=1), (sums[-1] - sums) / above.clamp(min=1)
    between = below * above * (means[0] - means[1]).square()
    return low + (int(between.argmax()) + 1) * (high - low) / BINS
