"""What the model would say of other pictures, or of none."""

from __future__ import annotations

from collections.abc import Callable

from lvlm_interp.counterfactuals import pictures as pictures  # what is a counterfactual there is a name here
from lvlm_interp.counterfactuals import texts as texts
from lvlm_interp.counterfactuals.counterfactual import COUNTERFACTUALS, NAMED, Counterfactual, applied, named

__all__ = ["NAMED", "Counterfactual", "applied", "named"]


def __getattr__(name: str) -> Callable[..., Counterfactual]:
    if name not in COUNTERFACTUALS:
        raise AttributeError(f"no counterfactual {name!r}; there are {list(COUNTERFACTUALS)}")
    return COUNTERFACTUALS[name]


def __dir__() -> list[str]:
    return sorted([*__all__, *COUNTERFACTUALS])
