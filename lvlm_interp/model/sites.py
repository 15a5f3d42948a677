"""Names of the places inside a model, and the modules they stand for. Pure: nothing is hooked here.

The names are TransformerLens's:

| site | what | shape |
|---|---|---|
| `blocks.{i}.hook_resid_pre`, `hook_resid_mid`, `hook_resid_post` | residual stream | `[batch, position, width]` |
| `blocks.{i}.hook_attn_out`, `hook_mlp_out` | what is added to it | `[batch, position, width]` |
| `blocks.{i}.attn.hook_q`, `hook_k`, `hook_v`, `hook_z` | per head; q and k before the rotary embedding; z as it is \
projected, after a gate where there is one | `[batch, position, head, head width]` |
| `blocks.{i}.attn.hook_rot_q`, `hook_rot_k` | q and k as they meet | `[batch, position, head, head width]` |
| `blocks.{i}.attn.hook_attn_scores`, `hook_pattern` | before and after the softmax | `[batch, head, row, key]` |
| `ln_final.hook_normalized` | what the unembedding reads | `[batch, position, width]` |

The vision tower has the same names under `vision.`; the projector's output is `projector.hook_out`. Layers that read
the image by cross-attention (Mllama) have `blocks.{i}.cross_attn.…`. Where a tower works on all patches of all images
in one row, its values have no batch axis, as in transformers.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lvlm_interp.errors import ModelError, SiteError

# What the parts of a transformer block are called in transformers' code, most telling name first.
ATTENTION = ("self_attn", "attention", "attn", "self_attention")
CROSS_ATTENTION = ("cross_attn",)
MLP = ("mlp", "feed_forward", "feedforward", "ffn", "block_sparse_moe", "moe", "fc2")
BEFORE_MLP = (
    "pre_feedforward_layernorm",
    "pre_mlp_layernorm",
    "layer_norm2",
    "norm2",
    "ln_2",
    "layernorm_after",
    "final_layer_norm",
    "post_attention_layernorm",
    "ffn_norm",
)
# Between attention and residual, where there is one; a norm that stands before the MLP is not meant.
AFTER_ATTENTION = (
    "layer_scale1",
    "post_self_attn_layernorm",
    "post_attention_layernorm",
    "attn_sconv",
    "post_attention_convolution",
)
AFTER_MLP = (
    "layer_scale2",
    "post_mlp_layernorm",
    "post_feedforward_layernorm",
    "mlp_sconv",
    "post_mlp_convolution",
)
OUTPUT_PROJECTION = (
    "o_proj",
    "out_proj",
    "proj",
    "projection_layer",
    "projection",
    "wo",
    "dense",
    "attn_out",
    "c_proj",
)
# Between the heads and their output projection, where there is one: heads are then read as the projection reads them.
GATE = ("g_proj", "gate_proj")
QKV = ("qkv", "qkv_proj", "query_key_value")
FINAL_NORM = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "layer_norm", "embedding_norm")
PROJECTOR = (
    "multi_modal_projector",
    "connector",
    "language_projection",
    "aligner",
    "mm_projector",
    "modality_projection",
    "vision_projection",
    "image_projection",
    "vision_embed_tokens",
    "embed_vision",
    "projector",
    "merger",
)


@dataclass(frozen=True)
class Site:
    """One place: the module it belongs to, what of it is read, and into how many heads it splits.

    `read` is the module's input, its output, an intermediate (`part`) of its attention function, or what its output
    projection reads; `span` is the part of the last axis that is meant, where one module computes q, k and v at once.
    """

    name: str
    module: nn.Module
    read: Literal["input", "output", "attention", "projected"]
    part: str = ""
    heads: int | None = None
    span: tuple[int, int] | None = None


def part(module: nn.Module, names: Iterable[str]) -> nn.Module | None:
    """The first child of these names that the module has."""
    return next((child for name in names if isinstance(child := getattr(module, name, None), nn.Module)), None)


def find_blocks(tower: nn.Module) -> nn.ModuleList:
    """The transformer blocks of a tower: its longest list of modules with attention in them.

    Raises:
        ModelError: there is no such list.
    """
    lists = [m for m in tower.modules() if isinstance(m, nn.ModuleList) and any(part(b, ATTENTION) for b in m)]
    if not lists:
        raise ModelError(f"found no transformer blocks in {type(tower).__name__}")
    return max(lists, key=len)


def attention_of(block: nn.Module, names: Iterable[str] = ATTENTION) -> nn.Module | None:
    """The module of a block that calls the attention function; None where the block has no attention of these names.

    Some blocks wrap it in another module.
    """
    outer = part(block, names)
    if outer is None:
        return None
    return next((m for m in outer.modules() if uses_interface(m)), outer)


def uses_interface(attention: nn.Module) -> bool:
    """Whether a module computes attention through transformers' `AttentionInterface`, where it can be seen."""
    return "ALL_ATTENTION_FUNCTIONS" in names_in_forward(attention)


