"""What a function was given: where Python's own error comes of an argument of the wrong kind, one that says so."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, get_type_hints

from lvlm_interp.errors import InputError, LvlmInterpError
from lvlm_interp.fields import fits, named, shown

P = ParamSpec("P")
T = TypeVar("T")
RAW = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
MADE = {  # how what is asked for is made, by its type
    "HookedVLM": "an opened model: lvlm_interp.load(name), or wrap(model, processor)",
    "Inputs": "an example: vlm.prepare(question, image, answer=…)",
    "Batch": "examples side by side: vlm.batch(examples)",
    "Module": "a transformers model (load(name) opens one by its name)",
    "os.PathLike[str]": "a path (wrap(model, processor) opens a model that is in memory)",
    "Image": "a PIL image",
    "dtype": "a torch dtype such as torch.float16",
    "device": "a torch device",
}


def explained(function: Callable[P, T]) -> Callable[P, T]:
    """The function, which says which argument is of the wrong kind where that made it fail.

    What works is left alone: nothing is looked at before there is an error.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except LvlmInterpError:
            raise
        except RAW as error:
            if told := next(_misfits(function, args, kwargs), None):
                raise InputError(told) from error
            raise

    return call


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """The same, and its arguments are looked at where nothing fails yet: for what is only used later."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        made = explained(function)(*args, **kwargs)
        if told := next(_misfits(function, args, kwargs), None):
            raise InputError(told)
        return made

    return call


def _misfits(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[str]:
    """What is to say of each argument that is not what its annotation says."""
    plain = inspect.unwrap(function)
    try:
        bound = inspect.signature(plain).bind(*args, **kwargs).arguments
        hints = get_type_hints(plain)
    except (NameError, TypeError):  # another number of arguments: Python's own error says so
        return
    for name, value in bound.items():
        several = inspect.signature(plain).parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        if name in hints and not several and not fits(value, hints[name], strict=False):
            yield f"{function.__name__}({name}=…) takes {_wanted(hints[name])}; got {_got(value)}"


def _wanted(hint: Any) -> str:
    return " | ".join(MADE.get(part.strip(), part.strip()) for part in named(hint).split("|"))


def _got(value: Any) -> str:
    kind = type(value).__name__
    return f"{shown(value)}, {'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
