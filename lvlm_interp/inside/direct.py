"""Direct logit attribution: an answer token's logit as an exact sum of what was written into the residual stream.

With the final norm's scale frozen, the logit of a token is linear in the residual stream that it is read from, and that
stream is a sum: the embedding, and what every head, MLP and bias wrote. A head's part splits once more by the position
that it read: Σ_s A[t, s] · (v_s W_O) (Elhage et al. 2021). So it is the mechanistic answer to "prompt, image or
knowledge": what heads read from text, what they read from the image, and what MLPs and the embedding add.

Promise: the parts add up to the logit. It says what was written directly; what a head wrote that a later layer used
first is that later layer's part.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.given import explained, whole
from lvlm_interp.inputs.example import ROLES, Inputs
from lvlm_interp.inside.ending import need_plain_end
from lvlm_interp.inside.frozen import frozen
from lvlm_interp.inside.residual import READ, along, between, gains_of, layer_of, stream_of
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result, number_of
from lvlm_interp.shown import table_html

TOLERANCE = 1e-3  # share of the parts' sizes by which their sum may miss the logit; larger means misread weights


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

    along: ClassVar[Mapping[str, str]] = {
        "tokens": "answer",
        "target": "answer",
        "positions": "position",
        "roles": "position",
    }
    among: ClassVar[Mapping[str, Collection[str]]] = {"roles": ROLES}
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
    def note(self) -> str:
        less = f", less those of {self.against!r}" if self.against else ""
        return f"logits{less}; the parts of a row add up to its logit"

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

    def components(self, token: int | str = 0) -> pd.DataFrame:
        """One row a component of one answer token, the largest first: `component`, `layer`, `head`, `logit`."""
        token = number_of(self.tokens, token, "the answer")
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
        return table_html(self.to_frame(), 2, note)


@explained
@in_one_go
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
        InputError: no answer, a target that is not one token of the vocabulary, or is held against itself; an edit of
            what heads write.
        SiteError: attention that cannot be read in this model, or parts that do not add up to the logit.
        ModelError: the model gives NaN or infinity; an edit, or a hook of yours, behind the last block.
    """
    x.need_answer()
    need_plain_end(vlm, "direct attribution")
    _need_own_heads(vlm)
    rows = x.answer_positions - 1
    ids = x.answer_ids.cpu() if target is None else torch.tensor([_token(vlm, whole(target))] * len(rows))
    other = None if against is None else _token(vlm, whole(against))
    if other is not None and bool((ids == other).all()):
        raise InputError(f"against={against!r} is the token that is taken apart itself: give another")
    stream = stream_of(vlm, x, rows)
    out = _readout(vlm, stream[-1].post, ids.to(vlm.device), other)
    gains = gains_of(stream)
    layers = [layer_of(n, one, out.direction * gains[n], x.length) for n, one in enumerate(stream)]
    found = DirectAttribution(
        tokens=x.answer_tokens,
        target=vlm.token_strings(ids.tolist()),
        against="" if other is None else vlm.token_strings([other])[0],
        positions=x.tokens,
        roles=x.roles,
        logit=out.logit,
        embedding=along(stream[0].pre, out.direction * gains[0]),
        heads=_side_by_side([layer.heads for layer in layers]),
        sources=_side_by_side([layer.sources for layer in layers]),
        mlps=torch.stack([layer.mlp for layer in layers], 1),
        biases=torch.stack([layer.bias for layer in layers], 1),
        others=between(stream, out.direction) + torch.stack([layer.other for layer in layers], 1),
        bias=out.bias,
        softcap=out.softcap,
        provenance=vlm.provenance("direct logit attribution", x, target=target, against=against),
    )
    return _closing(found, out.rounding)


def _side_by_side(layers: list[Float[Tensor, "answer _ *position"]]) -> Float[Tensor, "answer layer head *position"]:
    """Layers next to each other; heads that one has fewer than others wrote nothing."""
    most = max(layer.shape[1] for layer in layers)
    fewer = [(layer, most - layer.shape[1]) for layer in layers]
    return torch.stack([nn.functional.pad(layer, (0, 0) * (layer.ndim - 2) + (0, n)) for layer, n in fewer], 1)


def _need_own_heads(vlm: HookedVLM) -> None:
    """Raise where what heads write is edited, and so not made of what they read.

    Raises:
        InputError: names the site.
    """
    if edited := [site.name for site, _ in vlm.held.edited if fnmatch.fnmatch(site.name, "blocks.*.attn.hook_z")]:
        raise InputError(
            f"{edited[0]!r} is edited, so that what these heads write is not made of what they read, and cannot be "
            "told apart by source: edit hook_v or hook_attn_out, or what stands before them"
        )


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
    ids = [token] if isinstance(token, int) else vlm.prompter.lettered_ids(token)
    if len(ids) != 1:
        pieces = list(vlm.token_strings(ids))
        raise InputError(
            f"{token!r} is {len(ids)} tokens {pieces}: direct attribution takes one, for example its first"
        )
    if not 0 <= ids[0] < vlm.readout.vocabulary:
        raise InputError(f"token {ids[0]} is not in the vocabulary of {vlm.readout.vocabulary} tokens")
    return ids[0]


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
    row, own_bias = weight[ids].double() * readout.scale, readout.bias
    offset = torch.zeros(len(weight), dtype=torch.float64, device=row.device)
    offset = offset if own_bias is None else own_bias.double().to(row.device) * readout.scale
    constant = offset[ids]
    if other is not None:
        row, constant = row - weight[other].double() * readout.scale, constant - offset[other]
    bias = row @ norm.bias + constant
    direction = norm.back(row)
    raw = along(last, direction) + bias.cpu()
    logits = readout(last)
    eps = max(torch.finfo(numbers.dtype).eps for numbers in (last, logits))  # autocast has logits of fewer digits
    logits = logits.double()
    own = logits.gather(1, ids[:, None])[:, 0]
    subtracted = torch.zeros_like(own) if other is None else logits[:, other]
    summed = (direction * last.double()).norm(dim=-1)  # errors of its terms have no common sign
    logit, rounding = own - subtracted, eps * (own.abs() + subtracted.abs() + summed)
    capped = logit.cpu() - raw if readout.softcap else torch.zeros_like(raw)
    return _Out(direction, logit.cpu(), bias.cpu(), capped, rounding.cpu())
