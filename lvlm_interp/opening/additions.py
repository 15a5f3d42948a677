"""Whether what the sites of blocks record adds up: `resid_pre + attn_out = resid_mid`, and with all else `resid_post`.

That holds of every block whose stream is one: whatever it calls its parts, and whatever it norms, gates or multiplies
before it adds. A block may multiply the stream itself on its way (Gemma 4, Muse Spark); where that is known, it is
taken into account. And the middle is the stream, not something that is computed of it: halved, it goes on halved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lvlm_interp.families.shared.registry import NAMES
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.parts import part, rescale_of
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.opening.rounding import apart

Values = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Written:
    """One block: its prefix, and the names of its sites of what it adds before its middle and behind it."""

    prefix: str
    block: nn.Module
    before: tuple[str, ...]
    behind: tuple[str, ...]

    @property
    def middle(self) -> str:
        return f"{self.prefix}.hook_resid_mid"

    @property
    def sites(self) -> list[str]:
        ends = [f"{self.prefix}.hook_resid_{at}" for at in ("pre", "post")]
        return [*ends, self.middle, *self.before, *self.behind] if self.before else [*ends, *self.behind]


def written_in(vlm: HookedVLM) -> list[Written]:
    """The blocks whose stream is one and is added to as it is."""
    towers = (prefix for prefix in ("blocks.", "vision.blocks.") if f"{prefix}0.hook_resid_pre" in vlm.sites)
    return [found for tower in towers for found in _of_tower(vlm, tower)]


def _of_tower(vlm: HookedVLM, tower: str) -> Iterator[Written]:
    added: dict[str, list[str]] = {}
    for name, site in vlm.sites.items():
        if name.startswith(tower) and site.read == "added":
            added.setdefault(_block_of(tower, name), []).append(name)
    unread = {_block_of(tower, name) for name in vlm.missing if name.startswith(tower) and name.endswith("_out")}
    for prefix, names in added.items():
        if prefix in unread:  # the rest of what is added is no sum
            continue
        middle, block = vlm.sites.get(f"{prefix}.hook_resid_mid"), vlm.sites[f"{prefix}.hook_resid_pre"].module
        first = int(middle is not None and middle.module is not block)
        yield Written(prefix, block, tuple(names[:first]), tuple(names[first:]))


def _block_of(tower: str, name: str) -> str:
    return tower + name[len(tower) :].split(".")[0]


def gaps(vlm: HookedVLM, x: Inputs, found: Values) -> dict[str, float]:
    """By the name of a sum: how far it is from its parts, relative to the size of the stream."""
    blocks = written_in(vlm)
    missed = {name: gap for one in blocks for name, gap in _sums(one, found)}
    middles = [one.middle for one in blocks if one.before]
    if not middles:
        return missed
    halved = vlm.capture(x, [n for one in blocks for n in one.sites], edits=dict.fromkeys(middles, _half))
    edited = {f"{name} of half its middle": gap for one in blocks if one.before for name, gap in _behind(one, halved)}
    return missed | edited


def _half(value: Tensor) -> Tensor:
    return 0.5 * value


def _sums(one: Written, found: Values) -> Iterator[tuple[str, float]]:
    if one.before:
        start = found[f"{one.prefix}.hook_resid_pre"]
        yield one.middle, _gap(one.block, start, [found[name] for name in one.before], found[one.middle])
    yield from _behind(one, found)


def _behind(one: Written, found: Values) -> Iterator[tuple[str, float]]:
    start = found[one.middle if one.before else f"{one.prefix}.hook_resid_pre"]
    end, scale = found[name := f"{one.prefix}.hook_resid_post"], rescale_of(one.block)
    yield name, _gap(one.block, start, [found[n] for n in one.behind], end, scale)


def _gap(block: nn.Module, start: Tensor, added: list[Tensor], end: Tensor, scale: float = 1.0) -> float:
    shape = end.shape
    total = start.reshape(shape)
    if part(block, NAMES.carried):
        total = total * _carried(total, end - sum(a.reshape(shape) for a in added))
    for one in added:
        total = total + one.reshape(shape)
    size = max(1.0, *(float(v.abs().max()) for v in (start, end)))
    return apart(total * scale if scale != 1.0 else total, end) / size


def _carried(start: Tensor, kept: Tensor) -> Tensor:
    """The factor of each number of the width that comes nearest to what was kept of the stream at all positions."""
    axes = tuple(range(start.ndim - 1))
    start, kept = start.double(), kept.double()
    return ((start * kept).sum(axes) / (start * start).sum(axes).clamp(min=torch.finfo(torch.float32).tiny)).float()
