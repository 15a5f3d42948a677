"""Where a model is, and in which numbers: checked before anything is read."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.shown import gist

HALF = 2  # bytes of the smallest numbers that all of torch computes in
SHORT = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64", "f32": "float32"}


def floating(dtype: torch.dtype | str, or_else: str) -> torch.dtype:
    """A type of numbers, which may be told by its name.

    Args:
        dtype: the type, `"float16"` or `"torch.float16"`.
        or_else: what else the caller takes, for the message.

    Raises:
        InputError: no such type, one of whole numbers, or one that is stored and not computed in (eight bits).
    """
    named = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point or named.itemsize < HALF:
        hint = f" Did you mean {SHORT[dtype]!r}?" if isinstance(dtype, str) and dtype in SHORT else ""
        raise InputError(
            f"dtype is a torch dtype with a point, such as torch.float16, its name, or {or_else}; got {dtype!r}.{hint}"
        )
    return named


GROUPED = "grouped_mm"  # torch's kernel for mixtures of experts, and what transformers calls it


def need_kernels(model: PreTrainedModel) -> None:
    """Raise where torch cannot compute a model in its numbers: mixtures of experts in double precision.

    Raises:
        ModelError: says what would work.
    """
    grouped = getattr(model.config.get_text_config(), "_experts_implementation", None) == GROUPED
    experts = (module for module in model.modules() if grouped and type(module).__name__.endswith("Experts"))
    if any(weight.dtype == torch.float64 for module in experts for weight in module.parameters()):
        raise ModelError(
            f"{type(model).__name__} has mixtures of experts in float64, which torch's kernel ({GROUPED}) does not "
            "compute: open it in float32, or with experts_implementation='eager'"
        )


def need_device(device: str | torch.device | None) -> None:
    """Raise unless something can be put on a device.

    Raises:
        InputError: it is not there, or no device.
    """
    if device is None:
        return
    try:
        if torch.empty(0, device=device).device.type == "meta":
            raise InputError("on the device 'meta' weights hold no numbers; give cpu, cuda or another")
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        count = torch.cuda.device_count()
        here = ["cpu", *(f"cuda:{n}" for n in range(count)), *(["mps"] if torch.backends.mps.is_available() else [])]
        raise InputError(f"no device {str(device)!r} here; there are {', '.join(here)}") from error


def moved(model: PreTrainedModel, device: str | torch.device, name: str) -> PreTrainedModel:
    """The model on a device.

    Raises:
        ModelError: it does not go there.
    """
    try:
        return model.to(device)
    except (RuntimeError, ValueError) as error:  # no room, or quantised weights that stay where they are
        raise ModelError(f"{name!r} cannot be put on {device}: {gist(error)}") from error
