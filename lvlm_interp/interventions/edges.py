"""What goes from each head, MLP or embedding to each later one, told for all of these edges at once by derivatives.

Edge attribution patching (Syed et al. 2023, arXiv 2310.10348): were what a receiver reads from one sender that of the
corrupt run, the lead m of the clean answer would change by about (what the sender adds in the corrupt run − in the
clean run) · ∂m/∂(what the receiver reads), where the derivative goes through the receiver, its own norm included. With
`steps` the derivative is the mean along a way from the corrupt inputs to the clean ones (EAP-IG: Hanna et al. 2024,
arXiv 2403.17806, with the clean end among its points).

Promise: all that is added to the stream ahead of a receiver is told as some sender's, so that the scores of its edges
add up to the first-order effect of exchanging all that it reads. How far they miss that stands on the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.fields import POSITIVE, Range
from lvlm_interp.given import explained
from lvlm_interp.interventions.leads import Leads
from lvlm_interp.interventions.nodes import KINDS, MLP, Node
from lvlm_interp.interventions.tracing import Pair, target_of_pair
from lvlm_interp.interventions.writes import Writes, need_sum
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result

EMBED, LOGITS = "embed", "logits"
READING = {**{kind: KINDS[kind].site for kind in ("q", "k", "v")}, "attn": "hook_attn_out", "mlp": "hook_mlp_out"}
"""What a receiver of each kind makes of what it reads: its derivative is handed back to the stream."""


@dataclass(frozen=True)
class Edges(Result):
    """How much of the difference between clean and corrupt runs goes from each sender to each receiver, to first order.

    Attributes:
        senders: `embed`, `L12H3`, `L12 MLP`; `L12 added` of what else is added behind a block (image features).
        receivers: `L12H3 q`, `L12KV1 k` (a key-value head, which several heads may share), `L12 MLP`, `logits`.
        score: what the clean answer's lead would gain (less than 0: lose), if the receiver read from the sender what
            that adds in the corrupt run: the mean over pairs, in logits; NaN where the sender does not come before.
        whole: the same of all that the receiver reads.
        clean, corrupt: the mean lead in the two runs.
        pairs: how many there are.
    """

    along: ClassVar[Mapping[str, str]] = {"senders": "sender", "receivers": "receiver"}
    blank: ClassVar[frozenset[str]] = frozenset({"score"})
    ranges: ClassVar[Mapping[str, Range]] = {"pairs": POSITIVE}
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    score: Float[Tensor, "receiver sender"]
    whole: Float[Tensor, " receiver"]
    clean: float
    corrupt: float
    pairs: int

    @property
    def sums(self) -> Float[Tensor, " receiver"]:
        """Over all senders of each receiver: promised to be `whole`."""
        return self.score.nansum(1)

    @property
    def missed(self) -> float:
        """The largest difference between a receiver's sum and what was promised."""
        return float((self.sums - self.whole).abs().max())

    @property
    def note(self) -> str:
        return (
            f"first-order changes of the lead of the clean answer, in logits ({self.clean:.2f} clean, "
            f"{self.corrupt:.2f} corrupt), pairs: {self.pairs}; {int((~self.score.isnan()).sum())} edges, whose sums "
            f"miss those of whole receivers by at most {self.missed:.1e}"
        )

    def strongest(self, count: int) -> pd.DataFrame:
        """The edges of the largest scores, whichever way they push.

        Raises:
            InputError: none are asked for.
        """
        if count < 1:
            raise InputError(f"ask for 1 edge or more; got {count}")
        return self.to_frame().head(count)

    def to_frame(self) -> pd.DataFrame:
        """One row for each edge, the strongest first."""
        receiver, sender = (~self.score.isnan()).nonzero().unbind(1)
        score = self.score[receiver, sender]
        order = score.abs().argsort(descending=True, stable=True)
        ends = {"sender": (self.senders, sender), "receiver": (self.receivers, receiver)}
        named = {end: [names[n] for n in numbers[order].tolist()] for end, (names, numbers) in ends.items()}
        return self.identified(pd.DataFrame({**named, "score": score[order].tolist()}))


