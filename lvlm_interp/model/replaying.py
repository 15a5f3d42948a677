"""Modules that give what they gave before, without computing it again."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lvlm_interp.model.holding import of_another_thread


@contextlib.contextmanager
def recording(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """Within the `with`, what each of these modules gives is noted, the last time that it is called."""
    found: dict[nn.Module, Any] = {}

    def noting(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            found[module] = forward(*args, **kwargs)
            return found[module]

        return noted

    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(_in_place_of(module, functools.partial(noting, module)))
        yield found


@contextlib.contextmanager
def replaying(outputs: Mapping[nn.Module, Any], first: int) -> Iterator[None]:
    """Within the `with`, these modules give what they gave, of the rows from `first` on, whatever they are called with.

    Rows stand on the axis before the last.
    """

    def cut(output: Any) -> Any:
        if isinstance(output, tuple):
            return cut(output[0]), *output[1:]
        return output.narrow(-2, first, output.shape[-2] - first) if isinstance(output, Tensor) else output

    with contextlib.ExitStack() as stack:
        for module, output in outputs.items():
            stack.enter_context(_in_place_of(module, functools.partial(_giving, cut(output))))
        yield


def _giving(output: Any, _: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: output


@contextlib.contextmanager
def _in_place_of(module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within the `with`, this thread's calls run what `make` makes of the module's forward."""
    own, before, me = vars(module).get("forward"), module.forward, threading.get_ident()
    mine = make(before)
    module.forward = lambda *args, **kwargs: (before if of_another_thread(me) else mine)(*args, **kwargs)
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
