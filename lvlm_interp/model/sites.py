"""Names of the places inside a model, and the modules they stand for. Pure: nothing is hooked here.

The names are TransformerLens's:

| site | what | shape |
|---|---|---|
| `blocks.{i}.hook_resid_pre`, `hook_resid_mid`, `hook_resid_post` | residual stream | `[batch, position, width]` |
| `blocks.{i}.hook_attn_out`, `hook_mlp_out` | what is added to it | `[batch, position, width]` |
| `blocks.{i}.attn.hook_q`, `hook_k`, `hook_v`, `hook_z` | per head; q and k before the rotary embedding | \
`[batch, position, head, head width]` |
| `blocks.{i}.attn.hook_rot_q`, `hook_rot_k` | q and k as they meet | `[batch, position, head, head width]` |
| `blocks.{i}.attn.hook_attn_scores`, `hook_pattern` | before and after the softmax | `[batch, head, row, key]` |
| `ln_final.hook_normalized` | what the unembedding reads | `[batch, position, width]` |

The vision tower has the same names under `vision.`; the projector's output is `projector.hook_out`.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lvlm_interp.errors import ModelError, SiteError

# What the parts of a transformer block are called in transformers' code, most telling name first.
ATTENTION = ("self_attn", "attention", "attn")
MLP = ("mlp", "feed_forward")
BEFORE_MLP = ("pre_feedforward_layernorm", "layer_norm2", "norm2", "post_attention_layernorm")
AFTER_ATTENTION = ("layer_scale1", "post_attention_layernorm")  # between attention and residual, where there is one
AFTER_MLP = ("layer_scale2", "post_feedforward_layernorm")
OUTPUT_PROJECTION = ("o_proj", "out_proj")


@dataclass(frozen=True)
class Site:
    """One place: the module it belongs to, what of it is read, and into how many heads it splits.

    `read` is the module's input, its output, or an intermediate (`part`) of its attention function.
    """

    name: str
    module: nn.Module
    read: Literal["input", "output", "attention"]
    part: str = ""
    heads: int | None = None


def part(module: nn.Module, names: Iterable[str]) -> nn.Module | None:
    """The first child of these names that the module has."""
    return next((child for name in names if isinstance(child := getattr(module, name, None), nn.Module)), None)


def find_blocks(tower: nn.Module) -> nn.ModuleList:
    """The transformer blocks of a tower: its longest list of modules with attention in them.

    Raises:
        ModelError: there is no such list.
    """
    lists = [m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) and part(m[0], ATTENTION)]
    if not lists:
        raise ModelError(f"found no transformer blocks in {type(tower).__name__}")
    return max(lists, key=len)


def attention_of(block: nn.Module) -> nn.Module:
    found = part(block, ATTENTION)
    if found is None:
        raise ModelError(f"found no attention in {type(block).__name__}; looked for {ATTENTION}")
    return found


def block_sites(prefix: str, block: nn.Module) -> Iterator[Site]:
    """The sites of one transformer block."""
    attention, mlp, before_mlp = attention_of(block), part(block, MLP), part(block, BEFORE_MLP)
    yield Site(f"{prefix}.hook_resid_pre", block, "input")
    if before_mlp is not None:
        yield Site(f"{prefix}.hook_resid_mid", before_mlp, "input")
    yield Site(f"{prefix}.hook_resid_post", block, "output")
    post_norms = before_mlp is not getattr(block, "post_attention_layernorm", None)
    yield Site(f"{prefix}.hook_attn_out", (part(block, AFTER_ATTENTION) if post_norms else None) or attention, "output")
    if mlp is not None:
        yield Site(f"{prefix}.hook_mlp_out", part(block, AFTER_MLP) or mlp, "output")
    yield from _attention_sites(f"{prefix}.attn", attention)


def _attention_sites(prefix: str, attention: nn.Module) -> Iterator[Site]:
    width = getattr(attention, "head_dim", None)
    for letter in "qkv":
        projection = getattr(attention, f"{letter}_proj", None)
        if isinstance(projection, nn.Module) and width:
            yield Site(f"{prefix}.hook_{letter}", projection, "output", heads=projection.out_features // width)
    for name in ("rot_q", "rot_k", "z", "attn_scores", "pattern"):
        yield Site(f"{prefix}.hook_{name}", attention, "attention", part=name)


def find_sites(decoder: nn.Module, vision: nn.Module | None, projector: nn.Module | None) -> dict[str, Site]:
    """Every site of a model, by name."""
    sites = [s for i, block in enumerate(find_blocks(decoder)) for s in block_sites(f"blocks.{i}", block)]
    norm = getattr(decoder, "norm", None)
    if isinstance(norm, nn.Module):
        sites.append(Site("ln_final.hook_normalized", norm, "output"))
    if vision is not None:
        sites += [s for i, b in enumerate(find_blocks(vision)) for s in block_sites(f"vision.blocks.{i}", b)]
    if projector is not None:
        sites.append(Site("projector.hook_out", projector, "output"))
    return {site.name: site for site in sites}


def match(sites: dict[str, Site], patterns: str | Iterable[str]) -> list[Site]:
    """The sites that the names or globs mean, in the model's order.

    Raises:
        SiteError: a pattern matches nothing; the message names the nearest sites.
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    matched: set[str] = set()
    for pattern in wanted:
        found = [pattern] if pattern in sites else fnmatch.filter(sites, pattern)
        if not found:
            near = difflib.get_close_matches(pattern, sites, n=3, cutoff=0.4)
            raise SiteError(f"no site matches {pattern!r}; did you mean {near or list(sites)[:3]}? vlm.sites lists all")
        matched.update(found)
    if not wanted:
        raise SiteError("no site was asked for; vlm.sites lists all")
    return [site for name, site in sites.items() if name in matched]