@explained
@in_one_go
def edge_attribution(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    *,
    receivers: Sequence[str] = ("q", "k", "v", "mlp", LOGITS),
    steps: int = 1,
    progress: bool = False,
) -> Edges:
    """Tell for every edge between heads, MLPs, the embedding and the logits what goes along it.

    Memory holds what both runs have in their streams and heads, one graph, and of one layer at a time what each head
    adds at each position, and what each receiver reads there.

    Args:
        vlm: the model.
        pairs: clean and corrupt examples with their answers, as long as each other (`causal_trace`).
        receivers: kinds of them: `q` of heads, `k` and `v` of key-value heads, or `attn`, the attention of a block as
            one; `mlp`; `logits`.
        steps: along the way from the corrupt inputs to the clean ones; 1 takes derivatives in the clean run.
        progress: show a progress bar.

    Raises:
        InputError: no pairs, no such receivers, examples of other lengths, answers that begin alike, or no steps.
        SiteError: a model whose stream is not the sum of what heads and MLPs add to it: several streams, layers that
            hand on a state or read the image by cross-attention, keys of another layer; or heads that cannot be seen.
        ModelError: no gradients.
    """
    known = {*READING, LOGITS}
    if isinstance(receivers, str) or not receivers or len({*receivers}) < len(receivers) or not {*receivers} <= known:
        raise InputError(f"receivers= takes some of {[*READING, LOGITS]}, each once; got {receivers!r}")
    if not pairs or steps < 1:
        raise InputError(f"give a pair or more, 1 step or more; got {len(pairs)} pairs, steps={steps}")
    targets = [target_of_pair(vlm, pair, ["difference"], "token", None) for pair in pairs]
    need_sum(vlm)
    found = list[_Scored]()
    for pair, target in tqdm([*zip(pairs, targets, strict=True)], desc="pairs", disable=not progress, leave=False):
        leads = Leads(vlm, pair, target, [*dict.fromkeys([*Writes.sites(vlm), *_streams(vlm)])])
        found.append(_Edges(leads, receivers).scored(steps))
    told = {"receivers": tuple(receivers), "steps": steps}
    clean, corrupt = torch.stack([one.ends for one in found]).mean(0).tolist()
    return Edges(
        senders=found[0].senders,
        receivers=found[0].receivers,
        score=torch.stack([one.score for one in found]).mean(0).float(),
        whole=torch.stack([one.whole for one in found]).mean(0).float(),
        clean=clean,
        corrupt=corrupt,
        pairs=len(pairs),
        provenance=vlm.provenance("edge_attribution", *(x for pair in pairs for x in pair), **told),
    )


def _streams(vlm: HookedVLM) -> list[str]:
    """Where receivers read the stream."""
    names = [f"blocks.{layer}.hook_{place}" for layer in range(vlm.depth) for place in ("resid_pre", "resid_mid")]
    return [name for name in [*names, _end(vlm)] if name in vlm.sites]


def _end(vlm: HookedVLM) -> str:
    return f"blocks.{vlm.depth - 1}.hook_resid_post"


@dataclass(frozen=True, eq=False)
class _Scored:
    """Edges of one pair; `ends` are its leads, clean and corrupt."""

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    score: Float[Tensor, "receiver sender"]
    whole: Float[Tensor, " receiver"]
    ends: Float[Tensor, " end"]


@dataclass(frozen=True, eq=False)
class _Reader:
    """Receivers of one kind in one layer: where in the stream they read, and the site of what they make of it."""

    kind: str
    layer: int
    stream: str
    site: str

    def names(self, count: int) -> list[str]:
        if self.kind in KINDS:
            return [Node(self.layer, MLP if self.kind == "mlp" else head, self.kind).name for head in range(count)]
        return [LOGITS if self.kind == LOGITS else f"L{self.layer} attn"]


