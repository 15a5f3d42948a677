"""The only file that registers hooks. Inside a `with` values are seen and changed; afterwards nothing is left.

A hook that never fired is an error that names its site: a silent gap would look like data.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from lvlm_interp.errors import ModelError, SiteError
from lvlm_interp.families.shared.registry import NAMES
from lvlm_interp.model.compiled import uncompiled
from lvlm_interp.model.holding import NESTED, Held, Whose, held, mine
from lvlm_interp.model.norms import NormPart, Parts, renormed
from lvlm_interp.model.silence import why_silent
from lvlm_interp.model.sites import Site
from lvlm_interp.model.sums import Seen, Visits, follow
from lvlm_interp.model.taps import Reading, Visit, attended

TOKENS = "input_ids"  # given to a projector that embeds some tokens as well (Gemma 3n): such calls are no site's
# Its hooks keep hidden states (those of a tower that the projector reads), from the first pass on and for good.
KEEPING = "transformers.utils.output_capturing"

_NORMED: WeakKeyDictionary[nn.Module, list[Parts]] = WeakKeyDictionary()  # what each open `with` visits, outer first


@contextlib.contextmanager
def visiting(model: PreTrainedModel, visits: Mapping[Site, Visit], whose: Whose = mine) -> Iterator[None]:
    """Within the `with`, each site's value passes through its visit, which returns the value to go on with.

    One `with` may be inside another: a value passes through the visit of the outer one first. Passes of other threads
    know nothing of it, unless `whose` says so.

    Raises:
        SiteError: a visit returns no tensor of the value's shape; on leaving without another error, if a pass was run
            in which a site did not fire.
    """
    fired, use = set[str](), held(model)
    before, called = use.passes, list[nn.Module]()
    taps: dict[nn.Module, dict[str, list[Visit]]] = defaultdict(lambda: defaultdict(list))
    sums: dict[nn.Module, dict[Seen, list[Visit]]] = defaultdict(lambda: defaultdict(list))
    norms: dict[nn.Module, dict[NormPart, list[Visit]]] = defaultdict(lambda: defaultdict(list))
    with contextlib.ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        for site, visit in visits.items():
            noted = _noting(site, visit, fired, use)
            if site.read == "attention":
                taps[site.module][site.part].append(noted)
            elif site.read in ("scale", "normalized"):
                norms[site.module][site.read].append(noted)
            elif site.read in ("added", "sum"):
                sums[site.module][site.read].append(_apart(site, noted))
            else:
                stack.callback(_hooked(site, noted, whose).remove)
        for module, seen in sums.items():
            for handle in _followed(module, seen, whose):
                stack.callback(handle.remove)
        for norm, parts in norms.items():
            stack.enter_context(_normed(norm, parts, whose))
        stack.enter_context(attended(model, taps, whose))
        stack.callback(model.register_forward_pre_hook(whose(lambda module, args: called.append(module))).remove)
        yield
    ran = called or use.passes > before  # a model that is called by its user, and what we run of it
    if ran and (silent := [site for site in visits if site.name not in fired]):
        why = why_silent([site.module for site in silent], [model])
        raise SiteError(f"these sites did not fire in this forward pass: {[site.name for site in silent]}{why}")


def _noting(site: Site, visit: Visit, fired: set[str], use: Held) -> Visit:
    if isinstance(visit, Reading):
        return visit.within(lambda one: _noting(site, one, fired, use))

    def noted(value: Tensor) -> Tensor:
        if site.module in use.paused:
            return value
        fired.add(site.name)
        return passed(site.name, visit, value)

    return noted


def passed(name: str, visit: Visit, value: Tensor) -> Tensor:
    """What a visit returns; torch would drop a missing tensor, and stretch one of another shape."""
    try:
        seen = visit(value)
    except Exception as error:
        error.add_note(f"(raised in an edit, or a record, of {name!r})")
        raise
    if seen is value:  # records give back what they saw
        return seen
    if (found := _kind(seen)) != (expected := _kind(value)):
        raise SiteError(f"an edit of {name!r} returns the value to go on with, {expected}; it gave {found}")
    return seen


def takes_one(edit: Callable[..., Any]) -> bool:
    """Whether a function can be called with a value alone; of one that does not tell, that is believed."""
    try:
        inspect.signature(edit).bind(None)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _kind(value: object) -> str:
    """What of a value the layers behind it count on."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    laid_out = "" if value.layout == torch.strided else f" {value.layout}"
    return f"{tuple(value.shape)} {value.dtype} {value.device}{laid_out}"