def names_in_forward(module: nn.Module) -> set[str]:
    """The names, and the strings, that the code of a module's `forward` speaks of."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return {*code.co_names, *(c for c in code.co_consts if isinstance(c, str))} if code else set()


def owner_of(model: nn.Module, child: nn.Module) -> nn.Module:
    """The innermost module that a module is a direct child of."""
    return [m for m in model.modules() if any(c is child for c in m.children())][-1]


def block_sites(prefix: str, block: nn.Module) -> Iterator[Site]:
    """The sites of one transformer block."""
    mlp, before_mlp = part(block, MLP), part(block, BEFORE_MLP)
    yield Site(f"{prefix}.hook_resid_pre", block, "input")
    if before_mlp is not None:
        yield Site(f"{prefix}.hook_resid_mid", before_mlp, "input")
    yield Site(f"{prefix}.hook_resid_post", block, "output")
    outer = part(block, (*ATTENTION, *CROSS_ATTENTION))
    after = [m for name in AFTER_ATTENTION if (m := part(block, [name])) is not None and m is not before_mlp]
    if outer is not None:
        yield Site(f"{prefix}.hook_attn_out", after[0] if after else outer, "output")
    if mlp is not None:
        yield Site(f"{prefix}.hook_mlp_out", part(block, AFTER_MLP) or mlp, "output")
    for name, kinds in (("attn", ATTENTION), ("cross_attn", CROSS_ATTENTION)):
        if (attention := attention_of(block, kinds)) is not None:
            yield from _attention_sites(f"{prefix}.{name}", attention)


def _attention_sites(prefix: str, attention: nn.Module) -> Iterator[Site]:
    width = head_width(attention)
    for letter, (projection, span) in _projections(attention).items():
        if width:
            yield Site(f"{prefix}.hook_{letter}", projection, "output", heads=(span[1] - span[0]) // width, span=span)
    for name in ("rot_q", "rot_k", "z", "attn_scores", "pattern"):
        inside = Site(f"{prefix}.hook_{name}", attention, "attention", part=name)
        yield _gated(inside, width) if name == "z" and part(attention, GATE) is not None else inside


def _gated(z: Site, width: int | None) -> Site:
    """Where a gate stands behind the heads: what it lets through."""
    out, inner = part(z.module, OUTPUT_PROJECTION), getattr(z.module, "v_head_dim", width)
    if not inner or not isinstance(out, nn.Linear):
        return z
    return Site(z.name, z.module, "projected", heads=out.in_features // inner)


def head_width(attention: nn.Module) -> int | None:
    """How wide one head is."""
    if width := getattr(attention, "head_dim", None) or getattr(attention, "attention_head_size", None):
        return int(width)
    wide, heads = (
        next((int(v) for n in names if isinstance(v := getattr(attention, n, None), int)), None)
        for names in (("embed_dim", "hidden_size", "dim"), ("num_heads", "num_attention_heads"))
    )
    return wide // heads if wide and heads else None


def _projections(attention: nn.Module) -> dict[str, tuple[nn.Module, tuple[int, int]]]:
    """What computes q, k and v, and which part of its output each is."""
    own = {letter: part(attention, (f"{letter}_proj", f"{letter}_projection")) for letter in "qkv"}
    found: dict[str, tuple[nn.Module, tuple[int, int]]] = {}
    found = {k: (m, (0, inner.out_features)) for k, m in own.items() if m and (inner := _linear(m))}
    fused = part(attention, QKV)
    if not found and isinstance(fused, nn.Linear) and fused.out_features % 3 == 0:
        third = fused.out_features // 3
        found = {letter: (fused, (n * third, (n + 1) * third)) for n, letter in enumerate("qkv")}
    return found


def _linear(module: nn.Module) -> nn.Linear | None:
    """The linear map that a module is, or that it wraps (Gemma 4 clips what goes in and comes out)."""
    found = getattr(module, "linear", module)
    return found if isinstance(found, nn.Linear) else None


def find_sites(decoder: nn.Module, vision: nn.Module | None, projector: nn.Module | None) -> dict[str, Site]:
    """Every site of a model, by name, also those that cannot be read; see `missing_sites`."""
    sites = [s for i, block in enumerate(find_blocks(decoder)) for s in block_sites(f"blocks.{i}", block)]
    norm = part(decoder, FINAL_NORM)
    if norm is not None:
        sites.append(Site("ln_final.hook_normalized", norm, "output"))
    if vision is not None and _attends(vision):
        sites += [s for i, b in enumerate(find_blocks(vision)) for s in block_sites(f"vision.blocks.{i}", b)]
    if projector is not None:
        sites.append(Site("projector.hook_out", projector, "output"))
    return {site.name: site for site in sites}


def _attends(tower: nn.Module) -> bool:
    """Whether there is attention in a tower; Inkling's folds patches into channels, layer by layer, and has none."""
    return any("Attention" in type(module).__name__ for module in tower.modules())


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
