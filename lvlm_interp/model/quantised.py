"""Layers of quantised models: when they have their last form, and whether their rows are independent.

Some take that form at their first pass: bitsandbytes moves scales from the weight to the layer, and packs four bits for
the processor that it finds. And some compute a row by what stands beside it: LLM.int8() leaves the columns unrounded in
which any row of the pass has a large number (Dettmers et al. 2022). There rows cannot be packed, and none left out.
Adapters are asked the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lvlm_interp.errors import ModelError
from lvlm_interp.model.holding import written_by_others
from lvlm_interp.model.weights import sizes_of

MIXED = 1e-4  # of the largest number: what another row may change where rows are independent; in fact, nothing
LARGE = 100.0  # beside numbers up to 1
ADVICE = "Rows are independent with llm_int8_threshold=0.0 in bitsandbytes, or another scheme that rounds weights only"


def stored_otherwise(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear maps of a model that keep something else than plain numbers with a point."""
    return ((name, module) for name, module in model.named_modules() if sizes_of(module) and _packs(module))


def _packs(module: nn.Module) -> bool:
    held = itertools.chain(module.parameters(), module.buffers())
    return any(type(one.data) is not Tensor or not one.is_floating_point() for one in held)


def need_weights_to_read(model: nn.Module) -> None:
    """Raise where a layer keeps its weights where they are no tensors, and rounds each row by all rows of a pass.

    Raises:
        ModelError: names it.
    """
    for name, module in model.named_modules():
        if hasattr(module, "_packed_params") and type(module).__module__.startswith("torch.ao."):
            raise ModelError(
                f"{name!r} is a {type(module).__name__} made by quantize_dynamic of torch.ao: its weights cannot be "
                "read, and its rows depend on each other. Quantise with torchao's weight-only schemes, or with "
                "bitsandbytes, which are read"
            )


@torch.no_grad()
def settle(model: nn.Module, dtype: torch.dtype) -> None:
    """Let each such layer compute a row, so that what a model is does not change with its first picture."""
    for _, module in stored_otherwise(model):
        module.forward(_row(module, dtype))


@torch.no_grad()
def mixing(model: PreTrainedModel, dtype: torch.dtype) -> str:
    """Which layer computes a row by what stands beside it; empty if none does. One layer of each kind is asked."""
    asked = (*_one_of_each(stored_otherwise(model)), *_one_of_each(_adapted(model)), *_one_of_each(_other(model)))
    return next((f"{name} ({type(m).__name__})" for name, m in asked if _mixes(m, dtype)), "")


def need_gradients(model: nn.Module, dtype: torch.dtype) -> None:
    """Raise unless such layers hand gradients on, and a graph can hold the weights.

    Raises:
        ModelError: names one that does not.
    """
    if made := [name for name, weight in model.named_parameters() if weight.is_inference()]:
        raise ModelError(
            f"grad=True needs weights that a graph can hold, and {made[0]} was made in torch.inference_mode(): open "
            "the model outside of it"
        )
    for name, module in _one_of_each(stored_otherwise(model)):
        if not _hands_on(module, dtype):
            raise ModelError(
                f"grad=True needs layers that hand gradients on, and {name} ({type(module).__name__}) does not "
                "(4 bits packed for a CPU, activations rounded to integers). Open it unquantised, or with 8-bit weights"
            )


@torch.inference_mode(False)
@torch.enable_grad()
def _hands_on(module: nn.Module, dtype: torch.dtype) -> bool:
    row = _row(module, dtype).requires_grad_()
    try:
        given = module.forward(row)
        return given.requires_grad and torch.autograd.grad(given.sum(), row, allow_unused=True)[0] is not None
    except RuntimeError:
        return False


def _one_of_each(layers: Iterable[tuple[str, nn.Module]]) -> Iterable[tuple[str, nn.Module]]:
    kinds = {(type(m), type(getattr(m, "weight", None))): (name, m) for name, m in layers}
    return kinds.values()


def _adapted(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear maps that an adapter adds to: peft's Lily chooses its part by the mean over all rows."""
    return ((n, m) for n, m in model.named_modules() if isinstance(m._modules.get("base_layer"), nn.Linear))


def _other(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The linear maps of a user's own class, which may round by the largest number of all rows."""
    return [(n, m) for n, m in written_by_others(model, model.named_modules()) if sizes_of(m)]


def _mixes(module: nn.Module, dtype: torch.dtype) -> bool:
    row = _row(module, dtype)
    beside = [module.forward(torch.cat([row, other]))[0].float() for other in (row, LARGE * torch.ones_like(row))]
    return float((beside[0] - beside[1]).abs().max()) > MIXED * max(1e-6, float(beside[0].abs().max()))


def _row(module: nn.Module, dtype: torch.dtype) -> Tensor:
    device = next((weight.device for weight in module.parameters() if not weight.is_meta), None)
    width = sizes_of(module)[0]  # type: ignore[index]
    return torch.rand(1, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
