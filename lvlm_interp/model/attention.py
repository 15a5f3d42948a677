"""The one attention function that is registered with transformers: it records and edits, only where asked.

An attention module with a *tap* computes attention by the eager formula and hands every intermediate to
the tap; every other module goes on with the model's own kernel. Where only some rows of a pattern are read (`Rows`),
so does that module: these rows are computed beside it, from its queries and keys, and memory holds rows × keys and no
square. The mask function is registered under the same name: without it transformers silently passes no mask at all.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from lvlm_interp.errors import ModelError
from lvlm_interp.model.holding import Whose, everybody_s

Tap = Mapping[str, Callable[[Tensor], Tensor]]
"""By the name of an intermediate (`rot_q`, `rot_k`, `v`, `attn_scores`, `pattern`, `z`): what is given its value and
returns the value to go on with."""

SQUARE = ("attn_scores", "pattern")  # what has a row for each position, and in it each key


@dataclass(frozen=True, eq=False)
class Rows:
    """A tap that changes no number, and of what is `SQUARE` reads these rows only, in this order.

    The model goes on with the z that the tap gives back: its numbers, of which a derivative may be watched.
    """

    numbers: Int[Tensor, " row"]
    tap: Tap


PREFIX = "lvlm_interp_"
KERNELS = ("sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
"""What computes the same as the eager formula, by other means."""
_TAPS: WeakKeyDictionary[nn.Module, Callable[[], Tap | Rows | None]] = WeakKeyDictionary()
"""Gives a module's tap; to a thread that has no part in it, none."""


def _repeat_heads(states: Float[Tensor, "b k n d"], heads: int) -> Float[Tensor, "b h n d"]:
    return states if states.shape[1] == heads else states.repeat_interleave(heads // states.shape[1], 1)


def _additive(
    mask: Tensor | None, module: nn.Module, query: Tensor, key: Tensor, causal: bool | None, rows: Tensor | None
) -> Tensor | None:
    """The mask as something to add, of some rows or all; it is left out where a kernel can tell that it is causal."""
    length, keys = query.shape[2], key.shape[2]
    if mask is None:
        causal = causal if causal is not None else getattr(module, "is_causal", True)
        if not causal or length == 1:
            return None
        places = torch.arange(length, device=query.device) if rows is None else rows
        mask = torch.arange(keys, device=query.device) <= places[:, None] + keys - length
    else:
        mask = _rows_of(mask, length, rows)
    mask = mask[..., :keys]
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(query.dtype).min
        )
    return mask


def _rows_of(value: Any, length: int, rows: Tensor | None) -> Any:
    """Some rows of what has one for each position, `[…, row, key]`; all of it where it has one for all of them."""
    if rows is None or not isinstance(value, Tensor) or value.ndim < 2 or value.shape[-2] != length:
        return value
    return value.index_select(-2, rows.to(value.device))


def _chosen(mask: Tensor | None, indices: Tensor | None, key: Tensor) -> Tensor | None:
    """The mask less the keys that a sparse layer did not choose for a row: told by their numbers, `[batch, row, some]`.

    Transformers cuts them out of the mask itself for the kernels that it knows by name, and leaves it to all others.
    """
    if indices is None or mask is None:
        return mask
    left = torch.ones(*indices.shape[:2], key.shape[2], dtype=torch.bool, device=indices.device)
    left = left.scatter(-1, indices.long(), False)[:, None]
    return mask & ~left if mask.dtype == torch.bool else mask.masked_fill(left, torch.finfo(mask.dtype).min)


def _changed(scores: Tensor, in_place: Callable[..., Tensor], anew: Callable[..., Tensor], by: Any) -> Tensor:
    """The scores multiplied by or added to something; in place, where no graph needs what they were: they are large."""
    promotes = isinstance(by, Tensor) and by.dtype != scores.dtype
    return anew(scores, by) if scores.requires_grad or promotes else in_place(scores, by)


