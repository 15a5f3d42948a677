"""Direct logit attribution: an answer token's logit as an exact sum of what was written into the residual stream.

With the final norm's scale frozen, the logit of a token is linear in the residual stream that it is read from, and that
stream is a sum: the embedding, and what every head, MLP and bias wrote. A head's part splits once more by the position
that it read: Σ_s A[t, s] · (v_s W_O) (Elhage et al. 2021). So it is the mechanistic answer to "prompt, image or
knowledge": what heads read from text, what they read from the image, and what MLPs and the embedding add.

Promise: the parts add up to the logit. It says what was written directly; what a head wrote that a later layer used
first is that later layer's part.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inside.frozen import frozen
from lvlm_interp.model.parts import ATTENTION, CROSS_ATTENTION, part
from lvlm_interp.model.sites import Site, reads_z
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.model.weights import fetched
from lvlm_interp.results import Result

TOLERANCE = 1e-3  # share of the parts' sizes by which their sum may miss the logit; larger means misread weights
READ = 0.1  # share of what heads read by which sources may miss what heads write: half precision misses it by 0.02


@dataclass(frozen=True)
class DirectAttribution(Result):
    """Parts of the logit of each answer token (or of the difference of two logits), in raw logits.

    Attributes:
        tokens: the answer tokens as text.
        target: the token whose logit is taken apart, for each answer token.
        against: the token whose logit is subtracted, or empty.
        positions, roles: tokens and roles of the whole prompt, as text.
        logit: what the parts add up to, `[answer]`.
        embedding: of the position itself, `[answer]`.
        heads: what each head wrote, `[answer, layer, head]`; zeros where a layer has fewer heads than others.
        sources: the same by the position that the head read, `[answer, layer, head, position]`; what cross-attention
            reads stands at no position of the prompt and is only in `heads`.
        mlps: `[answer, layer]`.
        biases: of attention's output and the norms after it, `[answer, layer]`.
        others: what a block adds beyond its attention and MLP (all that a recurrent layer writes, which has no heads to
            take it apart into), and what comes between blocks, `[answer, layer]`.
        bias: of the final norm and the unembedding, `[answer]`.
        softcap: what a cap of the logits takes away, `[answer]`.
    """

    tokens: tuple[str, ...]
    target: tuple[str, ...]
    against: str
    positions: tuple[str, ...]
    roles: tuple[str, ...]
    logit: Float[Tensor, " answer"]
    embedding: Float[Tensor, " answer"]
    heads: Float[Tensor, "answer layer head"]
    sources: Float[Tensor, "answer layer head position"]
    mlps: Float[Tensor, "answer layer"]
    biases: Float[Tensor, "answer layer"]
    others: Float[Tensor, "answer layer"]
    bias: Float[Tensor, " answer"]
    softcap: Float[Tensor, " answer"]

    @property
    def total(self) -> Float[Tensor, " answer"]:
        """The sum of all parts; equals `logit`, to the rounding of the model's number type."""
        layers = self.heads.sum(2) + self.mlps + self.biases + self.others
        return self.embedding + layers.sum(1) + self.bias + self.softcap

    def by_role(self) -> Float[Tensor, "answer layer head role"]:
        """Each head's part by the role that it read, in the order of `role_names`; cross-attention reads the image."""
        names = self.role_names
        parts = [self.sources[..., [role == name for role in self.roles]].sum(-1) for name in names]
        beyond = self.heads - self.sources.sum(-1)
        if "image" in names:
            parts[names.index("image")] = parts[names.index("image")] + beyond
        return torch.stack(parts, -1)

    @property
    def role_names(self) -> tuple[str, ...]:
        """The roles of the prompt, in the order in which they occur."""
        return tuple(dict.fromkeys(self.roles))

    def to_frame(self) -> pd.DataFrame:
        """One row an answer token: its logit, what heads read from each role, and the rest. The columns add up."""
        read = self.by_role().sum((1, 2))
        columns = {f"reads {name}": read[:, n].tolist() for n, name in enumerate(self.role_names)}
        return pd.DataFrame(
            {
                "token": self.tokens,
                **columns,
                "mlps": self.mlps.sum(1).tolist(),
                "embedding": self.embedding.tolist(),
                "biases": (self.biases.sum(1) + self.bias).tolist(),
                "others": self.others.sum(1).tolist(),
                "softcap": self.softcap.tolist(),
                "logit": self.logit.tolist(),
            }
        )

    def components(self, token: int = 0) -> pd.DataFrame:
        """One row a component of one answer token, the largest first: `component`, `layer`, `head`, `logit`."""
        alone = {"embedding": self.embedding, "bias": self.bias, "softcap": self.softcap}
        rows: list[tuple[str, int | None, int | None, float]] = [
            (name, None, None, float(values[token])) for name, values in alone.items()
        ]
        for layer, heads in enumerate(self.heads[token].tolist()):
            rows += [(f"L{layer}H{head}", layer, head, value) for head, value in enumerate(heads)]
            rows.append((f"MLP {layer}", layer, None, float(self.mlps[token, layer])))
            rows.append((f"biases {layer}", layer, None, float(self.biases[token, layer])))
            rows.append((f"others {layer}", layer, None, float(self.others[token, layer])))
        frame = pd.DataFrame(rows, columns=["component", "layer", "head", "logit"])
        frame = frame.astype({"layer": "Int64", "head": "Int64"})
        return frame.sort_values("logit", key=lambda column: -column.abs(), ignore_index=True)

    def _repr_html_(self) -> str:
        note = f"raw logits{f' against {self.against!r}' if self.against else ''}; the parts add up to the logit"
        return self.to_frame().style.format(precision=2, escape="html").set_caption(note).to_html()


