"""What a function was given: where Python's own error comes of an argument of the wrong kind, one that says so."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar, get_type_hints

from lvlm_interp.causes import RAW, cause
from lvlm_interp.errors import ArgumentError, InputError, LvlmInterpError
from lvlm_interp.fields import fits, named, shown

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K", bound=type)
TRUTHS = (bool, "bool", "bool | None")
MADE = {  # how what is asked for is made, by its type
    "HookedVLM": "an opened model: lvlm_interp.load(name), or wrap(model, processor)",
    "Inputs": "an example: vlm.prepare(question, image, answer=…)",
    "Batch": "examples side by side: vlm.batch(examples)",
    "Module": "a transformers model (load(name) opens one by its name)",
    "os.PathLike[str]": "a path",
    "Image": "a PIL image",
    "dtype": "a torch dtype such as torch.float16",
    "device": "a torch device",
}
HINTS = {"load": "; wrap(model, processor) opens a model that is in memory"}


def explained(function: Callable[P, T]) -> Callable[P, T]:
    """The function, which says which argument is of the wrong kind where that made it fail.

    What works is left alone: nothing is looked at before there is an error. Only where what is returned begins later
    (a generator, the start of a `with`) is it looked at in the call, so that the error stands there. What is True or
    False is always, since anything passes for one: `"no"` is true, and `trust_remote_code="False"` would trust. So are
    sets, whose order is nobody's.
    """
    plain = inspect.unwrap(function)
    if inspect.isgeneratorfunction(plain):
        return checked(function)
    truths = _truths_of(plain)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for name, place in truths.items():
            given = kwargs[name] if name in kwargs else args[place] if place < len(args) else None
            if not _is_truth(given):
                raise ArgumentError(f"{_called(plain)}({name}=…) takes True or False; got {_got(given)}")
        if any(isinstance(one, (set, frozenset)) for one in (*args, *kwargs.values())):
            need_order(plain, args, kwargs)
        try:
            return function(*args, **kwargs)
        except ArgumentError as error:  # of what this function handed on, as its own argument
            raise _misgiven(function, args, kwargs) or error from error.__cause__
        except LvlmInterpError:
            raise
        except RAW as error:
            if told := _misgiven(function, args, kwargs) or cause(_named(plain, args, kwargs)):
                raise told from error
            raise

    return _marked(call)


def _named(plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by their names; none where there is another number of them, of which Python's own error tells."""
    with suppress(TypeError):
        return inspect.signature(plain).bind(*args, **kwargs).arguments
    return {}


def _truths_of(plain: Callable[..., Any]) -> dict[str, int]:
    """The arguments that are True or False, and their places; those that are only named have none."""
    names = plain.__code__.co_varnames[: plain.__code__.co_argcount]
    truths = (name for name, hint in plain.__annotations__.items() if hint in TRUTHS and name != "return")
    return {name: names.index(name) if name in names else sys.maxsize for name in truths}


def _is_truth(value: Any) -> bool:
    """Whether a value says yes or no: a truth, or a number that stands for one, of any package; None says no."""
    if isinstance(value, (str, bytes)):  # numpy's have no axes either
        return False
    return value is None or isinstance(value, (bool, int)) or not getattr(value, "ndim", 1)


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """The same, and its arguments are looked at first: for what is only used later, or too late."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if told := _misgiven(function, args, kwargs):
            raise told
        return function(*args, **kwargs)

    return _marked(call, "beforehand")


def explaining(kind: K) -> K:
    """A class, whose public methods are all `explained`: none is forgotten."""
    for name, member in list(vars(kind).items()):
        if inspect.isfunction(member) and not name.startswith("_") and not is_explained(member):
            setattr(kind, name, explained(member))
    return kind


class Parametric:
    """What is data: subclasses are frozen dataclasses, whose fields are parameters of the types that they name."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        explaining(cls)

    def __post_init__(self) -> None:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        need_arguments(type(self).__init__, self, **{one.name: getattr(self, one.name) for one in fields})


def need_arguments(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Raise where an argument is not what a function's annotations say; nothing is called.

    Raises:
        ArgumentError: names the first.
    """
    if told := _misgiven(function, args, kwargs):
        raise told


def need_order(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise for a set where order tells which is which: that of a set is another in each process.

    Raises:
        ArgumentError: names it.
    """
    for name, value, hint in _each(function, _named(function, args, kwargs)):
        if isinstance(value, (set, frozenset)) and not _fits(value, hint):
            raise ArgumentError(f"{_called(function)}({name}=…) takes {_wanted(hint)}, in order; got {_got(value)}")


def _marked(call: Callable[P, T], when: str = "afterwards") -> Callable[P, T]:
    vars(call)["explained"] = when
    return call


def is_explained(function: Callable[..., Any]) -> bool:
    """Whether a function is `explained`, or `checked`, whatever else is around it."""
    return bool(getattr(function, "explained", False))


def _misgiven(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> ArgumentError | None:
    """What is to be said of the first argument that is of the wrong kind."""
    told = next(_misfits(function, args, kwargs), None)
    return None if told is None else ArgumentError(told)


def _misfits(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[str]:
    """What is to say of each argument that is not what its annotation says."""
    plain = inspect.unwrap(function)
    for name, value, hint in _each(plain, _named(plain, args, kwargs)):
        if not _fits(value, hint):
            more = HINTS.get(plain.__qualname__, "")
            yield f"{_called(plain)}({name}=…) takes {_wanted(hint)}; got {_got(value)}{more}"


def _called(plain: Callable[..., Any]) -> str:
    """A function as a user names it: what makes an object, by its class."""
    return plain.__qualname__.split(".")[-2] if plain.__name__ in ("__init__", "__new__") else plain.__name__


def _each(plain: Callable[..., Any], bound: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and annotation of each argument that has one; those of `*names` and `**names` one by one."""
    kinds, hints = inspect.signature(plain).parameters, _hints(plain)
    for name, value in bound.items():
        if name not in hints:
            continue
        if kinds[name].kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((name, one, hints[name]) for one in value)
        elif kinds[name].kind is inspect.Parameter.VAR_KEYWORD:
            yield from ((key, one, hints[name]) for key, one in value.items())
        else:
            yield name, value, hints[name]


def _hints(plain: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's arguments, but those of packages that are not loaded."""
    found: dict[str, Any] = {}
    for name, hint in plain.__annotations__.items():
        if name != "return":
            with suppress(NameError):
                found |= get_type_hints(SimpleNamespace(__annotations__={name: hint}), plain.__globals__)
    return found


def _fits(value: Any, hint: Any) -> bool:
    """Whether an argument fits; one that cannot be judged is not blamed."""
    try:
        return fits(value, hint, strict=False)
    except RAW:
        return True


def _wanted(hint: Any) -> str:
    return " | ".join(MADE.get(part.strip(), part.strip()) for part in named(hint).split("|"))


def _got(value: Any) -> str:
    kind = type(value).__name__
    return f"{shown(value)}, {'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def whole(value: Any) -> Any:
    """A whole number of any package as Python's; what is none as it is."""
    if isinstance(value, (bool, str)) or getattr(value, "ndim", None) or "bool" in str(getattr(value, "dtype", "")):
        return value
    with suppress(TypeError):
        return operator.index(value)
    return value


def need_seed(seed: Any) -> None:
    """Raise unless chance can be drawn from it."""
    if not fits(seed, int, strict=False) or not -(2**63) <= seed < 2**64:
        raise InputError(f"seed= is a whole number of at most 64 bits; got {_got(seed)}")
