"""Names of the places inside a model, and the modules they stand for. Pure: nothing is hooked here.

The names are TransformerLens's:

| site | what | shape |
|---|---|---|
| `blocks.{i}.hook_resid_pre`, `hook_resid_mid`, `hook_resid_post` | residual stream | `[batch, position, width]` |
| `blocks.{i}.hook_attn_out`, `hook_mlp_out` | what is added to it | `[batch, position, width]` |
| `blocks.{i}.attn.hook_q`, `hook_k`, `hook_v`, `hook_z` | per head; q and k before the rotary embedding; v as it is \
read; z as it is projected, after a gate where there is one (before a norm, in Kosmos-2) | \
`[batch, position, head, head width]` |
| `blocks.{i}.attn.hook_rot_q`, `hook_rot_k` | q and k as they meet | `[batch, position, head, head width]` |
| `blocks.{i}.attn.hook_attn_scores`, `hook_pattern` | before and after the softmax | `[batch, head, row, key]` |
| `blocks.{i}.linear_attn.hook_out`, `conv.hook_out`, `mixer.hook_out`, `ple.hook_out` | what is added by what carries \
a state, in the place of attention or beside it | \
`[batch, position, width]` |
| `ln_final.hook_normalized` | what the unembedding reads | `[batch, position, width]` |

The vision tower has the same names under `vision.`; the projector's output is `projector.hook_out`. Layers that read
the image by cross-attention (Mllama, Idefics) are blocks too, with `blocks.{i}.cross_attn.…`. Where a tower works on
all patches of all images in one row, its values have no batch axis, as in transformers. Where a model has several
residual streams (hyper-connections: Qwen4, GLM-5 Next; AltUp: Gemma 3n), they stand side by side in the width, and each
takes a share of its own of what attention and MLP put out. Gemma 3n's have no `hook_resid_mid`: its attention and MLP
work on one of them, and what they did to it is added to all of them behind the MLP.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lvlm_interp.errors import SiteError
from lvlm_interp.families.shared.registry import NAMES
from lvlm_interp.model.parts import (
    MIXER,
    attends,
    attention_of,
    axis_of_streams,
    find_blocks,
    gated_output,
    head_width,
    norm_of,
    norms_of_outputs,
    output_of,
    part,
    projections,
    recurrent_of,
    uses_interface,
)


@dataclass(frozen=True)
class Site:
    """One place: the module it belongs to, what of it is read, and into how many heads it splits.

    `read` is the module's input, its output, or an intermediate (`part`) of its attention function; `span` is the part
    of the last axis that is meant, where one module computes q, k and v at once; `inner` is the part of each head's
    share, where they stand head by head, or a gate stands behind. `scale` names a parameter of another module that the
    value is multiplied by on its way; `streams` is the axis of residual streams that have one of their own.
    """

    name: str
    module: nn.Module
    read: Literal["input", "output", "attention"]
    part: str = ""
    heads: int | None = None
    span: tuple[int, int] | None = None
    inner: tuple[int, int] | None = None
    scale: tuple[nn.Module, str] | None = None
    streams: int | None = None

    def scaled(self, value: Tensor) -> Tensor:
        """A value of the module as it goes on from there."""
        return value if self.scale is None else value * getattr(*self.scale)


def block_sites(prefix: str, block: nn.Module) -> Iterator[Site]:
    """The sites of one transformer block."""
    of_outputs, mlp = norms_of_outputs(block), part(block, NAMES.mlp)
    alone = mlp is not None and mlp is getattr(block, MIXER, None)  # then nothing was added before it
    before_mlp = block if alone else None if of_outputs else part(block, NAMES.before_mlp)
    streams = axis_of_streams(block)
    middle = (part(block, NAMES.mixed_for_mlp) or before_mlp) if streams is None else part(block, NAMES.mixed_apart)
    yield Site(f"{prefix}.hook_resid_pre", block, "input", streams=streams)
    if middle is not None:
        yield Site(f"{prefix}.hook_resid_mid", middle, "input", streams=streams)
    yield Site(f"{prefix}.hook_resid_post", block, "output", streams=streams)
    outer = part(block, (*NAMES.attention, *NAMES.cross_attention))
    after_attention, after_mlp = of_outputs or (
        norm_of(block, NAMES.after_attention, before_mlp),
        norm_of(block, NAMES.after_mlp),
    )
    if outer is not None:
        yield _added(f"{prefix}.hook_attn_out", after_attention or outer, block)
    for name, recurrent in recurrent_of(block).items():
        added = after_attention if after_attention and outer is None else recurrent
        yield Site(f"{prefix}.{name}.hook_out", added, "output")
    if mlp is not None:
        yield _added(f"{prefix}.hook_mlp_out", after_mlp or mlp, block)
    for name, kinds in (("attn", NAMES.attention), ("cross_attn", NAMES.cross_attention)):
        if (attention := attention_of(block, kinds)) is not None:
            yield from _attention_sites(f"{prefix}.{name}", attention)


def _added(name: str, module: nn.Module, block: nn.Module) -> Site:
    """What a module gives, times the block's own scale if it has one: what is added to the residual stream."""
    here = [scale for scale, site in NAMES.added_scales.items() if site == name.rpartition(".")[2]]
    found = next((scale for scale in here if isinstance(getattr(block, scale, None), nn.Parameter)), None)
    return Site(name, module, "output", scale=(block, found) if found else None)