def _with_input(args: tuple[Any, ...], kwargs: dict[str, Any], change: Visit) -> tuple[Any, dict[str, Any]]:
    """A module's arguments with its hidden states changed, however they were given."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    name = next(name for name in NAMES.hidden_states if name in kwargs)
    return args, {**kwargs, name: change(kwargs[name])}


def _with_output(output: Any, change: Visit) -> Any:
    """What a module gives with its hidden states changed: alone, first of several, or in a list, picture by picture."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, ModelOutput):
        first = next(iter(output))
        return type(output)(**{**output, first: change(output[first])})
    if isinstance(output, list):
        return list(change(torch.cat(output)).split([len(one) for one in output]))
    return change(output[0]), *output[1:]


def _within(value: Tensor, span: tuple[int, int], visit: Visit) -> Tensor:
    """The value with a part of its last axis passed through a visit."""
    start, stop = span
    seen = visit(value[..., start:stop])
    return seen if stop - start == value.shape[-1] else torch.cat([value[..., :start], seen, value[..., stop:]], -1)


def _apart(site: Site, visit: Visit) -> Visit:
    """Several residual streams with an axis of their own are shown side by side in the width."""
    if site.streams is None:
        return visit
    axis = site.streams

    def split(value: Tensor) -> Tensor:
        apart = value.movedim(axis, -2)
        seen = visit(apart.flatten(-2)).unflatten(-1, apart.shape[-2:])
        return seen.movedim(-2, axis).contiguous()  # laid out as it was: products round by the layout

    return split


def _line_of(module: nn.Module) -> OrderedDict[int, Callable[..., Any]]:
    """A module's forward hooks, in the order in which they are called."""
    return cast("OrderedDict[int, Callable[..., Any]]", module._forward_hooks)


def _placed(
    module: nn.Module, hook: Callable[..., Any], last: bool, whose: Whose
) -> tuple[RemovableHandle, RemovableHandle]:
    """A forward hook that stays its module's last, or else its first, whatever is put on later; and what sees to it."""
    handle = module.register_forward_hook(whose(hook), with_kwargs=True)
    return handle, module.register_forward_pre_hook(lambda *_: _line_of(module).move_to_end(handle.id, last))


def _followed(module: nn.Module, visits: Visits, whose: Whose) -> tuple[RemovableHandle, RemovableHandle]:
    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return _with_output(output, lambda value: follow(value, visits))

    return _placed(module, after, True, whose)  # others get plain tensors: what they add is no addition to the stream


@contextlib.contextmanager
def _normed(norm: nn.Module, parts: Parts, whose: Whose) -> Iterator[None]:
    """Parts of a norm pass through their visits: in one hook for all that are open, since one part is made of another.

    It is the first, for it makes anew what the norm gives: behind others it would undo what they did.
    """
    standing = _NORMED.setdefault(norm, [])

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        read = args[0] if args else next(kwargs[name] for name in NAMES.hidden_states if name in kwargs)
        return renormed(norm, standing, read, output)

    standing.append(parts)
    handles = () if len(standing) > 1 else _placed(norm, after, False, whose)
    try:
        yield
    finally:
        standing.pop()
        for handle in handles:
            handle.remove()


def _hooked(site: Site, visit: Visit, whose: Whose) -> RemovableHandle:
    visit = _apart(site, visit)

    def split(value: Tensor) -> Tensor:
        if site.heads is None:
            return visit(value) if site.span is None else _within(value, site.span, visit)
        start, stop = site.span or (0, value.shape[-1])
        heads = value[..., start:stop].unflatten(-1, (site.heads, -1))
        seen = _within(heads, site.inner or (0, heads.shape[-1]), visit).flatten(-2)
        return _within(value, (start, stop), lambda _: seen)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return _with_input(args, kwargs, split)

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return output if kwargs.get(TOKENS) is not None else _with_output(output, split)

    if site.read == "input":
        return site.module.register_forward_pre_hook(whose(before), with_kwargs=True)
    handle = site.module.register_forward_hook(whose(after), with_kwargs=True)
    _ahead_of_keeping(site.module)
    return handle


def _ahead_of_keeping(module: nn.Module) -> None:
    """Put a module's newest hook ahead of transformers' hooks that it is next to, but behind anybody else's."""
    line = _line_of(module)
    older = list(reversed(line))[1:]
    for number in reversed(list(itertools.takewhile(lambda n: line[n].__module__ == KEEPING, older))):
        line.move_to_end(number)


