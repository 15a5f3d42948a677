"""The streams of an answer: one sees everything, the others go without something."""

from __future__ import annotations

from collections.abc import Sequence

from lvlm_interp.counterfactuals.counterfactual import Counterfactual, applied, named
from lvlm_interp.engine.lockstep import Stream
from lvlm_interp.errors import InputError
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.vlm import HookedVLM


def named_all(without: str | Counterfactual | Sequence[str | Counterfactual]) -> list[Counterfactual]:
    """What the other streams go without.

    Raises:
        InputError: nothing, a counterfactual that is not known, or one that stands twice.
    """
    found = [named(one) for one in ([without] if isinstance(without, (str, Counterfactual)) else without)]
    names = [one.name for one in found]
    if not names or len({*names}) < len(names):
        raise InputError(f"streams go without different things, at least one; got {names}")
    return found


def streams_of(vlm: HookedVLM, x: Inputs, without: Sequence[Counterfactual], seed: int) -> list[Stream]:
    """The one that sees everything, and the others."""
    return [Stream(x, x.everything), *(_stream(vlm, x, one, seed) for one in without)]


def _stream(vlm: HookedVLM, x: Inputs, one: Counterfactual, seed: int) -> Stream:
    if one.change is None:
        return Stream(x, x.hidden("image"))
    changed = applied(one, vlm, x, seed)
    return Stream(changed, changed.everything)
