"""Walks through the modules of a model: what is asked of them all in one go is looked up once.

A capture asks seven things of some six hundred modules; walking through them each time took a twentieth of a pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., Any])
_OPEN: WeakKeyDictionary[nn.Module, dict[Callable[[nn.Module], object], object]] = WeakKeyDictionary()


def walking_once(method: M) -> M:
    """A method of a model in which `looked_up` asks its modules each thing once; no other thread uses it meanwhile."""

    @functools.wraps(method)
    def whole(vlm: Any, *args: Any, **kwargs: Any) -> Any:
        with vlm.held.using():  # what is known of the modules must not be from before a wait
            mine = [root for root in (vlm.model, vlm.decoder) if root not in _OPEN]
            _OPEN.update({root: {} for root in mine})
            try:
                return method(vlm, *args, **kwargs)
            finally:
                for root in mine:
                    _OPEN.pop(root, None)

    return whole  # type: ignore[return-value]


def looked_up(walk: Callable[[nn.Module], T], root: nn.Module) -> T:
    """What a walk through the modules of one finds."""
    known = _OPEN.get(root, {})
    if walk not in known:
        known[walk] = walk(root)
    return known[walk]  # type: ignore[return-value]


def named_modules(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """As torch's, at once."""
    return [*root.named_modules()]
