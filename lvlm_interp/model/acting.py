"""Which module computes in the place of one: what was compiled runs as it is written, and an adapter may run a copy.

peft wraps a module that is trained as a whole (`modules_to_save`, LN tuning), and calls a copy of it while its adapter
is on. What is found of a model are the modules that run now.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lvlm_interp.model.compiled import original

COPIES = ("modules_to_save", "ln_tuning_layers")  # where a wrapper keeps its copies, by adapter
WRAPPED = ("original_module", "base_layer")  # and what it wraps
OF_ONE = "parameter_name"  # what an adapter of a single parameter calls it
PROMPTS = "adaption_prompt"  # of LLaMA-Adapter: the projections of attention are given it too


def acting(module: nn.Module) -> Any:
    """The module that runs where this one is called; most are themselves."""
    while (inner := _called(original(module))) is not module:
        module = inner
    return module


def acting_modules(root: nn.Module) -> Iterator[nn.Module]:
    """The modules of a model that run, in torch's order: of a copy and what it is of, one."""
    found = acting(root)
    yield found
    for child in found.children():
        yield from acting_modules(child)


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module may call copies of what it wraps."""
    held = module._modules
    return COPIES[0] in held or COPIES[1] in held


def wrapped_by(module: nn.Module | None) -> nn.Module | None:
    """What a module of an adapter stands in the place of; None for others."""
    found = (getattr(module, name, None) for name in WRAPPED)
    return next((one for one in found if isinstance(one, nn.Module)), None)


def called_again(root: nn.Module) -> dict[nn.Module, str]:
    """Modules that an adapter calls once more, with rows of its own, and the class of what does."""
    around = (module for module in root.modules() if PROMPTS in module._parameters)
    return {inner: type(module).__name__ for module in around for inner in module.modules()}


def rewritten(module: nn.Module) -> list[Tensor]:
    """The weight that an adapter takes out, and puts back as it was, in each pass: torch counts that as a change.

    It is a parametrisation of peft's, of parameters that are no linear layer's (`target_parameters`).
    """
    name = vars(module).get(OF_ONE)
    layer: Any = None if name is None else wrapped_by(module)  # few have a name; this is asked for each result
    while layer is not None and (inner := wrapped_by(layer)) is not None:
        layer = inner
    found = getattr(layer, str(name), None)
    return [found] if isinstance(found, Tensor) else []


def _called(module: nn.Module) -> nn.Module:
    if not is_wrapper(module) or (wrapped := wrapped_by(module)) is None:
        return module
    copies, on = _copies(module), _adapters_on(module)
    return copies[on[0]] if on and on[0] in copies else wrapped


def _copies(module: nn.Module) -> Any:
    return next(module._modules[name] for name in COPIES if name in module._modules)


def _adapters_on(module: Any) -> list[str]:
    """The adapters of a wrapper that are on; what was merged is in what it wraps."""
    off = module.disable_adapters or module.merged_adapters
    return [] if off else list(module.active_adapters)
