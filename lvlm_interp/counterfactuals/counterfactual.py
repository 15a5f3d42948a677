"""What a counterfactual is: a function Inputs → Inputs with a name, as data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from lvlm_interp.errors import InputError
from lvlm_interp.given import checked, explained, need_seed
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.vlm import HookedVLM

Change = Callable[[HookedVLM, Inputs, torch.Generator], Inputs]


@dataclass(frozen=True)
class Counterfactual:
    """What the answer is compared with.

    Attributes:
        name: for tables and figures.
        change: makes the other example; None hides the image's tokens instead (CAL's way).
        parameters: what decides it, for provenance.
    """

    name: str
    change: Change | None = field(repr=False)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.change is not None and not callable(self.change):
            raise InputError(f"what changes an example is a function of (vlm, x, generator); got {self.change!r}")


F = TypeVar("F", bound=Callable[..., Counterfactual])
COUNTERFACTUALS: dict[str, Callable[..., Counterfactual]] = {}
"""Name → the function that makes it, of every counterfactual."""
NAMED: dict[str, Callable[[], Counterfactual]] = {}
"""Those among them that need no argument: a name is enough for them."""


@explained
def counterfactual(make: F) -> F:
    """Make a function a name of `lvlm_interp.counterfactuals`, and of `without=` if it needs no argument."""
    if not callable(make):
        raise InputError(f"a counterfactual is made by a function, which @counterfactual stands above; got {make!r}")
    known: Any = checked(make)
    COUNTERFACTUALS[make.__name__] = known
    if not _needed(make):
        NAMED[make.__name__] = known
    return known


def _needed(make: Callable[..., Counterfactual]) -> list[str]:
    """The arguments that it cannot do without."""
    options = inspect.signature(make).parameters.values()
    return [option.name for option in options if option.default is option.empty]


def _others() -> str:
    told = {name: ", ".join(_needed(make)) for name, make in COUNTERFACTUALS.items() if name not in NAMED}
    return " and ".join(f"counterfactuals.{name}({needed})" for name, needed in told.items()) + " take an argument"


@explained
def named(without: str | Counterfactual) -> Counterfactual:
    """A counterfactual by name.

    Raises:
        InputError: a name that is not known.
    """
    if isinstance(without, Counterfactual):
        return without
    if not isinstance(without, str) or without not in NAMED:
        raise InputError(f"no counterfactual {without!r}; by name there are {list(NAMED)}, and {_others()}")
    return NAMED[without]()


def applied(counterfactual: Counterfactual, vlm: HookedVLM, x: Inputs, seed: int = 0) -> Inputs:
    """The other example; what is random is drawn from `seed`.

    Raises:
        InputError: no image, tokens that are hidden, a seed that is no number, or what changes gives no example.
    """
    need_seed(seed)
    x.need_image()
    if counterfactual.change is None:
        raise InputError("hidden tokens are a coalition, not other inputs: use score(vlm, x, x.hidden('image'))")
    made: Any = counterfactual.change(vlm, x, torch.Generator().manual_seed(int(seed)))
    if not isinstance(made, Inputs):
        raise InputError(f"the counterfactual {counterfactual.name!r} makes an example, Inputs; it gave {made!r}")
    return made
