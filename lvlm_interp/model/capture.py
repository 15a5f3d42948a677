"""The only file that registers hooks. Record and edit activations inside a `with`; afterwards nothing is left.

A hook that never fired is an error that names its site: a silent gap would look like data.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lvlm_interp.errors import SiteError
from lvlm_interp.model.attention import Tap, tapped
from lvlm_interp.model.choice import Choice
from lvlm_interp.model.sites import Site

Edit = Callable[[Tensor], Tensor]
Visit = Callable[[Tensor], Tensor]


class Capture(Mapping[str, Tensor]):
    """Recorded activations: site name → tensor, as the table in `model.sites` gives its shape.

    Attributes:
        choice: what of every value was kept.
    """

    def __init__(self, values: Mapping[str, Tensor], choice: Choice) -> None:
        self._values, self.choice = dict(values), choice

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._values:
            raise SiteError(f"{name!r} was not captured; this capture holds {list(self._values)}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return "Capture(\n" + "".join(f"  {k}: {tuple(v.shape)} {v.dtype}\n" for k, v in self.items()) + ")"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{k}</td><td>{tuple(v.shape)}</td><td>{v.dtype}</td></tr>" for k, v in self.items())
        return f"<table><tr><th>site</th><th>shape</th><th>dtype</th></tr>{rows}</table>"


@contextlib.contextmanager
def visiting(model: PreTrainedModel, visits: Mapping[Site, Visit]) -> Iterator[None]:
    """Within the `with`, each site's value passes through its visit, which returns the value to go on with.

    Raises:
        SiteError: on leaving without another error, if a site did not fire.
    """
    fired: set[str] = set()
    taps: dict[nn.Module, dict[str, list[Visit]]] = defaultdict(lambda: defaultdict(list))
    with contextlib.ExitStack() as stack:
        for site, visit in visits.items():
            noted = _noting(site.name, visit, fired)
            if site.read == "attention":
                taps[site.module][site.part].append(_as_positions(noted, site.part))
            else:
                stack.enter_context(_hooked(site, noted))
        stack.enter_context(tapped(model, {module: _tap(parts) for module, parts in taps.items()}))
        yield
    if silent := [site.name for site in visits if site.name not in fired]:
        raise SiteError(f"these sites did not fire in this forward pass: {silent}")


@contextlib.contextmanager
def recording(
    model: PreTrainedModel, sites: Iterable[Site], choice: Choice, edits: Mapping[Site, Edit] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Within the `with`, the yielded dictionary fills with what is chosen of the values at the sites, after edits.

    Raises:
        SiteError: on leaving without another error, if a site did not fire, or if what was recorded there has been
            written over since (nothing is copied that need not be, so that would show in the record).
    """
    edits, found, versions = edits or {}, {}, {}

    def visit(site: Site) -> Visit:
        def record(value: Tensor) -> Tensor:
            value = edits[site](value) if site in edits else value
            found[site.name], value = choice.taken(site.name, value)
            versions[site.name] = found[site.name]._version
            return value

        return record

    recorded = {site: visit(site) for site in sites}
    silent_edits = {site: edit for site, edit in edits.items() if site not in recorded}
    with visiting(model, {**silent_edits, **recorded}):
        yield found
    if written := [name for name, value in found.items() if value._version != versions[name]]:
        raise SiteError(
            f"{written} changed in place after being recorded, by an edit or by the model itself; let edits return new "
            "tensors, or give positions=range(…), which copies what it keeps"
        )


def _noting(name: str, visit: Visit, fired: set[str]) -> Visit:
    def noted(value: Tensor) -> Tensor:
        fired.add(name)
        return visit(value)

    return noted


def _as_positions(visit: Visit, part: str) -> Visit:
    """Attention functions hold `[batch, head, position, width]`; sites of q, k, v and z put the position first."""
    if part in ("pattern", "attn_scores"):
        return visit
    return lambda value: visit(value.transpose(1, 2)).transpose(1, 2)


def _tap(parts: Mapping[str, list[Visit]]) -> Tap:
    def tap(name: str, value: Tensor) -> Tensor:
        for visit in parts.get(name, ()):
            value = visit(value)
        return value

    return tap


@contextlib.contextmanager
def _hooked(site: Site, visit: Visit) -> Iterator[None]:
    def split(value: Tensor) -> Tensor:
        if site.heads is None:
            return visit(value)
        return visit(value.unflatten(-1, (site.heads, -1))).flatten(-2)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (split(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": split(kwargs["hidden_states"])}

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (split(output[0]), *output[1:]) if isinstance(output, tuple) else split(output)

    if site.read == "input":
        handle = site.module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = site.module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


class _Reached(Exception):
    """Carries a module's arguments out of a forward pass that need not go on."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


def arguments_of(module: nn.Module, run: Callable[[], Any]) -> dict[str, Any]:
    """Run a model up to a module and return the keyword arguments that the module is called with.

    Raises:
        SiteError: the module was never called.
    """

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(kwargs)

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        run()
    except _Reached as reached:
        return reached.arguments
    finally:
        handle.remove()
    raise SiteError(f"{type(module).__name__} was not called in this forward pass")
