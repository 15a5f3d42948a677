"""Who uses a model now: one thread at a time, no pass inside another, and under which edits.

Hooks belong to a model, not to a thread: a pass of one thread would be recorded, edited and masked by what another has
put up. So each call holds the model, and calls of other threads wait; but nobody waits for a user's `with`, which may
be open for long, or forever.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules import module as every_module
from transformers import PreTrainedModel

from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.model.identity import Known

M = TypeVar("M", bound=Callable[..., Any])
# Hooks of these change nothing that a user did not ask for in a `with` of theirs or ours.
KNOWN = ("lvlm_interp.", "transformers.", "nnsight.", "accelerate.", "torch.")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
Edits = tuple[tuple[Any, Callable[..., Any]], ...]
"""Sites, and what their values pass through."""
EVERYWHERE = "every module"


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
        self._lock, self._editor, self._passing, self._depth = threading.RLock(), 0, False, 0

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Within the `with` no other thread uses the model.

        Raises:
            ModelError: another thread is within a `with vlm.visiting(…)`.
        """
        if self._editor not in (0, threading.get_ident()):
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
                raise ModelError(
                    "an edit or a hook runs the model that it is called from: its own pass would be recorded and "
                    "edited too. Compute what it needs before, or let it call a deepcopy of the model"
                )
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
        """Within the `with` these sites are edited; `open_to_user` says that nobody knows for how long."""
        with self.using():
            before = self.edited, self._editor
            self.edited = (*self.edited, *edits.items())
            self._editor = threading.get_ident() if open_to_user else self._editor
            try:
                yield
            finally:
                self.edited, self._editor = before

    def identity(self, model: PreTrainedModel) -> str:
        """The model's fingerprint, looked at once within a method."""
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
            return method(vlm, *args, **kwargs)

    return whole  # type: ignore[return-value]


def hooks_of_others(modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """The names of modules with forward hooks that neither we nor the packages that we stand on have put there."""
    everywhere = [every_module._global_forward_hooks, every_module._global_forward_pre_hooks]
    found = [EVERYWHERE] if any(map(_foreign, everywhere)) else []
    return found + [name for name, module in modules if any(_foreign(getattr(module, kind)) for kind in HOOKS)]


def _foreign(hooks: dict[int, Any]) -> bool:
    return any(not str(getattr(_plain(hook), "__module__", "")).startswith(KNOWN) for hook in hooks.values())


def _plain(hook: Any) -> Any:
    """The function behind a partial one."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    return hook
