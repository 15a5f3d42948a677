"""What blocks wrote into the residual stream, taken apart into heads, sources, MLPs and biases, along a direction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from lvlm_interp.errors import SiteError
from lvlm_interp.families.shared.registry import NAMES
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inside.frozen import frozen
from lvlm_interp.model.finite import need_finite
from lvlm_interp.model.parts import part, rescale_of
from lvlm_interp.model.sites import Site, reads_z
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.model.weights import map_of, sizes_of

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
READ = 0.1  # share of what heads read by which sources may miss what heads write: half precision misses it by 0.02


def along(written: Float[Tensor, "answer *more width"], direction: Float[Tensor, "answer width"]) -> Tensor:
    return (written.double() * direction.view(len(direction), *(1,) * (written.ndim - 2), -1)).sum(-1).cpu()


@dataclass(frozen=True, eq=False)
class Attention:
    """What the heads of one block read and write at the rows of the answer.

    `pattern` and `v` are None where the keys are no positions of the prompt (cross-attention).
    """

    z: Float[Tensor, "answer head inner"]
    pattern: Float[Tensor, "head answer position"] | None
    v: Float[Tensor, "position kv_head inner"] | None
    site: Site
    after: nn.Module | None


@dataclass(frozen=True, eq=False)
class Block:
    """The residual stream around one block at the rows of the answer, and its heads, if it has any.

    `mlp` is what its MLP adds, None where it has none; `scale` what the block multiplies its stream by at its end.
    """

    pre: Float[Tensor, "answer width"]
    mid: Float[Tensor, "answer width"]
    post: Float[Tensor, "answer width"]
    mlp: Float[Tensor, "answer width"] | None
    scale: float
    attention: Attention | None


def stream_of(vlm: HookedVLM, x: Inputs, rows: Int[Tensor, " answer"]) -> list[Block]:
    """Everything that the blocks wrote, from two passes: at the answer's rows, and values at all positions."""
    kinds = [_kind_of(vlm, n) for n in range(vlm.depth)]
    at_rows, whole = [], []
    for n, kind in enumerate(kinds):
        at_rows += [f"blocks.{n}.hook_{site}" for site in SITES]
        at_rows += [f"blocks.{n}.{kind}.hook_{site}" for site in ("z", "pattern") if kind]
        whole += [f"blocks.{n}.attn.hook_v"] if kind == "attn" else []
    there = [name for name in at_rows if name in vlm.sites or name in vlm.missing]  # of the missing, it says why
    here = vlm.capture(x, there, positions=rows)
    need_finite(vlm, x, *(value for name, value in here.items() if "resid" in name or name == "logits"))
    _need_one_stream(vlm, here[f"blocks.{vlm.depth - 1}.hook_resid_post"].shape[-1])
    values = vlm.capture(x, whole)
    return [_block(vlm, f"blocks.{n}", kind, here, values) for n, kind in enumerate(kinds)]


def _need_one_stream(vlm: HookedVLM, width: int) -> None:
    """Raise where blocks write to several residual streams, each of which gets a share of every part."""
    read = vlm.readout.width
    if width != read:
        raise SiteError(
            f"this model has several residual streams ({width} numbers at a position, of which the unembedding reads "
            f"{read}), among which blocks mix what was written: logits are no sum of parts here"
        )


def _kind_of(vlm: HookedVLM, layer: int) -> str | None:
    """Whether a block has self-attention or cross-attention whose pattern can be read; None if it has neither."""
    for kind in ("attn", "cross_attn"):
        if all(f"blocks.{layer}.{kind}.hook_{site}" in vlm.sites for site in ("z", "pattern", "v")):
            return kind
    if part(vlm.blocks[layer], (*NAMES.attention, *NAMES.cross_attention)) is None:
        return None
    why = next(
        (why for name, why in vlm.missing.items() if name.startswith(f"blocks.{layer}.")), "it has no such sites"
    )
    raise SiteError(f"the attention of block {layer} cannot be taken apart: {why}")


