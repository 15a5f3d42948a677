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
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lvlm_interp.errors import ModelError, SiteError

# What the parts of a transformer block are called in transformers' code, most telling name first.
ATTENTION = ("self_attn", "attention", "attn", "self_attention")
CROSS_ATTENTION = ("cross_attn",)
# What carries a state from position to position, in the place of attention or beside it.
RECURRENT = ("linear_attn", "conv", "mamba", "mixer", "ple")
# A name that does not tell which of these it is; what carries a state is handed the cache that keeps it.
MIXER, CACHES = "mixer", {"cache_params", "past_key_values"}
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
# Of several residual streams: what mixes them for the MLP, where they stand side by side in the width and
# where they have an axis of their own; what mixes the latter for the final norm.
MIXED_FOR_MLP, MIXED_APART, MIXED_AT_LAST = ("mlp_hyper_connection",), ("ffn_hc",), ("hc_head",)
# The axis of streams that have one of their own, by the part of a block that tells it.
STREAMS = {"ffn_hc": -2, "altup": 0}
# Between attention and residual, where there is one; a norm that stands before the MLP is not meant.
AFTER_ATTENTION = (
    "layer_scale1",
    "post_self_attn_layernorm",
    "post_attention_layernorm",
    "post_operator_norm",
    "post_norm1",
    "attn_sconv",
    "post_attention_convolution",
)
AFTER_MLP = (
    "layer_scale2",
    "post_mlp_layernorm",
    "post_feedforward_layernorm",
    "post_ffn_norm",
    "post_norm2",
    "mlp_sconv",
    "post_mlp_convolution",
)
SCALES = {"hook_attn_out": "lambda_1", "hook_mlp_out": "lambda_2"}  # parameters of a block that stand there (InternVL)
# The only norms of a block where they stand behind attention and MLP (Olmo 2, Exaone 4); and those that some blocks use
# there as well (Chameleon with `swin_norm`, Molmo 2 with `norm_after`), named as if they stood before.
AFTER_BOTH = ("post_attention_layernorm", "post_feedforward_layernorm")
BEFORE_BOTH = ("input_layernorm", "post_attention_layernorm")
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
# What the code of attention speaks of where a gate stands between the heads and their output projection.
GATING = {"sigmoid", "g_proj", "gate_proj"}
QKV = ("qkv", "qkv_proj", "query_key_value")
HEAD_BY_HEAD = ("query_key_value",)  # q, k and v of the first head, then of the second (Persimmon, GPT-NeoX)
FINAL_NORM = (
    "norm",
    "final_layernorm",
    "final_layer_norm",
    "ln_f",
    "layer_norm",
    "embedding_norm",
    "norm_f",
    "hyper_connection_mixer",
)
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
    "perceiver_resampler",
    "projector",
    "merger",
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
    read: Literal["input", "output", "attention", "projected"]
    part: str = ""
    heads: int | None = None
    span: tuple[int, int] | None = None
    inner: tuple[int, int] | None = None
    scale: tuple[nn.Module, str] | None = None
    streams: int | None = None

    def scaled(self, value: Tensor) -> Tensor:
        """A value of the module as it goes on from there."""
        return value if self.scale is None else value * getattr(*self.scale)


def part(module: nn.Module, names: Iterable[str]) -> nn.Module | None:
    """The first child of these names that the module has; a mixer goes by the name of what it is."""
    mixer = getattr(module, MIXER, None)
    known = {MIXER: None, _told(mixer): mixer} if isinstance(mixer, nn.Module) else {}
    found = (known[name] if name in known else getattr(module, name, None) for name in names)
    return next((child for child in found if isinstance(child, nn.Module)), None)


def _told(mixer: nn.Module) -> str:
    """A name that tells what a mixer is: attention, what carries a state, or an MLP (NemotronH)."""
    if any(uses_interface(m) for m in mixer.modules()):
        return ATTENTION[0]
    return MIXER if CACHES & inspect.signature(mixer.forward).parameters.keys() else MLP[0]


