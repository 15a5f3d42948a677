"""Model inputs that were made by hand: where they do not fit, an error that names them, their shapes and what would."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm_interp.errors import InputError, MisfitError
from lvlm_interp.fields import shown
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.shown import gist

# What torch and Python raise of shapes and kinds of numbers; a class of its own (no room on a device) tells more.
RAW = frozenset(
    {
        *(AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, StopIteration),
        *(TypeError, ValueError, ZeroDivisionError),
    }
)
OURS = ("use_cache", "return_dict")
NUMBERS = re.compile("scalar type|dtype|data type|without overflow", re.IGNORECASE)
NO_ROOM = re.compile("memory|CUDA error", re.IGNORECASE)  # of a processor torch says so in a RuntimeError


def may_be_of_shapes(error: BaseException) -> bool:
    """Whether an error can be one of inputs that do not fit: of no class of its own, nor of want of memory.

    An edit's own has a note that says of which site it is.
    """
    return type(error) in RAW and not hasattr(error, "__notes__") and not NO_ROOM.search(str(error))


def unfitting(model_inputs: Mapping[str, Any], asked: str, error: BaseException) -> MisfitError:
    """What is to be said of inputs with which something failed."""
    named = ", ".join(f"{name}: {_shape(value)}" for name, value in model_inputs.items())
    default = str(torch.get_default_dtype()).removeprefix("torch.")
    if default != "float32" and NUMBERS.search(str(error)):
        return MisfitError(
            f"{asked} while torch's default dtype is {default}: parts of it make numbers of that type ({gist(error)}). "
            "Set torch.set_default_dtype(torch.float32) around it"
        )
    return MisfitError(
        f"{asked} with these model inputs: {named} ({gist(error)}). Their axes and numbers are those that the model's "
        "own processor gives: vlm.prepare(question, image) makes them, and its .model_inputs show how they look"
    )


def _shape(value: Any) -> str:
    on = " on meta" * (isinstance(value, Tensor) and value.is_meta)
    ids = isinstance(value, Tensor) and value.dtype == torch.long and value.numel() and not value.is_meta
    return f"{shown(value)}{on}{f' from {value.min()} to {value.max()}' if ids else ''}"


@contextlib.contextmanager
def read_by_hand(model_inputs: Mapping[str, Any]) -> Iterator[None]:
    """Within the `with` they are read, and the model is not run.

    Raises:
        MisfitError: names them, where reading failed; what is no tensor is left to be told as the argument that it is.
    """
    try:
        yield
    except Exception as error:
        if not may_be_of_shapes(error) or not all(isinstance(value, Tensor) for value in model_inputs.values()):
            raise
        raise unfitting(model_inputs, "no example can be made", error) from error


def need_kinds(model_inputs: Mapping[str, Any]) -> None:
    """Raise for what is no tensor and no option of a model's numbers.

    Raises:
        InputError: names it.
    """
    for name, value in model_inputs.items():
        if name in OURS:
            raise InputError(f"{name}= is set by what runs the model: leave it out")
        if isinstance(value, (str, np.ndarray)):
            raise InputError(
                f"{name}= is a tensor (torch.as_tensor(…) makes one of an array), or an option that is a number; got a "
                f"{type(value).__name__}"
            )


def need_predicting(attention_mask: Any, start: int) -> None:
    """Raise where the position that predicts the answer is padding.

    Raises:
        InputError: names it.
    """
    if isinstance(attention_mask, Tensor) and 0 < start < attention_mask.shape[-1] and not attention_mask[0, start - 1]:
        raise InputError(
            f"attention_mask is 0 at position {start - 1}, which predicts the answer: it counts, so put 1 there"
        )


def need_usual(x: Inputs) -> None:
    """Raise unless the answer's model inputs are those of any answer to this prompt: methods put other answers there.

    Raises:
        InputError: names one that is not.
    """
    if x.answer_start == x.length:
        return
    made = x.with_answer(x.answer_ids.tolist(), x.answer_tokens, "").model_inputs
    for name in x.along:
        if not torch.equal(made[name][:, :-1], x.model_inputs[name][:, :-1]):  # the last token predicts nothing
            found, usual = (inputs[name][0, x.answer_start :].tolist() for inputs in (x.model_inputs, made))
            raise InputError(f"{name} of the answer are {found}; behind this prompt an answer has {usual}")
