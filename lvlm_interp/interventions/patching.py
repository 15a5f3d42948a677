"""Which heads and MLPs carry the difference between two runs, told for all of them at once by derivatives.

Attribution patching (Nanda 2023): putting a component's states of the corrupt run into the clean one would take about
(clean − corrupt) · ∂m/∂(its states) from m, the logit of the clean answer's first token less the corrupt one's. With
`steps` the derivative is the mean along a way from the corrupt inputs to the clean ones (EAP-IG's: Hanna et al. 2024,
arXiv 2403.17806, with the clean end among its points). Where a component's direct and indirect effects cancel, their
sum hides it: with `drop` its strength is the mean, over layers, of its effect's size with the derivative through that
layer left out (AtP*'s GradDrop: Kramár et al. 2024, arXiv 2403.00745). What queries and keys do goes through a softmax,
where a derivative tells little: the pattern is computed anew with those of the corrupt run (AtP*'s fix of queries and
keys), and the difference of both patterns is multiplied by ∂m/∂pattern. What a head writes is linear in its pattern, so
that this product is that of what it writes otherwise and ∂m/∂(what it writes), and no pattern is held.

It is a guess: some components are exchanged in earnest, and how both agree stands on the result.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.attribution.value import Target
from lvlm_interp.errors import InputError
from lvlm_interp.fields import POSITIVE, Range
from lvlm_interp.given import explained, need_seed
from lvlm_interp.interventions.leads import Leads
from lvlm_interp.interventions.nodes import KINDS, Node, exchange, need_classes, need_kinds, nodes_of
from lvlm_interp.interventions.places import layer_of, placed
from lvlm_interp.interventions.sweep import under
from lvlm_interp.interventions.tracing import Pair, Runs, target_of_pair
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.hooks import stopped
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result


@dataclass(frozen=True)
class Components(Result):
    """What each head and MLP carries of the difference between clean and corrupt runs, to first order.

    Attributes:
        names: `L12H3`, `L12H3 q`, `L12KV1 k`, `L12 MLP`; `L12H3 at image`, where classes of positions are told apart.
        kinds: `z` of what a head writes, `q`, `k` and `v` of what it reads by, `mlp`.
        layers, heads: where each is; the head of an MLP is -1, that of `k` and `v` a key-value head.
        positions: the class of positions; empty where it is all of them.
        effect: what the clean answer's lead would lose, if the component had its states of the corrupt run: the mean
            over pairs, in logits.
        strength: how large that is, whatever cancels: what components are ranked by.
        exact: what it does lose, for those that were exchanged in earnest; NaN for others.
        clean, corrupt: the mean lead in the two runs.
        pairs: how many there are.
    """

    along: ClassVar[Mapping[str, str]] = {"names": "node", "kinds": "node", "positions": "node"}
    among: ClassVar[Mapping[str, Collection[str]]] = {"kinds": tuple(KINDS)}
    blank: ClassVar[frozenset[str]] = frozenset({"exact"})
    ranges: ClassVar[Mapping[str, Range]] = {"strength": POSITIVE, "pairs": POSITIVE}
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    layers: Int[Tensor, " node"]
    heads: Int[Tensor, " node"]
    positions: tuple[str, ...]
    effect: Float[Tensor, " node"]
    strength: Float[Tensor, " node"]
    exact: Float[Tensor, " node"]
    clean: float
    corrupt: float
    pairs: int

    @functools.cached_property
    def order(self) -> Int[Tensor, " node"]:
        """The strongest first."""
        return self.strength.argsort(descending=True, stable=True)

    def agreement(self) -> dict[str, float]:
        """Beside what was exchanged in earnest: Spearman's correlation of strengths with sizes of true effects, and how
        many of the truly strongest tenth (at least three) are among as many that are told strongest."""
        tried = ~self.exact.isnan()
        told, true = self.strength[tried], self.exact[tried].abs()
        count = max(3, len(true) // 10)
        if len(true) < 2 * count:
            return {"tried": len(true), "rank correlation": float("nan"), "recall of the strongest": float("nan")}
        both = {*told.topk(count).indices.tolist()} & {*true.topk(count).indices.tolist()}
        correlation = float(pd.Series(told.numpy()).corr(pd.Series(true.numpy()), "spearman"))
        return {"tried": len(true), "rank correlation": correlation, "recall of the strongest": len(both) / count}

    @property
    def note(self) -> str:
        told = self.agreement()
        return (
            f"first-order effects on the lead of the clean answer, in logits ({self.clean:.2f} clean, "
            f"{self.corrupt:.2f} corrupt), pairs: {self.pairs}; of {told['tried']} exchanged in earnest rank "
            f"correlation {told['rank correlation']:.2f}, recall of the strongest {told['recall of the strongest']:.2f}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each component, the strongest first."""
        numbers = {name: getattr(self, name)[self.order].tolist() for name in ("effect", "strength", "exact")}
        told = {"component": self.names, "kind": self.kinds, "positions": self.positions}
        labels = {name: [some[n] for n in self.order.tolist()] for name, some in told.items()}
        places = {"layer": self.layers[self.order].tolist(), "head": self.heads[self.order].tolist()}
        return self.identified(pd.DataFrame({**labels, **places, **numbers}))


