"""Training mode: dropout, and norms over a batch, change every number, whichever part of a model is in it."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lvlm_interp.errors import ModelError
from lvlm_interp.model.walking import looked_up, named_modules

CHANCE = re.compile("drop|jitter|stochastic", re.IGNORECASE)  # names of rates, and of the modules that have one


def need_evaluation(model: nn.Module) -> None:
    """Raise where the numbers of a model are those of training.

    Raises:
        ModelError: names the module that is in training mode.
    """
    if model.training:
        raise ModelError("the model is in training mode, where dropout changes every number: call model.eval()")
    for name, module in looked_up(named_modules, model):
        if module.training and _differs(module):
            raise ModelError(
                f"{name!r} ({type(module).__name__}) is in training mode, where it computes other numbers: call "
                "model.eval(). An adapter that is added, or another part that is put in, comes in training mode"
            )


def _differs(module: nn.Module) -> bool:
    """Whether training mode changes what a module computes: it has a rate, or so has its configuration."""
    if isinstance(module, (_NormBase, nn.RReLU)):
        return True
    held = {**vars(getattr(module, "config", None) or nn.Identity()), **vars(module)}
    rates = [value for name, value in held.items() if CHANCE.search(name)]
    rates += [held.get("p")] if CHANCE.search(type(module).__name__) else []
    return any(isinstance(rate, float) and rate > 0 for rate in rates)
