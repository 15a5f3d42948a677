"""Names of the places inside a model, and the modules they stand for. Pure: nothing is hooked here.

The names are TransformerLens's:

| site | what | shape |
|---|---|---|
| `hook_embed` | what enters the first block: embeddings, with the image's features in their places (where a bridge of \
TransformerLens has the placeholder's) | \
`[batch, position, width]` |
| `blocks.{i}.hook_resid_pre`, `hook_resid_mid`, `hook_resid_post` | residual stream; the middle is what enters the \
block and what attention added to it | `[batch, position, width]` |
| `blocks.{i}.hook_attn_out`, `hook_mlp_out` | what is added to it: behind norms, multipliers and gates | \
`[batch, position, width]` |
| `blocks.{i}.ln1.hook_scale`, `ln2.hook_scale`, `ln_final.hook_scale` | what the norm of attention, of the MLP, and \
the last one divide by | `[batch, position, 1]` |
| `blocks.{i}.ln1.hook_normalized`, `ln2.hook_normalized`, `ln_final.hook_normalized` | what was divided, before the \
norm's weight | `[batch, position, width]` |
| `blocks.{i}.mlp.hook_pre`, `hook_pre_linear`, `hook_post` | what goes into the activation, what is multiplied by \
what comes out (where there is a gate), and the product; not of experts | `[batch, position, inner]` |
| `blocks.{i}.attn.hook_q`, `hook_k`, `hook_v`, `hook_z` | per head; q and k before the rotary embedding; v as it is \
read; z as it is projected, after a gate where there is one (before a norm, in Kosmos-2) | \
`[batch, position, head, head width]` |
| `blocks.{i}.attn.hook_rot_q`, `hook_rot_k` | q and k as they meet; in a padded row of a batch both are turned \
by the padding too, so that only their products are those of the row alone | `[batch, position, head, head width]` |
| `blocks.{i}.attn.hook_attn_scores`, `hook_pattern` | before and after the softmax; the score of what is masked is \
the lowest number, as in transformers, where TransformerLens has -inf | `[batch, head, row, key]` |
| `blocks.{i}.linear_attn.hook_out`, `conv.hook_out`, `mixer.hook_out`, `ple.hook_out` | what is added by what carries \
a state, in the place of attention or beside it, and by inputs of each layer | `[batch, position, width]` |
| `ln_final.hook_out` | what the unembedding reads: the last norm's output, its weight included | \
`[batch, position, width]` |

`hook_resid_pre + hook_attn_out` is `hook_resid_mid`, and with `hook_mlp_out` and whatever else is added,
`hook_resid_post`: the check of sites holds every block to it. (Two families multiply the stream itself as well: Gemma 4
at the end of a block, Muse Spark before it adds.)

The vision tower has the same names under `vision.`; the projector's output is `projector.hook_out`. Layers that read
the image by cross-attention (Mllama, Idefics) are blocks too, with `blocks.{i}.cross_attn.…`. Where a tower works on
all patches of all images in one row, its values have no batch axis, as in transformers. Where a model has several
residual streams (hyper-connections: Qwen4, GLM-5 Next; AltUp: Gemma 3n), they stand side by side in the width, and each
takes a share of its own of what attention and MLP put out. Gemma 3n's have no `hook_resid_mid`: its attention and MLP
work on one of them, and what they did to it is added to all of them behind the MLP.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lvlm_interp.errors import SiteError
from lvlm_interp.families.shared.registry import NAMES
from lvlm_interp.model.norms import is_norm
from lvlm_interp.model.parts import (
    attends,
    attention_of,
    axis_of_streams,
    find_blocks,
    gated_output,
    head_width,
    inside_mlp,
    norms_before,
    output_of,
    part,
    projections,
    uses_interface,
    writers_of,
)
from lvlm_interp.model.weights import sizes_of


@dataclass(frozen=True)
class Site:
    """One place: the module it belongs to, what of it is read, and into how many heads it splits.

    `read` is the module's input, its output, or an intermediate (`part`) of its attention function; `span` is the part
    of the last axis that is meant, where one module computes q, k and v at once; `inner` is the part of each head's
    share, where they stand head by head, or a gate stands behind. What is `added` to the residual stream, and the `sum`
    that it makes, stand behind the module, where its output is added. `streams` is the axis of residual streams that
    have one of their own. Of a norm, the `scale` that it divides by may be read, and what is `normalized` by it.
    """

    name: str
    module: nn.Module
    read: Literal["input", "output", "attention", "added", "sum", "scale", "normalized"]
    part: str = ""
    heads: int | None = None
    span: tuple[int, int] | None = None
    inner: tuple[int, int] | None = None
    streams: int | None = None


def block_sites(prefix: str, block: nn.Module) -> Iterator[Site]:
    """The sites of one transformer block."""
    streams, written = axis_of_streams(block), writers_of(block)
    yield Site(f"{prefix}.hook_resid_pre", block, "input", streams=streams)
    if written.before_mlp is not None:
        read: Literal["input", "sum"] = "input" if written.before_mlp is block else "sum"
        yield Site(f"{prefix}.hook_resid_mid", written.before_mlp, read, streams=streams)
    yield Site(f"{prefix}.hook_resid_post", block, "output", streams=streams)
    for name, module in written.modules.items():
        yield Site(f"{prefix}.{name}", module, "added" if written.as_it_is else "output")
    for name, norm in norms_before(block).items():
        yield from norm_sites(f"{prefix}.{name}", norm)
    for inner in inside_mlp(block):
        yield Site(f"{prefix}.mlp.{inner.name}", inner.module, inner.read, span=inner.span)
    for name, kinds in (("attn", NAMES.attention), ("cross_attn", NAMES.cross_attention)):
        if (attention := attention_of(block, kinds)) is not None:
            yield from _attention_sites(f"{prefix}.{name}", attention)


def norm_sites(prefix: str, norm: nn.Module) -> Iterator[Site]:
    """What a norm divides by, and what it has then; nothing of what is no norm of the usual kinds."""
    if is_norm(norm):
        yield Site(f"{prefix}.hook_scale", norm, "scale")
        yield Site(f"{prefix}.hook_normalized", norm, "normalized")


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
        if name == "z" and gated and width and (sizes := sizes_of(gated)):
            yield Site(f"{prefix}.hook_z", gated, "input", heads=sizes[0] // width)
        else:
            yield Site(f"{prefix}.hook_{name}", attention, "attention", part=name)


def reads_z(site: Site) -> nn.Module | None:
    """The output projection that the z of a site goes into, behind a norm where there is one."""
    return site.module if site.read == "input" else output_of(site.module)


def find_sites(
    blocks: Sequence[nn.Module], decoder: nn.Module, vision: nn.Module | None, projector: nn.Module | None
) -> dict[str, Site]:
    """Every site of a model, by name, also those that cannot be read; see `missing_sites`."""
    sites = [s for i, block in enumerate(blocks) for s in block_sites(f"blocks.{i}", block)]
    embedded = next(site for site in sites if site.name.endswith("hook_resid_pre"))
    sites = [dataclasses.replace(embedded, name="hook_embed"), *sites]
    norm = part(decoder, NAMES.final_norm)
    if norm is not None:
        sites += [*norm_sites("ln_final", norm), Site("ln_final.hook_out", norm, "output")]
    if vision is not None and attends(vision):
        sites += [s for i, b in enumerate(find_blocks(vision)) for s in block_sites(f"vision.blocks.{i}", b)]
    if projector is not None:
        sites.append(Site("projector.hook_out", projector, "output"))
    return {site.name: site for site in sites}


def missing_sites(
    sites: dict[str, Site], again: Mapping[nn.Module, str], shared: Mapping[nn.Module, Sequence[str]]
) -> dict[str, str]:
    """The sites that cannot be read, with the reason.

    `again` are modules that an adapter calls by itself too; `shared` are those that stand at several places.
    """
    reason = "{} computes attention by itself, not through transformers' AttentionInterface"
    unseen = {
        site.name: reason.format(type(site.module).__name__)
        for site in sites.values()
        if site.read == "attention" and not uses_interface(site.module)
    }
    unseen |= {
        site.name: f"{again[site.module]} calls {type(site.module).__name__} again, with prompts of its own"
        for site in sites.values()
        if site.read in ("input", "output") and site.module in again
    }
    unseen |= {
        site.name: f"one {type(site.module).__name__} stands at {' and at '.join(shared[site.module][:2])}, the same "
        "object, and what it gives there is not told apart; give each place a copy.deepcopy of it"
        for site in sites.values()
        if site.module in shared
    }
    blocks = [name.removesuffix("z") for name in sites if name.endswith("attn.hook_z")]
    return unseen | {
        name + letter: f"no linear map was found that gives it; {name}rot_{letter} has it as it meets the others"
        for name in blocks
        for letter in "qk"
        if name + letter not in sites
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
