"""Who uses a model now: one thread at a time, no pass inside another, and under which edits.

Hooks belong to a model, not to a thread: a pass of one thread would be recorded, edited and masked by what another has
put up. So each call holds the model, and calls of other threads wait; but nobody waits for a user's `with`, which may
be open for long, or forever.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules import module as every_module
from transformers import PreTrainedModel

from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.model.compiled import original
from lvlm_interp.model.known import Known

M = TypeVar("M", bound=Callable[..., Any])
# Hooks of these change nothing that a user did not ask for in a `with` of theirs or ours.
KNOWN = ("lvlm_interp.", "transformers.", "nnsight.", "accelerate.", "torch.")
WRAPPING = ("torch.", "jaxtyping.", "beartype.")  # they make a function of one that they are given
# Who makes layers that compute each row by itself, or are asked whether they do.
ROWS = (*KNOWN, "peft.", "bitsandbytes.", "torchao.", "optimum.", "gptqmodel.", "hqq.", "liger_kernel.", "apex.")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
FORWARDS = ("forward", "_old_forward")  # of an instance; accelerate keeps the one that it found
Edits = tuple[tuple[Any, Callable[..., Any]], ...]
"""Sites, and what their values pass through."""
EVERYWHERE = "every module"
NESTED = (
    "an edit or a hook runs the model that it is called from: its own pass would be recorded and edited too. Compute "
    "what it needs before, or let it call a deepcopy of the model"
)
Put = tuple[tuple[str, Callable[..., Any]], ...]
"""Names of modules, and functions that others have put there."""


Whose = Callable[[Callable[..., Any]], Callable[..., Any]]


def mine(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that knows only passes of the thread that has put it up: a model may be served by others meanwhile."""
    me = threading.get_ident()

    @functools.wraps(hook)
    def only(*args: Any, **kwargs: Any) -> Any:
        return None if of_another_thread(me) else hook(*args, **kwargs)

    return only


