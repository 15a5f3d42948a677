"""Over what a sweep goes: the values of an intervention's fields, one after the other, and how each is called."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_interp.errors import InputError
from lvlm_interp.fields import shown
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.interventions.intervention import Intervention, Together, each_of
from lvlm_interp.interventions.places import Region, chosen_layers
from lvlm_interp.model.choice import axes_of
from lvlm_interp.model.vlm import HookedVLM

EACH = "each"
Label = str | int
Choices = str | Sequence[Any] | Mapping[Label, Any]
Over = str | Sequence[str] | Mapping[str, Choices]
"""Names of fields, each of whose places is meant; or by name (two as `"rows, keys"`) values, in a list or by label."""
POSITIONS = ("positions", "rows", "keys", "source_positions")


@dataclass(frozen=True)
class Axis:
    """The values of one or two fields.

    Attributes:
        names: of the columns that tell one value from another.
        labels: what stands there, for each value.
        values: by field.
    """

    names: tuple[str, ...]
    labels: tuple[tuple[Label, ...], ...]
    values: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Cell:
    """One of the interventions of a sweep, and how it is called."""

    label: tuple[Label, ...]
    intervention: Intervention


@explained
def windows(vlm: HookedVLM, width: int) -> dict[int, range]:
    """Windows of layers around each, as wide as this where the model goes on, as in Geva et al. 2023.

    Raises:
        InputError: a width under 1.
    """
    if width < 1:
        raise InputError(f"a window has 1 layer or more; got {width}")
    reach = [(n, n - width // 2, n + (width + 1) // 2) for n in range(vlm.depth)]
    return {n: range(max(0, first), min(vlm.depth, stop)) for n, first, stop in reach}


def cells_of(vlm: HookedVLM, x: Inputs, intervention: Intervention, over: Over) -> tuple[tuple[str, ...], list[Cell]]:
    """The columns' names, and every combination of the values of all axes.

    Raises:
        InputError: a field that the intervention does not have, or no value of one.
        SiteError: layers or heads that are not there.
    """
    named = {over: EACH} if isinstance(over, str) else over if isinstance(over, Mapping) else dict.fromkeys(over, EACH)
    axes = [_axis(vlm, x, intervention, fields, choices) for fields, choices in named.items()]
    if not axes or not all(axis.values for axis in axes):
        raise InputError(f"a sweep goes over the values of at least one field, and at least one value of it: {named}")
    names = tuple(name for axis in axes for name in axis.names)
    if len({*names}) < len(names):
        raise InputError(f"two axes of a sweep have one name: {list(names)}")
    cells = []
    for some in itertools.product(*(zip(axis.labels, axis.values, strict=True) for axis in axes)):
        label = tuple(one for labels, _ in some for one in labels)
        values = {name: value for _, fields in some for name, value in fields.items()}
        cells.append(Cell(label, _replaced(intervention, values)))
    return names, cells


def _axis(vlm: HookedVLM, x: Inputs, intervention: Intervention, fields: str, choices: Choices) -> Axis:
    names = tuple(name.strip() for name in fields.split(","))
    for name in names:
        _need_field(intervention, name)
    if isinstance(choices, str) and choices != EACH:
        raise InputError(f"over {fields!r} a sweep goes over values, several in a list, or {EACH!r}; got {choices!r}")
    if isinstance(choices, str):
        return _each(vlm, x, intervention, names)
    pairs = choices.items() if isinstance(choices, Mapping) else ((_told(value), value) for value in choices)
    labelled = [(label, value if len(names) > 1 else (value,)) for label, value in pairs]
    if wrong := [value for _, value in labelled if len(value) != len(names)]:
        raise InputError(f"over {fields!r} each value has {len(names)} parts; got {shown(wrong[0])}")
    values = tuple(dict(zip(names, value, strict=True)) for _, value in labelled)
    return Axis((" → ".join(names),), tuple((label,) for label, _ in labelled), values)


def _need_field(intervention: Intervention, name: str) -> None:
    having = [one for one in each_of(intervention) if name in _fields(one)]
    if not having:
        known = sorted({field for one in each_of(intervention) for field in _fields(one)})
        raise InputError(f"{intervention.described} has no {name!r} to go over; it has {known}")


def _fields(intervention: Intervention) -> list[str]:
    return [field.name for field in dataclasses.fields(intervention)]  # type: ignore[arg-type]


def _each(vlm: HookedVLM, x: Inputs, intervention: Intervention, names: tuple[str, ...]) -> Axis:
    """Every layer, head or position of the prompt."""
    if names == ("layers",):
        layers = chosen_layers(vlm, _one(intervention, "layers"))
        return Axis(("layer",), tuple((n,) for n in layers), tuple({"layers": n} for n in layers))
    if names == ("heads",):
        counts = _heads(vlm, x, chosen_layers(vlm, _one(intervention, "layers")))
        pairs = [(layer, head) for layer, count in counts.items() for head in range(count)]
        return Axis(("layer", "head"), tuple(pairs), tuple({"heads": [pair]} for pair in pairs))
    if len(names) == 1 and names[0] in POSITIONS:
        places = range(x.answer_start)
        return Axis(("position",), tuple((p,) for p in places), tuple({names[0]: [p]} for p in places))
    raise InputError(
        f"{EACH!r} is meant of layers, heads and positions; of {', '.join(names)!r} give values, in a list or by label"
    )


def _one(intervention: Intervention, name: str) -> Any:
    """The value that all parts of an intervention have of a field, or None."""
    values = [getattr(one, name) for one in each_of(intervention) if name in _fields(one)]
    return values[0] if len(values) == 1 else None


def _heads(vlm: HookedVLM, x: Inputs, layers: Sequence[int]) -> dict[int, int]:
    """How many heads each block has that has attention."""
    names = {n: f"blocks.{n}.attn.hook_z" for n in layers}
    there = {n: name for n, name in names.items() if name in vlm.sites}
    found = vlm.capture(x, list(there.values()), positions=[0]) if there else {}
    return {n: found[name].shape[axes_of(name)[1]] for n, name in there.items()}


def _told(value: Any) -> Label:
    """How a value without a label is called."""
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return value
    if isinstance(value, range) and len(value):
        return f"{value[0]}–{value[-1]}"
    if isinstance(value, Region):
        return f"{'outside' if value.outside else 'inside'} {value.box}"
    simple = isinstance(value, Iterable) and not hasattr(value, "shape")
    return ", ".join(map(str, value)) if simple else shown(value)


def _replaced(intervention: Intervention, values: Mapping[str, Any]) -> Intervention:
    """The same with other values, wherever it has such fields."""
    if isinstance(intervention, Together):
        return Together(tuple(_replaced(one, values) for one in intervention.each))
    own = {name: value for name, value in values.items() if name in _fields(intervention)}
    return dataclasses.replace(intervention, **own)  # type: ignore[type-var]