@functools.cache
def _narrow(file: str) -> bool:
    """Whether the eager function of a model's own file takes the softmax in float32, whatever the model is in."""
    own = getattr(sys.modules.get(file), "eager_attention_forward", None)
    try:
        return own is None or "dtype=torch.float32" in inspect.getsource(own)
    except OSError:  # its text is nowhere
        return True


def _precision(module: nn.Module, scores: Tensor, kernel: str) -> torch.dtype:
    """That of the softmax: as in the model's own eager function, or as in kernels, which compute as finely as asked."""
    if scores.dtype == torch.float32 or (kernel == "eager" and _narrow(module.__class__.__module__)):
        return torch.float32
    return scores.dtype if kernel == "eager" else torch.promote_types(scores.dtype, torch.float32)


def _softmax(scores: Float[Tensor, "b h n m"], dtype: torch.dtype, spent: bool) -> Float[Tensor, "b h n m"]:
    """Written over the scores where they are spent, on the one device whose kernel was tried so."""
    over = spent and not scores.requires_grad and scores.dtype == dtype and scores.device.type == "cpu"
    return torch.softmax(scores, -1, dtype=dtype, out=scores if over else None)


def _pattern(
    module: nn.Module, scores: Float[Tensor, "b h n m"], options: dict[str, Any], spent: bool
) -> Float[Tensor, "b h n m"]:
    """The softmax of the scores; a sink is one score more for each row, whose share nobody reads."""
    sinks, dtype = options.get("sinks"), _precision(module, scores, options["kernel"])
    if sinks is None and options.get("s_aux") is not None:  # one for each head
        sinks = options["s_aux"].view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    if sinks is None:
        return _softmax(scores, dtype, spent)
    return _softmax(torch.cat([scores, sinks], -1), dtype, True)[..., :-1]


