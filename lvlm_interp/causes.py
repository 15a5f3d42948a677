"""What a raw error may come of, if each argument is of its kind: tensors that are not read, a model that does not run.

Nothing is looked at before there is an error.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from lvlm_interp.errors import InputError, LvlmInterpError
from lvlm_interp.storing import is_tensor

MOST_WHOLE, LARGEST = 2**63, 1e300
MOST = 100  # members of a list that are looked at
RAW = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def cause(arguments: Mapping[str, Any]) -> LvlmInterpError | None:
    """What is to be said of these arguments; None where nothing is known."""
    return _elsewhere() or _unreadable(arguments) or _beyond(arguments) or _unrunnable(arguments.values())


def _unreadable(arguments: Mapping[str, Any]) -> InputError | None:
    for name, value in arguments.items():
        for tensor in filter(is_tensor, _members(value)):
            if told := unread(tensor):
                return InputError(f"{name}= holds {told}")
    return None


def _beyond(arguments: Mapping[str, Any]) -> InputError | None:
    """Numbers that no tensor and no drawing holds."""
    for name, value in arguments.items():
        for number in _members(value):
            if isinstance(number, int) and abs(number) >= MOST_WHOLE:
                return InputError(f"{name}= holds a whole number of {number.bit_length()} bits, which are too many")
            if isinstance(number, float) and LARGEST < abs(number) < math.inf:
                return InputError(f"{name}= holds {number:g}, which is larger than can be computed with")
    return None


def unread(tensor: Any) -> str:
    """What is to be said of a tensor whose numbers do not stand in memory one after the other; nothing of others."""
    plain = "strided" in str(getattr(tensor, "layout", "strided"))
    kinds = {
        "a nested tensor: give tensor.unbind(), or a padded one": getattr(tensor, "is_nested", False),
        "a tensor on 'meta', which has no numbers: give one on a device": getattr(tensor, "is_meta", False),
        "a quantised tensor: give tensor.dequantize()": getattr(tensor, "is_quantized", False),
        "a sparse tensor: give tensor.to_dense()": not plain,
    }
    return next((told for told, true in kinds.items() if true), "")


def _members(value: Any) -> Iterator[Any]:
    """A value, or what is in a list, a mapping or a row of lists."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value[:MOST]:
            yield from _members(one)
    else:
        yield value


def _elsewhere() -> InputError | None:
    """What an error may come of where torch makes new tensors on another device than the cpu."""
    torch = sys.modules.get("torch")
    if torch is None or (device := torch.empty(0).device).type == "cpu":
        return None
    return InputError(
        f"torch's default device is {str(device)!r}, where it would make what is computed beside the model: leave that "
        "`with torch.device(…)`, or torch.set_default_device('cpu'); the model may be on any device"
    )


def _unrunnable(values: Iterable[Any]) -> LvlmInterpError | None:
    """What a plain pass of the model says, where that does not run either."""
    held = [*values]
    models = [one for one in held if callable(getattr(one, "run", None)) and hasattr(one, "provenance")]
    examples = [one for one in held if hasattr(one, "model_inputs")]
    if not models or not examples:
        return None
    with suppress(*RAW):
        try:
            models[0].run(examples[0])
        except LvlmInterpError as error:
            return error
    return None