def find_blocks(tower: nn.Module, other: nn.Module | None = None) -> list[nn.Module]:
    """The transformer blocks of a tower, as they run: its longest list of modules with attention in them.

    `other` is a tower that may stand inside of it, and is not meant.

    Raises:
        ModelError: there is no such list.
    """
    apart = set() if other is None else set(other.modules())
    lists = [m for m in tower.modules() if isinstance(m, nn.ModuleList) and m not in apart]
    lists = [m for m in lists if any(part(b, ATTENTION) for b in m)]
    if not lists:
        raise ModelError(f"found no transformer blocks in {type(tower).__name__}")
    blocks = max(lists, key=len)
    return _interleaved(blocks, owner_of(tower, blocks))


def _interleaved(blocks: nn.ModuleList, owner: nn.Module) -> list[nn.Module]:
    """Blocks with what their owner keeps beside them in a list of its own: layers that have cross-attention only, each
    of which runs before an equal share of the blocks (Idefics)."""
    beside = [m for m in owner.children() if isinstance(m, nn.ModuleList) and m is not blocks and len(m)]
    reading = next((m for m in beside if all(part(b, CROSS_ATTENTION) and not part(b, ATTENTION) for b in m)), None)
    if reading is None or len(blocks) % len(reading):
        return list(blocks)
    share = len(blocks) // len(reading)
    return [b for n, layer in enumerate(reading) for b in (layer, *blocks[n * share : (n + 1) * share])]


def attention_of(block: nn.Module, names: Iterable[str] = ATTENTION) -> nn.Module | None:
    """The module of a block that calls the attention function; None where the block has no attention of these names.

    Some blocks wrap it in another module.
    """
    outer = part(block, names)
    if outer is None:
        return None
    return next((m for m in outer.modules() if uses_interface(m)), outer)


def recurrent_of(block: nn.Module) -> dict[str, nn.Module]:
    """What hands a state from position to position in a block, by name."""
    found = ((name, part(block, [name])) for name in RECURRENT)
    return {name: m for name, m in found if m is not None and not uses_interface(m)}


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


def _norm(block: nn.Module, names: Iterable[str], other: nn.Module | None = None) -> nn.Module | None:
    """What stands under one of these names, if it does anything and is not the `other`."""
    found = (part(block, [name]) for name in names)
    return next((m for m in found if m is not None and m is not other and not isinstance(m, nn.Identity)), None)