def _attention_sites(prefix: str, attention: nn.Module) -> Iterator[Site]:
    projected = projections(attention)
    # What is read may be normed, made of a latent state (DeepSeek), or another layer's (Gemma 4).
    if part(attention, NAMES.value_norms) or ("v" not in projected and uses_interface(attention)):
        projected.pop("v", None)
        yield Site(f"{prefix}.hook_v", attention, "attention", part="v")
    for letter, found in projected.items():
        yield Site(
            f"{prefix}.hook_{letter}", found.module, "output", heads=found.heads, span=found.span, inner=found.inner
        )
    gated, width = gated_output(attention), getattr(attention, "v_head_dim", None) or head_width(attention)
    for name in ("rot_q", "rot_k", "z", "attn_scores", "pattern"):
        if name == "z" and gated and width:
            yield Site(f"{prefix}.hook_z", gated, "input", heads=gated.in_features // width)
        else:
            yield Site(f"{prefix}.hook_{name}", attention, "attention", part=name)


def reads_z(site: Site) -> nn.Module | None:
    """The output projection that the z of a site goes into, behind a norm where there is one."""
    return site.module if site.read == "input" else output_of(site.module)


def find_sites(decoder: nn.Module, vision: nn.Module | None, projector: nn.Module | None) -> dict[str, Site]:
    """Every site of a model, by name, also those that cannot be read; see `missing_sites`."""
    sites = [s for i, block in enumerate(find_blocks(decoder, vision)) for s in block_sites(f"blocks.{i}", block)]
    norm = part(decoder, NAMES.final_norm)
    if norm is not None:
        sites.append(Site("ln_final.hook_normalized", norm, "output"))
    if vision is not None and attends(vision):
        sites += [s for i, b in enumerate(find_blocks(vision)) for s in block_sites(f"vision.blocks.{i}", b)]
    if projector is not None:
        sites.append(Site("projector.hook_out", projector, "output"))
    return {site.name: site for site in sites}


def missing_sites(sites: dict[str, Site]) -> dict[str, str]:
    """The sites that cannot be read, with the reason."""
    reason = "{} computes attention by itself, not through transformers' AttentionInterface"
    return {
        site.name: reason.format(type(site.module).__name__)
        for site in sites.values()
        if site.read == "attention" and not uses_interface(site.module)
    }


def match(
    sites: dict[str, Site], patterns: str | Iterable[str], missing: Mapping[str, str] | None = None
) -> list[Site]:
    """The sites that the names or globs mean, in the model's order.

    Raises:
        SiteError: a pattern matches nothing; the message names the nearest sites.
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    matched: set[str] = set()
    for pattern in wanted:
        found = [pattern] if pattern in sites else fnmatch.filter(sites, pattern)
        if not found and (lost := fnmatch.filter(missing or {}, pattern)):
            raise SiteError(f"{pattern!r} cannot be read in this model: {(missing or {})[lost[0]]}")
        if not found:
            near = _nearest(pattern, sites)
            raise SiteError(f"no site matches {pattern!r}; did you mean {near}? vlm.sites lists all")
        matched.update(found)
    if not wanted:
        raise SiteError("no site was asked for; vlm.sites lists all")
    return [site for name, site in sites.items() if name in matched]


def _nearest(pattern: str, sites: Iterable[str]) -> str:
    """The names that hold a pattern, and the glob that means all of them; failing that, the names most like it."""
    names = list(sites)
    holding = [name for name in names if pattern in name]
    near = holding or difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names
    return f"{near[:3]}" + (f", or '*{pattern}*' for all {len(holding)}" if len(holding) > 1 else "")