@contextlib.contextmanager
def skipping(modules: Iterable[nn.Module], rows: Bool[Tensor, " position"]) -> Iterator[None]:
    """Within the `with`, these modules are given the chosen rows only, as if there were no others; those get 0."""

    def cut(value: Any) -> Any:
        by_row = isinstance(value, Tensor) and value.shape[1:2] == rows.shape
        return value[:, rows.to(value.device)] if by_row else value

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return tuple(map(cut, args)), {name: cut(value) for name, value in kwargs.items()}

    def spread(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape[1:2] != (int(rows.sum()),):
            return value
        whole = value.new_zeros(len(value), len(rows), *value.shape[2:])
        whole[:, rows.to(value.device)] = value
        return whole

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return tuple(map(spread, output)) if isinstance(output, tuple) else spread(output)

    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(mine(before), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(mine(after)).remove)
        yield


@contextlib.contextmanager
def rescaling(factors: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Within the `with`, what each of these modules gives is multiplied by its factor."""

    def scaled(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return (output * factors[module].to(output.device)).to(output.dtype)

    with contextlib.ExitStack() as stack:
        for module in factors:
            stack.callback(module.register_forward_hook(mine(scaled)).remove)
        yield


@contextlib.contextmanager
def lengthened(rotaries: Iterable[nn.Module], last: Tensor) -> Iterator[None]:
    """Within the `with`, these embeddings are given a position more, the last of the whole, and so know its length."""

    def longer(positions: Tensor) -> Tensor:
        end = last.to(positions.device, positions.dtype).expand(*positions.shape[:-1], 1)
        return torch.cat([positions, end], -1)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": longer(kwargs["position_ids"])}
        return (args[0], longer(args[1]), *args[2:]), kwargs

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return tuple(one[..., :-1, :] for one in output) if isinstance(output, tuple) else output[..., :-1, :]

    with contextlib.ExitStack() as stack:
        for rotary in rotaries:
            stack.callback(rotary.register_forward_pre_hook(mine(before), with_kwargs=True).remove)
            stack.callback(rotary.register_forward_hook(mine(after)).remove)
        yield


class _Reached(Exception):
    """Ends a forward pass that need not go on."""


def arguments_of(modules: Sequence[nn.Module], run: Callable[[], Any]) -> list[dict[str, Any]]:
    """Run a model until all these modules were called and return the arguments of each one's first call, by name.

    Raises:
        SiteError: one of the modules was never called.
    """
    found: dict[nn.Module, dict[str, Any]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = list(inspect.signature(module.forward).parameters)
        found.setdefault(module, {**dict(zip(names, args, strict=False)), **kwargs})
        if len(found) == len(set(modules)):
            raise _Reached

    with contextlib.ExitStack() as stack:
        for module in set(modules):
            stack.callback(module.register_forward_pre_hook(mine(note), with_kwargs=True).remove)
        stack.enter_context(contextlib.suppress(_Reached))
        run()
    if missed := [module for module in modules if module not in found]:
        names = [type(module).__name__ for module in missed]
        raise SiteError(f"{names} were not called in this forward pass{why_silent(missed, modules)}")
    return [found[module] for module in modules]


@contextlib.contextmanager
def stopped(values: Iterable[Tensor]) -> Iterator[None]:
    """Within the `with` no derivative goes back through these values of a graph."""
    with contextlib.ExitStack() as stack:
        for value in values:
            stack.callback(value.register_hook(torch.zeros_like).remove)
        yield


@contextlib.contextmanager
def masking(masks: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Within the `with`, each attention module is called with this mask instead of the one that it would get."""

    def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": masks[module]}

    with contextlib.ExitStack() as stack:
        for module in masks:
            stack.callback(module.register_forward_pre_hook(mine(replace), with_kwargs=True).remove)
        yield


@contextlib.contextmanager
def passing(model: nn.Module, *modules: nn.Module) -> Iterator[None]:
    """Within the `with` a pass of a model runs, which goes through these modules one call at a time.

    Raises:
        ModelError: it would run inside another, or another inside it, whoever begins that; or it is set to give tuples.
    """
    config: Any = getattr(model, "config", None)
    parts = () if config is None else (config, config.get_text_config())
    if not all(getattr(part, "return_dict", True) for part in parts):
        raise ModelError("the configuration says return_dict=False, and outputs are read by name: set it to True")
    with held(model).passing(), contextlib.ExitStack() as stack:
        for module in modules:
            turn = _OneAtATime()
            stack.callback(module.register_forward_pre_hook(mine(turn.enter)).remove)
            stack.callback(module.register_forward_hook(mine(turn.leave), always_call=True).remove)
        yield


class _OneAtATime:
    """Refuses a call of a module inside a call of it."""

    inside = False

    def enter(self, module: nn.Module, args: Any) -> None:
        if self.inside:
            raise ModelError(NESTED)
        self.inside = True

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.inside = False
