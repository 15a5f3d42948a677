"""Why a module was not called, or a site did not fire, though it is there: what was done since the model was opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from lvlm_interp.model.acting import is_wrapper


def why_silent(modules: Iterable[nn.Module], within: Iterable[nn.Module]) -> str:
    """The first cause that is found of modules not being called, as the end of a message; empty if there is none.

    Args:
        modules: those that were not called.
        within: what they are, or were, parts of.
    """
    silent, around = set(modules), list(within)
    return next((f"; {cause}" for root in around for cause in _causes(root, silent)), "")


def _causes(root: nn.Module, silent: set[nn.Module]) -> Iterator[str]:
    for name, module in root.named_modules():
        if is_wrapper(module) and silent & {*module.modules()}:
            yield (
                f"an adapter was switched on or off, and in the place of {name!r} another copy runs than before: "
                "switch it ahead of the `with` that edits, not within"
            )
        layers, runs = getattr(module, "layers", None), _configured(module)
        found = list(layers) if isinstance(layers, nn.ModuleList) and runs is not None else []
        if silent & {part for layer in found[runs:] for part in layer.modules()}:
            yield f"the configuration says num_hidden_layers={runs}, and only so many of {len(found)} layers run"


def _configured(module: nn.Module) -> int | None:
    return getattr(getattr(module, "config", None), "num_hidden_layers", None)
