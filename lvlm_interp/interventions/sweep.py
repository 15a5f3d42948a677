"""An intervention at one place after the other: which layers, heads or positions an answer hangs on.

Each goes on from the untouched pass (`engine.resumed`). Promise: each value is that of `intervene`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.attribution.against import Against
from lvlm_interp.attribution.value import Value, described, texts_of
from lvlm_interp.errors import InputError
from lvlm_interp.fields import POSITIVE, Range
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Unit, unit_name
from lvlm_interp.interventions.axes import Label, Over, cells_of
from lvlm_interp.interventions.intervention import Intervention, ledger_of
from lvlm_interp.interventions.readings import Reading, Readings, change_of, readings_of
from lvlm_interp.interventions.sources import remembering
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result


@dataclass(frozen=True)
class Sweep(Result):
    """What an answer is worth under each of several interventions.

    Attributes:
        axes: over what it goes: the names of the columns that tell one from another.
        labels: what stands there, for each intervention.
        parts: the parts of the answer, as text.
        untouched: what each part is worth without.
        values: and under each intervention, `[cell, part]`.
        kl: KL(untouched ‖ intervened) at each token of the answer, in nats, `[cell, answer]`.
        changed: how many numbers became others in the model; where none did, the intervention touches nothing there
            (a route that is masked already).
        value, unit: which value.
        alternatives: for each part, what its value compares it with, found untouched.
        share: how much of as many whole passes was computed.
    """

    ranges: ClassVar[Mapping[str, Range]] = {"kl": POSITIVE, "changed": POSITIVE, "share": (0, 1)}
    along: ClassVar[Mapping[str, str]] = {"labels": "cell", "parts": "part"}
    axes: tuple[str, ...]
    labels: tuple[tuple[str | int, ...], ...]
    parts: tuple[str, ...]
    untouched: Float[Tensor, " part"]
    values: Float[Tensor, "cell part"]
    kl: Float[Tensor, "cell answer"]
    changed: Int[Tensor, " cell"]
    value: str
    unit: str
    alternatives: tuple[tuple[str, ...], ...]
    share: float

    @property
    def change(self) -> Float[Tensor, "cell part"]:
        """What each part gains by each intervention."""
        return self.values - self.untouched

    @property
    def note(self) -> str:
        idle = int((self.changed == 0).sum())
        told = f"; {idle} touch nothing" if idle else ""
        return f"{self.value} in {self.unit}; {len(self.labels)} interventions, all certified{told}"

    def to_frame(self) -> pd.DataFrame:
        """One row for each intervention and part, with `kl` summed over the answer's tokens."""
        cells, parts = self.values.shape
        index = torch.arange(cells).repeat_interleave(parts).tolist()
        columns: dict[str, list[Label]] = {
            name: [self.labels[cell][n] for cell in index] for n, name in enumerate(self.axes)
        }
        frame = pd.DataFrame(columns)
        frame = frame.assign(part=list(self.parts) * cells, value=self.values.flatten().tolist())
        changes = self.change.flatten().tolist()
        told = {name: [numbers[cell] for cell in index] for name, numbers in self._by_cell().items()}
        return self.identified(frame.assign(change=changes, **told))

    def _by_cell(self) -> dict[str, list[float]]:
        return {"kl": self.kl.sum(1).tolist(), "numbers changed": self.changed.tolist()}


@explained
@in_one_go
@torch.no_grad()
def sweep(
    vlm: HookedVLM,
    x: Inputs,
    intervention: Intervention,
    over: Over = "layers",
    *,
    value: str | Value | None = None,
    unit: Unit = "token",
    against: Against | None = None,
    word: int = 0,
    progress: bool = False,
) -> Sweep:
    """Try an intervention at one place after the other.

    `sweep(vlm, x, Knockout("last", "image"), {"layers": windows(vlm, 9)})` cuts a route in one window of layers after
    the other; `sweep(vlm, x, Patch("blocks.*.attn.hook_z", source=other), "heads")` exchanges one head after the other.

    Args:
        vlm: the model.
        x: an example with an answer.
        intervention: one, or several, `one + other`; a field is swept in all that have it.
        over: the fields. `"layers"`, `"heads"` (every head of every layer), `"positions"`, `"rows"` or `"keys"` mean
            every place; several names all their combinations. Or by name the values in a list, or by label:
            `{"layers": [0, 5, range(10, 20)], "rows, keys": {"image → last": ("last", "image")}}`.
        value, unit, against, word: what is told, as in `intervene`.
        progress: show a progress bar.

    Raises:
        InputError: no answer; a field that the intervention lacks, or no value of one; interventions that touch nothing
            anywhere, or did not achieve what they were to.
        SiteError: a site, layer or head that is not there.
        ModelError: the model gives NaN or infinity.
    """
    axes, cells = cells_of(vlm, x, intervention, over)
    readings = readings_of(vlm, x, [value], unit, against, word)
    reads = [read for cell in cells for read in cell.intervention.reads(vlm, x)]
    found: list[tuple[Reading, int]] = []
    with remembering(vlm, reads):
        for cell in tqdm(cells, desc="interventions", disable=not progress, leave=False):
            found.append(under(readings, cell.intervention))
    if not any(changed for _, changed in found):
        raise InputError(f"{intervention.described} touches nothing, wherever it is tried")
    target = readings.target
    told = {"interventions": intervention.described, "over": axes, "unit": unit_name(unit)}
    return Sweep(
        axes=axes,
        labels=tuple(cell.label for cell in cells),
        parts=texts_of(target.parts),
        untouched=readings.untouched.values[0].float(),
        values=torch.stack([reading.values[0] for reading, _ in found]).float(),
        kl=torch.stack([reading.kl for reading, _ in found]).float(),
        changed=torch.tensor([changed for _, changed in found]),
        value=target.values[0].name,
        unit=target.values[0].unit,
        alternatives=readings.alternatives or ((),) * len(target.parts),
        share=readings.share,
        provenance=vlm.provenance("sweep", x, value=target.values[0].name, **told, **described(target, against, word)),
    )


def under(readings: Readings, intervention: Intervention) -> tuple[Reading, int]:
    """What an answer is worth under an intervention, and how many numbers that changed.

    Raises:
        InputError: it did not achieve what it was to.
    """
    ledger = ledger_of(readings.vlm, readings.x, intervention)
    reading = readings.under(change_of(ledger))
    ledger.need_achieved()
    return reading, ledger.changed
