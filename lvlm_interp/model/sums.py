"""What is added to the residual stream, and the stream that comes of it: seen where a block adds, not where it reads.

A block adds in plain code, `residual + hidden_states`, where no module stands that could be hooked: its norm is given
the sum, but what goes on from block to block is the sum itself. So what attention or an MLP gives is followed, through
the norms, gates and multipliers behind it, to the addition: its other side is what is added to, and both what is added
and the sum can be seen and changed there, whatever the block is called and whatever it multiplies by.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Seen = Literal["added", "sum"]
Visits = Mapping[Seen, Sequence[Callable[[Tensor], Tensor]]]
ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}


class Followed(Tensor):
    """A value on its way to the stream. All that is computed from it is followed too, until it is added."""

    visits: Visits

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = next(_followed(args if not kwargs else (*args, *kwargs.values())), None)
        if first is not None and func in ADDITIONS and not kwargs and _is_met(args):
            return _added(func, args, first.visits)
        result = super().__torch_function__(func, types, args, kwargs or {})
        for one in _followed(result if isinstance(result, (tuple, list)) else (result,)):
            if first is not None:
                one.visits = first.visits
        return result


def follow(value: Tensor, visits: Visits) -> Tensor:
    """The same value, which is shown to its visits where it is added to the stream; to those it has already, first."""
    followed = value.as_subclass(Followed)
    if not isinstance(value, Followed):
        followed.visits = visits
        return followed
    before = value.visits
    followed.visits = {seen: [*before.get(seen, ()), *visits.get(seen, ())] for seen in (*before, *visits)}
    return followed


def _followed(values: Any) -> Iterator[Followed]:
    for value in values:
        if isinstance(value, Followed):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _followed(value)


def _is_met(args: tuple[Any, ...]) -> bool:
    """Whether an addition is to the stream: a tensor of the same shape that does not come of the value itself."""
    if len(args) != 2 or not all(isinstance(one, Tensor) for one in args):
        return False
    if sum(isinstance(one, Followed) for one in args) != 1:
        return False
    with torch._C.DisableTorchFunctionSubclass():
        return args[0].shape == args[1].shape


def _added(func: Any, args: tuple[Any, ...], visits: Visits) -> Tensor:
    """The sum, as a plain tensor, after all visits."""
    added, whole = (in_turn(visits.get(seen, ())) for seen in get_args(Seen))
    return whole(func(*(added(one.as_subclass(Tensor)) if isinstance(one, Followed) else one for one in args)))


def in_turn(visits: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Several visits as one: each is given what the one before returned."""
    return lambda value: functools.reduce(lambda given, visit: visit(given), visits, value)