@explained
@in_one_go
def attribution_patching(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    *,
    nodes: Sequence[str] = ("z", "mlp"),
    positions: Sequence[str] = (),
    qk_fix: bool = True,
    steps: int = 1,
    drop: bool = True,
    exact: int = 30,
    seed: int = 0,
    progress: bool = False,
) -> Components:
    """Tell for every head and MLP what it carries of the difference between clean and corrupt runs.

    Args:
        vlm: the model.
        pairs: clean and corrupt examples with their answers, as long as each other (`causal_trace`).
        nodes: kinds of them: what heads write (`z`) and read by (`q`, `k`, `v`), `mlp`. Keys and values are those of
            key-value heads, which several heads may share.
        positions: classes of them in which each is told for itself, such as `["image", "question", "last"]`: roles,
            `last` and `predicting` (`Places`). By default each is told for all positions together.
        qk_fix: compute patterns anew for `q` and `k`, instead of a derivative through the softmax.
        steps: along the way from the corrupt inputs to the clean ones; 1 takes the derivative in the clean run.
        drop: leave out the derivative through each layer in turn, a way back for each; not with several steps.
        exact: how many components are exchanged in earnest, drawn at random, for each pair.
        seed: of that.
        progress: show a progress bar.

    Raises:
        InputError: no pairs, no such nodes, examples of other lengths, answers that begin alike, or no steps.
        SiteError: a model without heads that can be seen.
        ModelError: no gradients.
    """
    need_seed(seed)
    need_kinds(nodes)
    need_classes(positions)
    if not pairs or steps < 1 or exact < 0:
        raise InputError(f"give a pair or more, 1 step or more; got {len(pairs)} pairs, steps={steps}, exact={exact}")
    targets = [target_of_pair(vlm, pair, ["difference"], "token", None) for pair in pairs]
    every, found, true = nodes_of(vlm, pairs[0][0], nodes, tuple(positions) or ("",)), [], []
    tried = torch.randperm(len(every), generator=torch.Generator().manual_seed(int(seed)))[:exact]
    leads = list[Tensor]()
    for pair, target in tqdm([*zip(pairs, targets, strict=True)], desc="pairs", disable=not progress, leave=False):
        found.append(_Effects(vlm, pair, target, every, qk_fix).found(steps, drop and steps == 1))
        runs = _run(vlm, pair, target)
        leads.append(runs.whole[:, 0])
        true.append(_exchanged(runs, [every[n] for n in tried.tolist()]))
    effect, strength = torch.stack(found).mean(0).unbind()
    kept = torch.full((len(every),), torch.nan)
    kept[tried] = torch.stack(true).mean(0).float() if exact else kept[tried]
    clean, corrupt = torch.stack(leads).mean(0).tolist()
    told = {
        "nodes": tuple(nodes),
        "positions": tuple(positions),
        "qk_fix": qk_fix,
        "steps": steps,
        "drop": drop and steps == 1,
    }
    return Components(
        **_labels(every),
        effect=effect.float(),
        strength=strength.float(),
        exact=kept,
        clean=clean,
        corrupt=corrupt,
        pairs=len(pairs),
        provenance=vlm.provenance("attribution_patching", *(x for pair in pairs for x in pair), seed=seed, **told),
    )


def _labels(nodes: Sequence[Node]) -> dict[str, Any]:
    return {
        "names": tuple(node.name for node in nodes),
        "kinds": tuple(node.kind for node in nodes),
        "layers": torch.tensor([node.layer for node in nodes]),
        "heads": torch.tensor([node.head for node in nodes]),
        "positions": tuple(node.at for node in nodes),
    }


@torch.no_grad()
def _run(vlm: HookedVLM, pair: Pair, target: Target) -> Runs:
    return Runs(vlm, pair, target)


@torch.no_grad()
def _exchanged(runs: Runs, nodes: Sequence[Node]) -> Float[Tensor, " place"]:
    """What the lead loses by each node alone."""
    lost = [
        runs.clean.untouched.values[0, 0] - under(runs.clean, exchange([node], runs.corrupt.x))[0].values[0, 0]
        for node in nodes
    ]
    return torch.stack(lost) if lost else torch.empty(0, dtype=torch.float64)


