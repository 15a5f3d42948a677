"""Compiled models and parts of models: hooks are not seen by what was compiled, so it runs as it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from lvlm_interp.errors import ModelError
from lvlm_interp.model.walking import looked_up, named_modules

WRAPPED = "_orig_mod"  # where `torch.compile(module)` keeps the module
FROM = "_torchdynamo_orig_callable"  # where `torch.compile(function)` keeps the function


def original(module: nn.Module) -> Any:
    """The module that `torch.compile` was given; any other is itself."""
    return dict(module._modules.items()).get(WRAPPED, module)  # a scripted module has them in a kind of its own


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile(module)` made it, `module.compile()` was called, or a method of it was compiled."""
    held = vars(module)
    made = WRAPPED in module._modules or held.get("_compiled_call_impl") is not None
    return made or any(hasattr(one, FROM) for one in held.values() if callable(one))


def as_written(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model with their names, as if nothing of it had been compiled."""
    for path, module in model.named_modules():
        if original(module) is module:
            yield path.replace(f".{WRAPPED}", ""), module


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Within the `with`, a model whose parts were compiled computes without the compiler."""
    compiled = looked_up(_holds_compiled, model)
    with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
        yield


def _holds_compiled(model: nn.Module) -> bool:
    modules = looked_up(named_modules, model)
    need_python(modules)
    return any(is_compiled(module) for _, module in modules)


def need_python(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise for a part that `torch.jit` made: it takes no hooks, and cannot be run as it is written.

    Raises:
        ModelError: names it.
    """
    if made := [path for path, module in modules if isinstance(module, torch.jit.ScriptModule)]:
        raise ModelError(
            f"{made[0] or 'the model'!r} was made by torch.jit (script or trace), in which nothing can be seen or "
            "changed: give the module that it was made of"
        )
