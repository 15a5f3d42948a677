"""What a heatmap method is: an object whose fields are its parameters, and which makes a map of what is asked.

A new one is a file in `methods/` with a class like these; one of a user's own is handed to `attribute` as it is.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeGuard, get_args

import pandas as pd

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import InputError
from lvlm_interp.given import explained, explaining, need_arguments, whole
from lvlm_interp.heatmaps import methods as folder

Kind = Literal["counterfactual", "gradient", "attention", "readout"]


@explaining
class Method(abc.ABC):
    """One way to make a heatmap; subclasses are frozen dataclasses.

    Attributes:
        name: what `attribute` calls it by.
        kind: what it looks at: what happens when something is changed, derivatives, attention, or what is read out.
        cost: how many forward passes it takes, in words; N patches, L layers.
        signed: whether a negative number speaks against the part.
        sums: what its numbers promise to add up to; empty if nothing.
        needs: what a model or an example must have; empty if nothing beside a grid of patches.
        source: the paper, or where else it is defined.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    cost: ClassVar[str]
    signed: ClassVar[bool] = True
    sums: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    source: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        explaining(cls)

    def __post_init__(self) -> None:
        """Raise for parameters of another type: they would fail within a method, or mean something else there."""
        need_arguments(type(self).__init__, self, **self.parameters)

    @classmethod
    def read(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters as they were given by name, made what the fields hold."""
        return {name: whole(value) for name, value in parameters.items()}

    @abc.abstractmethod
    def map(self, asked: Asked) -> PatchMap:
        """The map of what is asked."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What a result tells of how it was made."""
        if not dataclasses.is_dataclass(self):
            return {}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@functools.cache
def known() -> Mapping[str, type[Method]]:
    """The methods by name, in the order of their kinds."""
    names = [found.name for found in pkgutil.iter_modules(folder.__path__)]
    files = [importlib.import_module(f"{folder.__name__}.{name}") for name in names]
    found = {kind for file in files for kind in vars(file).values() if _is_whole(kind)}
    order = get_args(Kind)
    return {kind.name: kind for kind in sorted(found, key=lambda kind: (order.index(kind.kind), kind.name))}


def _is_whole(kind: object) -> TypeGuard[type[Method]]:
    return inspect.isclass(kind) and issubclass(kind, Method) and not inspect.isabstract(kind)


@explained
def methods() -> pd.DataFrame:
    """The heatmap methods, a row each: what each looks at, costs, promises and needs, and its parameters."""
    rows = [
        {
            "method": name,
            "looks at": kind.kind,
            "cost": kind.cost,
            "signed": kind.signed,
            "adds up to": kind.sums,
            "needs": kind.needs,
            "parameters": ", ".join(f"{field.name}={_default(field)!r}" for field in dataclasses.fields(kind)),  # type: ignore[arg-type]
            "source": kind.source,
        }
        for name, kind in known().items()
    ]
    return pd.DataFrame(rows)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def method_of(method: str | Method, parameters: Mapping[str, Any]) -> Method:
    """A method by its name and parameters; an object is one already.

    Raises:
        InputError: there is none of that name, or it has no such parameter.
    """
    if isinstance(method, Method):
        if parameters:
            raise InputError(
                f"{type(method).__name__}(…) has its parameters; {[*parameters]} cannot be given beside it"
            )
        return method
    if method not in known():
        near = difflib.get_close_matches(str(method), known(), 1)
        meant = f": did you mean {near[0]!r}?" if near else "."
        raise InputError(f"no attribution method {method!r}{meant} There are {', '.join(known())}; see li.methods()")
    kind = known()[method]
    own = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if foreign := [name for name in parameters if name not in own]:
        raise InputError(f"{method!r} has no parameter {foreign[0]!r}; it has {own or 'none'}")
    parameters = kind.read(parameters)
    need_arguments(kind.__init__, object.__new__(kind), **parameters)
    return kind(**parameters)
