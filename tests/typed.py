"""Every function and dataclass of the package is checked against its annotations, shapes included, while tests run.

jaxtyping's import hook decorates them all. What it makes of a function binds the arguments three times over, each time
that it is called, and compiles checks anew whenever a function inside another is made: three quarters of the suite's
time. That is needed for shapes only, whose axes are to agree with each other; where no shape is named, beartype alone
checks the same. A function inside another is checked the first `OFTEN` times that it is made.
"""

import inspect
import types
from collections import Counter
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, install_import_hook

OFTEN = 10
# With the "tower" an int passes for a float, as it does for a type checker.
plainly = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError))
with_shapes = jaxtyping.jaxtyped
_made: Counter[types.CodeType] = Counter()


def typed(function: Any = None, **hook: Any) -> Any:
    """In place of `jaxtyping.jaxtyped`, as its import hook calls it."""
    if function is None:
        return lambda function: typed(function)
    if function == "context":
        return with_shapes(function)
    if not isinstance(function, types.FunctionType):  # a class
        return with_shapes(function, typechecker=plainly)
    _made[function.__code__] += 1
    if "<locals>" in function.__qualname__ and _made[function.__code__] > OFTEN:
        return function
    hints = {name: _evaluated(hint, function.__globals__) for name, hint in function.__annotations__.items()}
    if any(map(_is_shaped, hints.values())):
        return with_shapes(function, typechecker=plainly)
    function.__annotations__ = hints
    return plainly(function)


def _evaluated(hint: Any, names: dict[str, Any]) -> Any:
    """What an annotation says; what is imported for type checkers only is not checked."""
    holder = types.SimpleNamespace(__annotations__={"value": hint})
    try:
        return get_type_hints(holder, names, include_extras=True)["value"]
    except Exception:
        return Any


def _is_shaped(hint: Any) -> bool:
    if isinstance(hint, (list, tuple)):
        return any(map(_is_shaped, hint))
    return (inspect.isclass(hint) and issubclass(hint, AbstractArray)) or any(map(_is_shaped, get_args(hint)))


def install() -> None:
    """Check what is imported from now on."""
    jaxtyping.jaxtyped = typed
    install_import_hook("lvlm_interp", "tests.typed")  # a name for the cache of compiled files; `typed` does the rest