def everybody_s(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook as it is."""
    return hook


def of_another_thread(me: int) -> bool:
    """Whether this is another thread of Python's; torch has threads of its own, which work for the one that waits."""
    return threading.get_ident() != me and not isinstance(threading.current_thread(), threading._DummyThread)


class Held:
    """One model's use.

    Attributes:
        edited: the sites that a user's edits are at now, with these.
        paused: modules whose visits are left out for the moment.
        known: what of the model was read, for its fingerprint.
        passes: how many were begun.
    """

    def __init__(self) -> None:
        self.edited: Edits = ()
        self.paused: frozenset[nn.Module] = frozenset()
        self.known, self.passes = Known(), 0
        self._identity: str | None = None
        self._lock, self._editors, self._passing, self._depth = threading.RLock(), list[int](), False, 0

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Within the `with` no other thread uses the model.

        Raises:
            ModelError: another thread is within a `with vlm.visiting(…)`.
        """
        if self._editors and threading.get_ident() not in self._editors:
            raise ModelError(
                "another thread is editing this model (with vlm.visiting): leave that `with` first, or give each "
                "thread a model of its own"
            )
        with self._lock:
            yield

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """As `using`, for a whole method: what the model is, is read once."""
        with self.using():
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    self._identity = None

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Within the `with` a forward pass runs.

        Raises:
            ModelError: it would run inside another, from an edit or a hook.
        """
        with self.using():
            if self._passing:
                raise ModelError(NESTED)
            self._passing, self.passes = True, self.passes + 1
            try:
                yield
            finally:
                self._passing = False

    @contextlib.contextmanager
    def pausing(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Within the `with` sites of these modules are not visited."""
        before, self.paused = self.paused, frozenset(modules)
        try:
            yield
        finally:
            self.paused = before

    @contextlib.contextmanager
    def editing(self, edits: Mapping[Any, Callable[..., Any]], open_to_user: bool = False) -> Iterator[None]:
        """Within the `with` these sites are edited; `open_to_user` says that nobody knows for how long.

        Inside a method that holds the model (`reading`) that is known: until it is done. Others wait for it.
        """
        mine = tuple(edits.items())
        with self.using():
            me = [threading.get_ident()] if open_to_user and not self._depth else []
            self.edited = (*self.edited, *mine)
            self._editors += me
            try:
                yield
            finally:  # those of others stay, in whichever order they are left
                self.edited = tuple(one for one in self.edited if not any(one is own for own in mine))
                for editor in me:
                    self._editors.remove(editor)

    def whose(self) -> Whose:
        """Whose passes a hook is for: of a method of ours this thread's; within a user's `with` those of all threads,
        as of the one that generates while another prints."""
        return mine if self._depth or self._passing else everybody_s

    def identity(self, model: PreTrainedModel) -> str:
        """The model's fingerprint, looked at once within a method."""
        with self.using():
            found = self._identity or self.known.fingerprint(model)
            self._identity = found if self._depth else None
        return found


_HELD: WeakKeyDictionary[nn.Module, Held] = WeakKeyDictionary()
_MAKING = threading.Lock()


def held(model: nn.Module) -> Held:
    """The use of a model, whoever opened it, and however often."""
    with _MAKING:
        return _HELD.setdefault(model, Held())


def in_one_go(method: M) -> M:
    """A method that begins with a model holds it until it is done.

    Raises:
        InputError: what it is given first is no opened model.
    """

    @functools.wraps(method)
    def whole(vlm: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(vlm, "held"):
            raise InputError(
                f"{method.__name__}() begins with a model that was opened, such as li.load('reference'); got "
                f"{vlm if isinstance(vlm, str) else type(vlm).__name__!r}"
            )
        with vlm.held.reading():
            vlm.notice_modules()  # an adapter may have been switched since
            return method(vlm, *args, **kwargs)

    return whole  # type: ignore[return-value]


def hooks_of_others(modules: Iterable[tuple[str, nn.Module]], kinds: Iterable[str] = HOOKS) -> list[str]:
    """The names of modules with forward hooks, or a forward, that neither we nor what we stand on have put there."""
    return list(dict.fromkeys(name for name, _ in put_by_others(modules, kinds)))


def hooked_before(module: nn.Module) -> bool:
    """Whether a hook of others sees, or changes, what a module is called with."""
    return any(map(_foreign, module._forward_pre_hooks.values()))


def within_hook_of_others(error: BaseException) -> bool:
    """Whether a hook of others was running where an error was raised, also one that has taken itself off by then."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    called = (now for by, now in itertools.pairwise(frames) if by.f_globals.get("__name__") == every_module.__name__)
    return any(
        now.f_code.co_name != "forward" and not f"{now.f_globals.get('__name__')}".startswith(KNOWN) for now in called
    )


def put_by_others(modules: Iterable[tuple[str, nn.Module]], kinds: Iterable[str] = HOOKS) -> Put:
    """Forward hooks of others, and forwards that they have put in the place of a class's own, by module."""
    everywhere = [every_module._global_forward_hooks, every_module._global_forward_pre_hooks]
    found = [(EVERYWHERE, hook) for hooks in everywhere for hook in hooks.values() if _foreign(hook)]
    for name, module in modules:
        held = vars(module)
        if "_hf_hook" in held:  # few have any of these, and this is done for each result
            found += [(name, one.post_forward) for one in _of_accelerate(held["_hf_hook"]) if _foreign(type(one))]
        for kind in kinds:
            if held[kind]:
                found += [(name, hook) for hook in held[kind].values() if _foreign(hook)]
        for kind in FORWARDS:
            if kind in held and _replaces(module, held[kind]):
                found.append((name, held[kind]))
    return tuple(found)


def patched(modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Methods of a model, or of one inside it, that others have put in the place of its class's; but for forward."""
    parts = [(name, module) for name, module in modules if isinstance(module, PreTrainedModel)]
    held = ((name, type(part), *pair) for name, part in parts for pair in vars(part).items())
    return [
        f"{name}.{method}".removeprefix(".")
        for name, kind, method, put in held
        if isinstance(put, (FunctionType, MethodType, functools.partial)) and method not in FORWARDS
        if hasattr(kind, method) and _foreign(put)
    ]


def written_by_others(model: PreTrainedModel, modules: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Those of a class that is a user's own, and not of the package that the model is of."""
    own = tuple(f"{kind.__module__.partition('.')[0]}." for kind in (type(model), type(model).__base__))
    return [(name, module) for name, module in modules if not _has_known_rows(type(module), own)]  # type: ignore[arg-type]


@functools.lru_cache(maxsize=4096)
def _has_known_rows(kind: type[nn.Module], own: tuple[str, ...]) -> bool:
    return f"{_home(_plain(kind.forward))}.".startswith((*ROWS, *own))


def _of_accelerate(hook: Any) -> list[Any]:
    """What accelerate calls around a module's forward: hooks of its own, or somebody's that are made after them."""
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def _foreign(hook: Any) -> bool:
    return not _home(_plain(hook)).startswith(KNOWN)


def _replaces(module: nn.Module, forward: Any) -> bool:
    """Whether a module's forward is not what its class computes, nor that within what we stand on."""
    if original(module) is not module:  # what a compiler made
        return False
    plain = _plain(forward)
    owner = getattr(plain, "__self__", None)
    if owner is module and plain.__func__ is type(module).forward:
        return False
    return (isinstance(owner, nn.Module) and owner is not module) or _foreign(plain)


def _plain(function: Any) -> Any:
    """The function behind partial ones, and behind what torch makes of one (`no_grad`, `compile`)."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__") and _home(function).startswith(WRAPPING):
            function = function.__wrapped__
        else:
            return function


def _home(function: Any) -> str:
    """The module that a function was written in: `functools.wraps` says that of the one that it wraps."""
    written = getattr(getattr(function, "__func__", function), "__globals__", {})
    return str(written.get("__name__") or getattr(function, "__module__", ""))