@torch.no_grad()
def direct(
    vlm: HookedVLM, x: Inputs, *, target: str | int | None = None, against: str | int | None = None
) -> DirectAttribution:
    """Take the logit of every answer token apart.

    Args:
        vlm: the model.
        x: an example with an answer.
        target: a token (its text or id) to take apart at every position; each answer token itself by default.
        against: a token whose logit is subtracted: why the target *rather than* this.

    Raises:
        InputError: no answer, or a target that is not one token of the vocabulary.
        SiteError: attention that cannot be read in this model, or parts that do not add up to the logit.
    """
    x.need_answer()
    rows = x.answer_positions - 1
    ids = x.answer_ids.cpu() if target is None else torch.tensor([_token(vlm, target)] * len(rows))
    other = None if against is None else _token(vlm, against)
    stream = _stream(vlm, x, rows)
    out = _readout(vlm, stream[-1].post, ids.to(vlm.device), other)
    layers = [_layer(n, one, out.direction, x.length) for n, one in enumerate(stream)]
    found = DirectAttribution(
        tokens=x.answer_tokens,
        target=vlm.token_strings(ids.tolist()),
        against="" if other is None else vlm.token_strings([other])[0],
        positions=x.tokens,
        roles=x.roles,
        logit=out.logit,
        embedding=_dot(stream[0].pre, out.direction),
        heads=_side_by_side([layer.heads for layer in layers]),
        sources=_side_by_side([layer.sources for layer in layers]),
        mlps=torch.stack([layer.mlp for layer in layers], 1),
        biases=torch.stack([layer.bias for layer in layers], 1),
        others=_between(stream, out.direction) + torch.stack([layer.other for layer in layers], 1),
        bias=out.bias,
        softcap=out.softcap,
        provenance=vlm.provenance("direct logit attribution", target=target, against=against),
    )
    return _closing(found, out.rounding)


def _side_by_side(layers: list[Float[Tensor, "answer _ *position"]]) -> Float[Tensor, "answer layer head *position"]:
    """Layers next to each other; heads that one has fewer than others wrote nothing."""
    most = max(layer.shape[1] for layer in layers)
    fewer = [(layer, most - layer.shape[1]) for layer in layers]
    return torch.stack([nn.functional.pad(layer, (0, 0) * (layer.ndim - 2) + (0, n)) for layer, n in fewer], 1)


def _closing(found: DirectAttribution, rounding: Float[Tensor, " answer"]) -> DirectAttribution:
    """The promises: the parts add up to the logit, and the sources of a head to the head."""
    size = found.heads.abs().sum((1, 2)) + found.mlps.abs().sum(1) + found.embedding.abs()
    gap = (((found.total - found.logit).abs() - rounding) / size.clamp(min=1)).max()
    if not gap <= TOLERANCE:
        raise SiteError(f"the parts miss the logit by {float(gap):.1e} of their size: this model is not read rightly")
    read = found.sources.abs().sum(-1)  # cross-attention reads no position
    missed = ((found.sources.sum(-1) - found.heads).abs() * (read > 0)).amax((1, 2)) / read.amax((1, 2)).clamp(min=1e-9)
    if not missed.max() <= READ:
        raise SiteError(
            f"the sources miss their heads by {float(missed.max()):.1e} of what these read: in this model values are "
            "changed before they are read (by a norm, say), and cannot be told apart by position"
        )
    return found