def _tapped(
    module: nn.Module, tap: Tap, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Eager attention, step by step as in `transformers`, each step handed to the tap (`[batch, head, …]`)."""

    def seen(name: str, value: Tensor) -> Tensor:
        return tap[name](value) if name in tap else value

    query, key, value = seen("rot_q", query), seen("rot_k", key), seen("v", value)
    scores = seen("attn_scores", _scores(module, query, key, mask, options))
    pattern = seen("pattern", _pattern(module, scores, options, spent="attn_scores" not in tap).to(query.dtype))
    z = seen("z", torch.matmul(pattern, _repeat_heads(value, query.shape[1])))
    return z.transpose(1, 2).contiguous(), pattern


def _scores(
    module: nn.Module,
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b k m d"],
    mask: Tensor | None,
    options: dict[str, Any],
    rows: Int[Tensor, " row"] | None = None,
) -> Float[Tensor, "b h _ m"]:
    """What the softmax is taken of, of some rows or all."""
    scaling, length = options.get("scaling"), query.shape[2]
    some = _rows_of(query, length, rows)
    scores = torch.matmul(some, _repeat_heads(key, query.shape[1]).transpose(2, 3))
    scores = _changed(scores, Tensor.mul_, torch.mul, query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap := options.get("softcap"):
        scores = torch.tanh(scores / softcap) * softcap
    if (bias := options.get("position_bias")) is not None:
        scores = scores + _rows_of(bias, length, rows)
    if (added := _additive(mask, module, query, key, options.get("is_causal"), rows)) is not None:
        scores = _changed(scores, Tensor.add_, torch.add, added)
    return scores


def _read(
    module: nn.Module,
    tap: Rows,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    z: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Hand to the tap what a kernel was called with, and the rows that it reads of what no kernel shows; gives z."""
    whole = {"rot_q": query, "rot_k": key, "v": value}
    for name in tap.tap.keys() & whole.keys():
        tap.tap[name](whole[name])
    rows = tap.numbers.to(query.device)
    scores = _scores(module, query, key, mask, options, rows)
    if "attn_scores" in tap.tap:
        tap.tap["attn_scores"](scores)
    if "pattern" in tap.tap:
        sinks = _rows_of(options.get("sinks"), query.shape[2], rows)
        tap.tap["pattern"](_pattern(module, scores, {**options, "sinks": sinks}, spent=False).to(query.dtype))
    return tap.tap["z"](z.transpose(1, 2)).transpose(1, 2) if "z" in tap.tap else z


def _attention(kernel: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        tap = taps() if (taps := _TAPS.get(module)) else None
        reads, changes = (tap, None) if isinstance(tap, Rows) else (None, tap)
        attention_mask = _chosen(attention_mask, options.get("indices"), key)
        if kernel == "eager":  # its formula knows no other mask than the one that it is given
            options["is_causal"] = False
        told = {**options, "kernel": kernel}
        if changes is None and kernel != "eager":
            own = AttentionInterface._global_mapping[kernel]
            found = own(module, query, key, value, attention_mask, **options)
        else:
            found = _tapped(module, changes or {}, query, key, value, attention_mask, told)
        if reads:
            found = (_read(module, reads, query, key, value, found[0], attention_mask, told), *found[1:])
        return found

    return attention


for _kernel in ("eager", "sdpa"):
    AttentionInterface.register(PREFIX + _kernel, _attention(_kernel))
    ALL_MASK_ATTENTION_FUNCTIONS.register(PREFIX + _kernel, ALL_MASK_ATTENTION_FUNCTIONS[_kernel])


def implementations(model: PreTrainedModel) -> dict[int, tuple[Any, str]]:
    """Every config of the model (by identity) with its attention implementation; some towers are plain modules."""
    held = (vars(module).get("config") for module in model.modules())  # `getattr` is slow for what is not there
    configs = {id(config): config for config in held if config is not None}  # the same, at many modules
    return {
        number: (config, kernel)
        for number, config in configs.items()
        if isinstance(config, PretrainedConfig) and (kernel := config._attn_implementation) is not None
    }


@contextlib.contextmanager
def tapped(model: PreTrainedModel, taps: Mapping[nn.Module, Tap | Rows], whose: Whose = everybody_s) -> Iterator[None]:
    """Within the `with`, these attention modules hand their intermediates to these taps, and to no other.

    Afterwards every config names the implementation that it named before, and every module has the tap that it had.

    Raises:
        ModelError: attention is computed by a function of the user's own.
    """
    if not taps:
        yield
        return
    before, outer = implementations(model), {module: _TAPS.get(module) for module in taps}
    own = {key: kernel.removeprefix(PREFIX) for key, (_, kernel) in before.items()}  # ours, where others are tapped
    for kernel in own.values():
        _need_known(kernel)
    try:
        for key, (config, _) in before.items():
            config._attn_implementation_internal = PREFIX + ("eager" if own[key] == "eager" else "sdpa")
        _TAPS.update({module: whose(lambda tap=tap: tap) for module, tap in taps.items()})
        yield
    finally:
        for module, tap in outer.items():
            if tap is None:
                _TAPS.pop(module, None)
            else:
                _TAPS[module] = tap
        for config, kernel in before.values():
            config._attn_implementation_internal = kernel


def _need_known(kernel: str) -> None:
    """Raise unless an attention function computes what transformers' do: only of these the steps are known.

    Raises:
        ModelError: one that somebody registered.
    """
    own = AttentionInterface._global_mapping.get(kernel)
    if kernel == "eager" or (kernel in KERNELS and (own is None or own.__module__.startswith("transformers."))):
        return
    raise ModelError(
        f"attention is computed by a function of your own ({kernel!r}), whose steps cannot be read: patterns, scores, "
        "queries, keys and values of heads are those of transformers' functions. "
        "model.set_attn_implementation('sdpa') or 'eager' first"
    )


@contextlib.contextmanager
def implementation(model: PreTrainedModel, kernel: str) -> Iterator[None]:
    """Within the `with`, all parts of the model use this attention implementation."""
    before = implementations(model)
    try:
        for config, _ in before.values():
            config._attn_implementation_internal = kernel
        yield
    finally:
        for config, own in before.values():
            config._attn_implementation_internal = own