def norms_of_outputs(block: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The two norms of a block that norms what its attention and its MLP give; None if it norms what they read."""
    norms = {name: child for name, child in block.named_children() if "Norm" in type(child).__name__}
    moved = getattr(block, "norm_after", "Swin" in type(block).__name__)
    first, second = BEFORE_BOTH if moved else AFTER_BOTH
    return (norms[first], norms[second]) if norms.keys() == {first, second} else None


def axis_of_streams(block: nn.Module) -> int | None:
    """The axis of a block's residual streams, where they have one of their own."""
    return next((axis for name, axis in STREAMS.items() if part(block, [name])), None)


def block_sites(prefix: str, block: nn.Module) -> Iterator[Site]:
    """The sites of one transformer block."""
    of_outputs, mlp = norms_of_outputs(block), part(block, MLP)
    alone = mlp is not None and mlp is getattr(block, MIXER, None)  # then nothing was added before it
    before_mlp = block if alone else None if of_outputs else part(block, BEFORE_MLP)
    streams = axis_of_streams(block)
    middle = (part(block, MIXED_FOR_MLP) or before_mlp) if streams is None else part(block, MIXED_APART)
    yield Site(f"{prefix}.hook_resid_pre", block, "input", streams=streams)
    if middle is not None:
        yield Site(f"{prefix}.hook_resid_mid", middle, "input", streams=streams)
    yield Site(f"{prefix}.hook_resid_post", block, "output", streams=streams)
    outer = part(block, (*ATTENTION, *CROSS_ATTENTION))
    after_attention, after_mlp = of_outputs or (_norm(block, AFTER_ATTENTION, before_mlp), _norm(block, AFTER_MLP))
    if outer is not None:
        yield _added(f"{prefix}.hook_attn_out", after_attention or outer, block)
    for name, recurrent in recurrent_of(block).items():
        added = after_attention if after_attention and outer is None else recurrent
        yield Site(f"{prefix}.{name}.hook_out", added, "output")
    if mlp is not None:
        yield _added(f"{prefix}.hook_mlp_out", after_mlp or mlp, block)
    for name, kinds in (("attn", ATTENTION), ("cross_attn", CROSS_ATTENTION)):
        if (attention := attention_of(block, kinds)) is not None:
            yield from _attention_sites(f"{prefix}.{name}", attention)


def _added(name: str, module: nn.Module, block: nn.Module) -> Site:
    """What a module gives, times the block's own scale if it has one: what is added to the residual stream."""
    scale = SCALES[name.rpartition(".")[2]]
    scaled = isinstance(getattr(block, scale, None), nn.Parameter)
    return Site(name, module, "output", scale=(block, scale) if scaled else None)


def _attention_sites(prefix: str, attention: nn.Module) -> Iterator[Site]:
    width, gated = head_width(attention) or 0, gated_output(attention)
    for letter, (projection, span) in _projections(attention).items() if width else ():
        size, at, share = span[1] - span[0], 0, width
        if part(attention, HEAD_BY_HEAD) is projection:
            size, at, share, span = 3 * size, width * "qkv".index(letter), 3 * width, (0, 3 * size)
        elif gated and letter == "q" and size == 2 * gated.in_features:
            share = 2 * width  # behind the query of each head stands its gate
        yield Site(
            f"{prefix}.hook_{letter}", projection, "output", heads=size // share, span=span, inner=(at, at + width)
        )
    inner = getattr(attention, "v_head_dim", width)
    for name in ("rot_q", "rot_k", "z", "attn_scores", "pattern"):
        if name == "z" and gated and inner:
            yield Site(f"{prefix}.hook_z", gated, "input", heads=gated.in_features // inner)
        else:
            yield Site(f"{prefix}.hook_{name}", attention, "attention", part=name)


def gated_output(attention: nn.Module) -> nn.Linear | None:
    """The output projection, where a gate stands before it: z is then what it reads, not what the heads read."""
    out = part(attention, OUTPUT_PROJECTION)
    return out if isinstance(out, nn.Linear) and GATING & names_in_forward(attention) else None


def reads_z(site: Site) -> nn.Module | None:
    """The output projection that the z of a site goes into."""
    return site.module if site.read == "input" else part(site.module, OUTPUT_PROJECTION)


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
    sites = [s for i, block in enumerate(find_blocks(decoder, vision)) for s in block_sites(f"blocks.{i}", block)]
    norm = part(decoder, FINAL_NORM)
    if norm is not None:
        sites.append(Site("ln_final.hook_normalized", norm, "output"))
    if vision is not None and _attends(vision):
        sites += [s for i, b in enumerate(find_blocks(vision)) for s in block_sites(f"vision.blocks.{i}", b)]
    if projector is not None:
        sites.append(Site("projector.hook_out", projector, "output"))
    return {site.name: site for site in sites}


def _attends(tower: nn.Module) -> bool:
    """Whether there is attention in a tower, between rows of positions.

    Inkling's folds patches into channels, layer by layer, and has none. MobileNet V5 and FastViT (Gemma 3n, FastVLM)
    have some among the convolutions of their stages: maps of channels that get smaller, and no residual stream.
    """
    stages = [m for m in tower.modules() if isinstance(m, nn.Sequential)]
    convolved = [m for m in stages if any(isinstance(inner, nn.Conv2d) for inner in m.modules())]
    among = {module for stage in convolved for module in stage.modules()}
    return any("Attention" in type(module).__name__ for module in tower.modules() if module not in among)


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