def _block(
    vlm: HookedVLM, prefix: str, kind: str | None, here: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> Block:
    pre, post = (here[f"{prefix}.hook_{name}"][0] for name in ("resid_pre", "resid_post"))
    middle = here.get(f"{prefix}.hook_resid_mid")
    if middle is not None:
        mid = middle[0]
    elif kind is not None:
        mid = pre + here[f"{prefix}.hook_attn_out"][0]  # attention and MLP side by side have no middle
    elif f"{prefix}.hook_mlp_out" not in vlm.sites:
        mid = post
    else:
        raise SiteError(
            f"what {prefix} adds cannot be taken apart: it has an MLP, and nothing that tells where it begins"
        )
    scale, mlp = rescale_of(vlm.sites[f"{prefix}.hook_resid_pre"].module), here.get(f"{prefix}.hook_mlp_out")
    attention = None if kind is None else _attention(vlm, prefix, kind, here, values)
    return Block(pre, mid, post, None if mlp is None else mlp.reshape(pre.shape), scale, attention)


def _attention(
    vlm: HookedVLM, prefix: str, kind: str, here: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> Attention:
    site, added = vlm.sites[f"{prefix}.{kind}.hook_z"], vlm.sites[f"{prefix}.hook_attn_out"].module
    inside, own = any(module is site.module for module in added.modules()), kind == "attn"
    return Attention(
        z=here[f"{prefix}.{kind}.hook_z"][0],
        pattern=here[f"{prefix}.attn.hook_pattern"][0] if own else None,
        v=values[f"{prefix}.attn.hook_v"][0] if own else None,
        site=site,
        after=None if inside else added,
    )


@dataclass(frozen=True, eq=False)
class Layer:
    """Parts of one block."""

    heads: Float[Tensor, "answer head"]
    sources: Float[Tensor, "answer head position"]
    mlp: Float[Tensor, " answer"]
    bias: Float[Tensor, " answer"]
    other: Float[Tensor, " answer"]


def layer_of(number: int, block: Block, direction: Float[Tensor, "answer width"], length: int) -> Layer:
    added = (block.mid - block.pre).double()
    behind = block.post.double() / block.scale - block.mid.double()
    written = torch.zeros_like(behind) if block.mlp is None else block.mlp.double()
    mlp, beyond = along(written, direction), along(behind - written, direction)
    if block.attention is None:
        none, other = mlp.new_zeros(len(mlp), 0), along(added, direction) + beyond
        return Layer(none, none[..., None].expand(-1, -1, length), mlp, torch.zeros_like(mlp), other)
    reads, constant = _reads(number, block.attention, added, direction)
    by_head, bias = (block.attention.z.double() * reads).sum(-1).cpu(), constant.cpu()
    return Layer(
        heads=by_head,
        sources=_by_source(block.attention, reads, length).cpu(),
        mlp=mlp,
        bias=bias,
        other=along(added, direction) - by_head.sum(1) - bias + beyond,
    )


def _reads(
    number: int, attention: Attention, added: Float[Tensor, "answer width"], direction: Float[Tensor, "answer width"]
) -> tuple[Float[Tensor, "answer head inner"], Float[Tensor, " answer"]]:
    """What the direction reads in each head's z, and what biases write along it, of attention and the norm after it.

    Raises:
        SiteError: what is added to the stream is not made of what the heads write.
    """
    project = reads_z(attention.site)
    if project is None or sizes_of(project) is None:
        raise SiteError(f"block {number} has no linear output projection that heads could be split through")
    weight, added_anyway = map_of(project)
    weight = weight.double()
    bias = weight.new_zeros(len(weight)) if added_anyway is None else added_anyway.double()
    weight, bias = weight.to(direction.device), bias.to(direction.device)
    raw = attention.z.flatten(1).double() @ weight.T + bias
    norm = None if attention.after is None else frozen(attention.after, raw.to(attention.z.dtype))
    wrote = raw if norm is None else norm(raw)
    gain = (added * wrote).sum() / (wrote * wrote).sum()  # 1, or a gate or multiplier that some families have
    if not (added - gain * wrote).norm() <= READ * added.norm():
        raise SiteError(
            f"what the attention of block {number} adds to the residual stream is no multiple of what its heads write, "
            "so that it cannot be taken apart into heads"
        )
    into = gain * (direction if norm is None else norm.back(direction))
    constant = into @ bias + (0 if norm is None else gain * (direction @ norm.bias))
    by_head = rearrange(weight, "width (head inner) -> width head inner", head=attention.z.shape[1])
    return torch.einsum("aw,whi->ahi", into, by_head), constant


def _by_source(
    attention: Attention, reads: Float[Tensor, "answer head inner"], length: int
) -> Float[Tensor, "answer head position"]:
    """What each head read at each position, along the direction; values may be shared by several heads."""
    if attention.v is None or attention.pattern is None:
        return reads.new_zeros(*reads.shape[:2], length)
    group = reads.shape[1] // attention.v.shape[1]
    values = repeat(attention.v.double(), "position head inner -> position (head group) inner", group=group)
    pattern = attention.pattern.double()
    gate = _gate(attention, torch.einsum("hak,khi->ahi", pattern, values))
    return torch.einsum("hak,khi,ahi->ahk", pattern, values, reads * gate)


def _gate(attention: Attention, read: Float[Tensor, "answer head inner"]) -> Float[Tensor, "answer head inner"]:
    """What stands between what the heads read and what is projected: a factor for each number, 1 in most families."""
    gated = attention.site.read == "input"
    return torch.where(read == 0, 0, attention.z.double() / read) if gated else torch.ones_like(read)


def gains_of(stream: list[Block]) -> list[float]:
    """By how much what is in the stream as a block begins is multiplied on its way to the end."""
    return [math.prod(block.scale for block in stream[n:]) for n in range(len(stream))]


def between(stream: list[Block], direction: Float[Tensor, "answer width"]) -> Float[Tensor, "answer layer"]:
    """What is added to the stream between one block and the next, as it arrives at the end."""
    jumps = [torch.zeros_like(stream[0].pre), *(b.pre - a.post for a, b in itertools.pairwise(stream))]
    return torch.stack([along(jump, direction * gain) for jump, gain in zip(jumps, gains_of(stream), strict=True)], 1)