def _token(vlm: HookedVLM, token: str | int) -> int:
    ids = [token] if isinstance(token, int) else vlm.prompter.word_ids(token)
    if len(ids) != 1:
        pieces = list(vlm.token_strings(ids))
        raise InputError(
            f"{token!r} is {len(ids)} tokens {pieces}: direct attribution takes one, for example its first"
        )
    if not 0 <= ids[0] < vlm.readout.vocabulary:
        raise InputError(f"token {ids[0]} is not in the vocabulary of {vlm.readout.vocabulary} tokens")
    return ids[0]


def _dot(written: Float[Tensor, "answer *more width"], direction: Float[Tensor, "answer width"]) -> Tensor:
    return (written.double() * direction.view(len(direction), *(1,) * (written.ndim - 2), -1)).sum(-1).cpu()


# --- what the logit reads -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Out:
    """The direction that the logit reads in the residual stream `[answer, width]`, and what is not in the stream.

    `rounding` is by how much the model's own number type may have rounded the logit, and what the logit is summed from.
    """

    direction: Float[Tensor, "answer width"]
    logit: Float[Tensor, " answer"]
    bias: Float[Tensor, " answer"]
    softcap: Float[Tensor, " answer"]
    rounding: Float[Tensor, " answer"]


def _readout(
    vlm: HookedVLM, last: Float[Tensor, "answer width"], ids: Int[Tensor, " answer"], other: int | None
) -> _Out:
    readout = vlm.readout
    norm, weight = frozen(readout.norm, last), readout.weight
    row = weight[ids].double() * readout.scale
    offset = _bias_of(readout.unembed, readout.vocabulary).to(row.device) * readout.scale
    constant = offset[ids]
    if other is not None:
        row, constant = row - weight[other].double() * readout.scale, constant - offset[other]
    bias = row @ norm.bias + constant
    direction = norm.back(row)
    raw = _dot(last, direction) + bias.cpu()
    logits = readout(last)
    eps, logits = torch.finfo(logits.dtype).eps, logits.double()
    own = logits.gather(1, ids[:, None])[:, 0]
    subtracted = torch.zeros_like(own) if other is None else logits[:, other]
    summed = (direction * last.double()).norm(dim=-1)  # errors of its terms have no common sign
    logit, rounding = own - subtracted, eps * (own.abs() + subtracted.abs() + summed)
    capped = logit.cpu() - raw if readout.softcap else torch.zeros_like(raw)
    return _Out(direction, logit.cpu(), bias.cpu(), capped, rounding.cpu())


def _bias_of(linear: nn.Module, width: int) -> Float[Tensor, " width"]:
    none = getattr(linear, "bias", None) is None
    return torch.zeros(width, dtype=torch.float64) if none else fetched(linear, "bias").double()


# --- what was written -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Attention:
    """What the heads of one block read and write at the rows of the answer.

    `pattern` and `v` are None where the keys are no positions of the prompt (cross-attention).
    """

    z: Float[Tensor, "answer head inner"]
    pattern: Float[Tensor, "head answer position"] | None
    v: Float[Tensor, "position kv_head inner"] | None
    site: Site
    after: nn.Module | None


@dataclass(frozen=True, eq=False)
class _Block:
    """The residual stream around one block at the rows of the answer, and its heads, if it has any."""

    pre: Float[Tensor, "answer width"]
    mid: Float[Tensor, "answer width"]
    post: Float[Tensor, "answer width"]
    attention: _Attention | None


def _stream(vlm: HookedVLM, x: Inputs, rows: Int[Tensor, " answer"]) -> list[_Block]:
    """Everything that the blocks wrote, from two passes: at the answer's rows, and values at all positions."""
    names = [n for n in vlm.sites if n.startswith("blocks.")]
    depth = max(int(n.split(".")[1]) for n in names) + 1
    kinds = [_kind_of(vlm, n) for n in range(depth)]
    at_rows, whole = [], []
    for n, kind in enumerate(kinds):
        at_rows += [f"blocks.{n}.hook_{site}" for site in ("resid_pre", "resid_mid", "resid_post", "attn_out")]
        at_rows += [f"blocks.{n}.{kind}.hook_{site}" for site in ("z", "pattern") if kind]
        whole += [f"blocks.{n}.attn.hook_v"] if kind == "attn" else []
    here = vlm.capture(x, [name for name in at_rows if name in vlm.sites], positions=rows)
    _need_one_stream(vlm, here[f"blocks.{depth - 1}.hook_resid_post"].shape[-1])
    values = vlm.capture(x, whole)
    return [_block(vlm, f"blocks.{n}", kind, here, values) for n, kind in enumerate(kinds)]