class _Edges:
    """The edges of one pair."""

    def __init__(self, leads: Leads, kinds: Sequence[str]) -> None:
        self.leads, self.vlm = leads, leads.vlm
        self.writes = Writes(leads.vlm, leads.before, leads.after)
        groups = self.writes.names()
        self.senders = tuple(itertools.chain(*groups))
        self._starts = [0, *itertools.accumulate(map(len, groups))]
        self.readers = self._found(kinds)

    def _found(self, kinds: Sequence[str]) -> list[_Reader]:
        """In the order in which the stream comes to them."""
        readers = list[_Reader]()
        for layer in range(self.vlm.depth):
            pre, mid = (f"blocks.{layer}.hook_{place}" for place in ("resid_pre", "resid_mid"))
            for kind, ending in READING.items():
                site = f"blocks.{layer}.{ending}"
                if kind in kinds and site in self.vlm.sites:
                    readers.append(_Reader(kind, layer, mid if kind == "mlp" and mid in self.vlm.sites else pre, site))
        end = _end(self.vlm)
        return [*readers, *([_Reader(LOGITS, self.vlm.depth, end, end)] if LOGITS in kinds else [])]

    def scored(self, steps: int) -> _Scored:
        each = [self._at(share / steps) for share in range(1, steps + 1)]
        names, scores, wholes = zip(*each, strict=True)
        ends = torch.stack([self.leads.lead(run) for run in (self.leads.before, self.leads.after)]).cpu()
        return _Scored(self.senders, names[0], torch.stack(scores).mean(0), torch.stack(wholes).mean(0), ends)

    def _at(self, share: float) -> tuple[tuple[str, ...], Tensor, Tensor]:
        """Names of the receivers, their scores, and those of all that they read, this far on the way."""
        places = dict.fromkeys([name for one in self.readers for name in (one.stream, one.site)])
        lead, found = self.leads.graph([*places], share)
        with torch.inference_mode(False), torch.enable_grad():
            sites = [found[one.site] for one in self.readers]
            derivatives = torch.autograd.grad(lead, sites, retain_graph=True)
            names, scores, wholes = list[str](), list[Tensor](), list[Tensor]()
            for stream, some in itertools.groupby(zip(self.readers, derivatives, strict=True), lambda x: x[0].stream):
                back = list[Tensor]()
                for reader, by in some:
                    back.append(_handed_back(reader, found[reader.site], found[stream], by))
                    names += reader.names(len(back[-1]))
                together = torch.cat(back)
                scores.append(self._scores(stream, together))
                wholes.append((self.writes.gap(stream).to(together) * together).sum((1, 2)).cpu())
        return tuple(names), torch.cat(scores), torch.cat(wholes)

    @torch.no_grad()
    def _scores(self, stream: str, back: Float[Tensor, "receiver position width"]) -> Tensor:
        """Of each sender, what arrives in the stream there times the derivative."""
        layer = self.vlm.depth if stream == _end(self.vlm) else int(stream.split(".")[1])
        found = torch.full((len(back), len(self.senders)), torch.nan, dtype=back.dtype)
        for group in range(layer + 1):  # that of the embedding, and those of layers
            written = self.writes.of_layer(group - 1) if group else self.writes.embedded()
            gain = self.writes.gain(group, layer)
            found[:, self._starts[group] : self._starts[group + 1]] = gain * _products(back, written)
        if stream.endswith("resid_mid"):
            written, start = self.writes.of_heads(layer), self._starts[layer + 1]
            found[:, start : start + len(written)] = _products(back, written)
        return found


def _products(
    back: Float[Tensor, "receiver position width"], written: Float[Tensor, "sender position width"]
) -> Tensor:
    return (back.flatten(1) @ written.to(back).flatten(1).T).cpu()


def _handed_back(reader: _Reader, made: Tensor, stream: Tensor, by: Tensor) -> Float[Tensor, "receiver position width"]:
    """What of a derivative goes back through each receiver to the stream that it reads.

    Raises:
        SiteError: it does not come from there.
    """
    if reader.stream == reader.site:
        shares = [by]
    else:
        of_each = [by] if by.ndim == 3 else [_only(by, head) for head in range(by.shape[2])]
        shares = [torch.autograd.grad(made, stream, one, retain_graph=True, allow_unused=True)[0] for one in of_each]
    if any(one is None for one in shares):
        raise SiteError(f"what {reader.site!r} is made of is no part of the stream of block {reader.layer}")
    wide = torch.promote_types(by.dtype, torch.float32)
    return torch.stack([one[0].to(wide) for one in shares])


def _only(by: Float[Tensor, "1 position head inner"], head: int) -> Float[Tensor, "1 position head inner"]:
    kept = torch.zeros_like(by)
    kept[:, :, head] = by[:, :, head]
    return kept