class _Effects:
    """First-order effects of one pair."""

    def __init__(self, vlm: HookedVLM, pair: Pair, target: Target, nodes: Sequence[Node], qk_fix: bool = True) -> None:
        self.vlm, self.nodes = vlm, nodes
        self._heads = Counter(site for site, _ in {(node.site, node.head) for node in nodes})
        self._at = {node.at: placed(pair[0], node.at or None, pair[0].length) for node in nodes}
        kinds = {node.site: node.kind for node in nodes}
        anew = [kind for kind in ("q", "k") if qk_fix and kind in kinds.values()]
        self._read = {site: _written_at(site) if kind in anew else site for site, kind in kinds.items()}
        self._sites = sorted({*self._read.values()})
        self.leads = Leads(vlm, pair, target, [*dict.fromkeys([*self._sites, *self._read])])
        before, after = self.leads.before, self.leads.after
        self._gap = {site: (before[site] - after[site]).double() for site, kind in kinds.items() if kind not in anew}
        for kind in anew:
            self._gap |= self._written_otherwise([site for site, own in kinds.items() if own == kind])

    @torch.no_grad()
    def _written_otherwise(self, sites: Sequence[str]) -> dict[str, Tensor]:
        """What heads write in the clean run less what they write with queries, or keys, of the corrupt run.

        The stream is held at every block, so that all else that a pattern is made of is as it is in the clean run.
        """
        vlm, clean = self.vlm, self.leads.clean
        streams = [f"blocks.{layer}.hook_resid_pre" for layer in range(vlm.depth)]
        held = vlm.capture(clean, streams)
        edits = {name: functools.partial(_instead, held[name]) for name in streams}
        edits |= {site: functools.partial(_instead, self.leads.after[site]) for site in sites}
        found = vlm.capture(clean, [_written_at(site) for site in sites], edits=edits)
        return {s: (self.leads.before[at] - found[at]).double() for s in sites for at in [_written_at(s)]}

    def found(self, steps: int, drop: bool) -> Float[Tensor, "kind place"]:
        """Effects and strengths."""
        if not drop:  # one graph at a time
            each = [self._products(next(self._derivatives(share / steps))) for share in range(1, steps + 1)]
            effect = torch.stack(each).mean(0)
            return torch.stack([effect, effect.abs()])
        derivatives = self._derivatives(1.0)
        effect = self._products(next(derivatives))
        sizes = torch.stack([self._products(one).abs() for one in derivatives])  # without each layer in turn
        own = torch.tensor([[layer == node.layer for node in self.nodes] for layer in range(len(sizes))])
        return torch.stack([effect, sizes.masked_fill(own, 0).sum(0) / max(1, len(sizes) - 1)])

    def _products(self, derivatives: Sequence[Tensor]) -> Float[Tensor, " place"]:
        """Each node's states' difference, times the derivative by them."""
        by = dict(zip(self._sites, derivatives, strict=True))
        each = {site: (gap * by[self._read[site]].double()).sum(0).cpu() for site, gap in self._gap.items()}
        sums = {(site, at): some[here].sum(0) for site, some in each.items() for at, here in self._at.items()}
        return torch.stack([_own(node, sums[node.site, node.at], self._heads[node.site]) for node in self.nodes])

    def _derivatives(self, share: float) -> Iterator[list[Tensor]]:
        """Of the lead by each site's states, this far on the way from the corrupt inputs; then without each layer."""
        added = [name for name in self.vlm.sites if _in_block(name, ("hook_attn_out", "hook_mlp_out"))]
        lead, found = self.leads.graph([*dict.fromkeys([*self._sites, *added])], share)
        with torch.inference_mode(False), torch.enable_grad():
            back = functools.partial(_back, lead, [found[name] for name in self._sites])
            yield back([])
            for layer in range(self.vlm.depth):
                yield back([found[name] for name in added if layer_of(name) == layer])


def _written_at(site: str) -> str:
    """Where the heads of a site's layer write."""
    return Node(int(site.split(".")[1]), 0, "z").site


def _in_block(name: str, endings: tuple[str, ...]) -> bool:
    return name.startswith("blocks.") and name.partition(".")[2].partition(".")[2] in endings


def _instead(new: Tensor, value: Tensor) -> Tensor:
    return new.to(value, copy=True)  # the model may write over it


def _own(node: Node, sums: Tensor, heads: int) -> Float[Tensor, ""]:
    """A node's share of products; those of heads that read one key-value head together are that one's."""
    return sums.sum() if node.kind == "mlp" else sums.unflatten(0, (heads, -1))[node.head].sum()


def _back(lead: Tensor, inputs: Sequence[Tensor], without: Sequence[Tensor]) -> list[Tensor]:
    """Derivatives, where nothing goes back through some values."""
    with stopped(without):
        found = torch.autograd.grad(lead, inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(of) if one is None else one for one, of in zip(found, inputs, strict=True)]