def _need_one_stream(vlm: HookedVLM, width: int) -> None:
    """Raise where blocks write to several residual streams, each of which gets a share of every part."""
    read = vlm.readout.weight.shape[-1]
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
    if part(vlm.blocks[layer], (*ATTENTION, *CROSS_ATTENTION)) is None:
        return None
    why = next(
        (why for name, why in vlm.missing.items() if name.startswith(f"blocks.{layer}.")), "it has no such sites"
    )
    raise SiteError(f"the attention of block {layer} cannot be taken apart: {why}")


def _block(
    vlm: HookedVLM, prefix: str, kind: str | None, here: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> _Block:
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
    return _Block(pre, mid, post, None if kind is None else _attention(vlm, prefix, kind, here, values))


def _attention(
    vlm: HookedVLM, prefix: str, kind: str, here: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> _Attention:
    site, added = vlm.sites[f"{prefix}.{kind}.hook_z"], vlm.sites[f"{prefix}.hook_attn_out"].module
    inside, own = any(module is site.module for module in added.modules()), kind == "attn"
    return _Attention(
        z=here[f"{prefix}.{kind}.hook_z"][0],
        pattern=here[f"{prefix}.attn.hook_pattern"][0] if own else None,
        v=values[f"{prefix}.attn.hook_v"][0] if own else None,
        site=site,
        after=None if inside else added,
    )


@dataclass(frozen=True, eq=False)
class _Layer:
    """Parts of one block."""

    heads: Float[Tensor, "answer head"]
    sources: Float[Tensor, "answer head position"]
    mlp: Float[Tensor, " answer"]
    bias: Float[Tensor, " answer"]
    other: Float[Tensor, " answer"]


def _layer(number: int, block: _Block, direction: Float[Tensor, "answer width"], length: int) -> _Layer:
    added, mlp = (block.mid - block.pre).double(), _dot(block.post.double() - block.mid.double(), direction)
    if block.attention is None:
        none, other = mlp.new_zeros(len(mlp), 0), _dot(added, direction)
        return _Layer(none, none[..., None].expand(-1, -1, length), mlp, torch.zeros_like(mlp), other)
    reads, constant = _reads(number, block.attention, added, direction)
    by_head, bias = (block.attention.z.double() * reads).sum(-1).cpu(), constant.cpu()
    return _Layer(
        heads=by_head,
        sources=_by_source(block.attention, reads, length).cpu(),
        mlp=mlp,
        bias=bias,
        other=_dot(added, direction) - by_head.sum(1) - bias,
    )


def _reads(
    number: int, attention: _Attention, added: Float[Tensor, "answer width"], direction: Float[Tensor, "answer width"]
) -> tuple[Float[Tensor, "answer head inner"], Float[Tensor, " answer"]]:
    """What the direction reads in each head's z, and what biases write along it, of attention and the norm after it.

    Raises:
        SiteError: what is added to the stream is not made of what the heads write.
    """
    project = reads_z(attention.site)
    if not isinstance(project, nn.Linear):
        raise SiteError(f"block {number} has no linear output projection that heads could be split through")
    weight = fetched(project, "weight").double()
    bias = _bias_of(project, project.out_features).to(direction.device)
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
    return torch.einsum("aw,whi->ahi", into, weight.view(-1, *attention.z.shape[1:])), constant


def _by_source(
    attention: _Attention, reads: Float[Tensor, "answer head inner"], length: int
) -> Float[Tensor, "answer head position"]:
    """What each head read at each position, along the direction; values may be shared by several heads."""
    if attention.v is None or attention.pattern is None:
        return reads.new_zeros(*reads.shape[:2], length)
    values = attention.v.double().repeat_interleave(reads.shape[1] // attention.v.shape[1], 1)
    pattern = attention.pattern.double()
    gate = _gate(attention, torch.einsum("hak,khi->ahi", pattern, values))
    return torch.einsum("hak,khi,ahi->ahk", pattern, values, reads * gate)


def _gate(attention: _Attention, read: Float[Tensor, "answer head inner"]) -> Float[Tensor, "answer head inner"]:
    """What stands between what the heads read and what is projected: a factor for each number, 1 in most families."""
    gated = attention.site.read == "input"
    return torch.where(read == 0, 0, attention.z.double() / read) if gated else torch.ones_like(read)


def _between(stream: list[_Block], direction: Float[Tensor, "answer width"]) -> Float[Tensor, "answer layer"]:
    """What is added to the stream between one block and the next."""
    jumps = [torch.zeros_like(stream[0].pre), *(b.pre - a.post for a, b in itertools.pairwise(stream))]
    return torch.stack([_dot(jump, direction) for jump in jumps], 1)
