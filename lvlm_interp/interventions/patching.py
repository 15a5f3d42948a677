"""Which heads and MLPs carry the difference between two runs, told for all of them at once by derivatives.

Attribution patching (Nanda 2023): putting a component's states of the corrupt run into the clean one would take about
(clean − corrupt) · ∂m/∂(its states) from m, the logit of the clean answer's first token less the corrupt one's. With
`steps` the derivative is the mean along a way from the corrupt inputs to the clean ones (EAP-IG's: Hanna et al. 2024,
arXiv 2403.17806, with the clean end among its points). Where a component's direct and indirect effects cancel, their
sum hides it: with `drop` its strength is the mean, over layers, of its effect's size with the derivative through that
layer left out (AtP*'s GradDrop: Kramár et al. 2024, arXiv 2403.00745).

It is a guess: some components are exchanged in earnest, and how both agree stands on the result.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.attribution.value import Target
from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.fields import POSITIVE, Range
from lvlm_interp.given import explained, need_seed
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.interventions.intervention import Intervention
from lvlm_interp.interventions.places import layer_of
from lvlm_interp.interventions.states import Patch
from lvlm_interp.interventions.sweep import under
from lvlm_interp.interventions.tracing import Pair, Runs, target_of_pair
from lvlm_interp.model.choice import axes_of
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.hooks import stopped
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result

EMBEDDED, HEADS, MLPS, ATTENTION = (
    "hook_embed",
    "blocks.*.attn.hook_z",
    "blocks.*.hook_mlp_out",
    "blocks.*.hook_attn_out",
)
MLP = -1  # in the place of a head's number


@dataclass(frozen=True)
class Components(Result):
    """What each head and MLP carries of the difference between clean and corrupt runs, to first order.

    Attributes:
        names: `L12H3`, `L12 MLP`.
        layers, heads: where each is; the head of an MLP is -1.
        effect: what the clean answer's lead would lose, if the component had its states of the corrupt run: the mean
            over pairs, in logits.
        strength: how large that is, whatever cancels: what components are ranked by.
        exact: what it does lose, for those that were exchanged in earnest; NaN for others.
        clean, corrupt: the mean lead in the two runs.
        pairs: how many there are.
    """

    along: ClassVar[Mapping[str, str]] = {"names": "node"}
    blank: ClassVar[frozenset[str]] = frozenset({"exact"})
    ranges: ClassVar[Mapping[str, Range]] = {"strength": POSITIVE, "pairs": POSITIVE}
    names: tuple[str, ...]
    layers: Int[Tensor, " node"]
    heads: Int[Tensor, " node"]
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
        names = [self.names[n] for n in self.order.tolist()]
        places = {"layer": self.layers[self.order].tolist(), "head": self.heads[self.order].tolist()}
        return self.identified(pd.DataFrame({"component": names, **places, **numbers}))


@explained
@in_one_go
def attribution_patching(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    *,
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
        steps: along the way from the corrupt inputs to the clean ones; 1 takes the derivative in the clean run.
        drop: leave out the derivative through each layer in turn, a way back for each; not with several steps.
        exact: how many components are exchanged in earnest, drawn at random, for each pair.
        seed: of that.
        progress: show a progress bar.

    Raises:
        InputError: no pairs, examples of other lengths, answers that begin alike, or no steps.
        SiteError: a model without heads that can be seen.
        ModelError: no gradients.
    """
    need_seed(seed)
    if not pairs or steps < 1 or exact < 0:
        raise InputError(f"give a pair or more, 1 step or more; got {len(pairs)} pairs, steps={steps}, exact={exact}")
    targets = [target_of_pair(vlm, pair, ["difference"], "token", None) for pair in pairs]
    places, found, true = places_of(vlm, pairs[0][0]), [], []
    tried = torch.randperm(len(places), generator=torch.Generator().manual_seed(int(seed)))[:exact]
    leads = list[Tensor]()
    for pair, target in tqdm([*zip(pairs, targets, strict=True)], desc="pairs", disable=not progress, leave=False):
        found.append(_Effects(vlm, pair, target, places).found(steps, drop and steps == 1))
        runs = _run(vlm, pair, target)
        leads.append(runs.whole[:, 0])
        true.append(_exchanged(runs, [places[n] for n in tried.tolist()]))
    effect, strength = torch.stack(found).mean(0).unbind()
    kept = torch.full((len(places),), torch.nan)
    kept[tried] = torch.stack(true).mean(0).float() if exact else kept[tried]
    clean, corrupt = torch.stack(leads).mean(0).tolist()
    both = [x for pair in pairs for x in pair]
    return Components(
        names=tuple(map(named, places)),
        layers=torch.tensor([layer for layer, _ in places]),
        heads=torch.tensor([head for _, head in places]),
        effect=effect.float(),
        strength=strength.float(),
        exact=kept,
        clean=clean,
        corrupt=corrupt,
        pairs=len(pairs),
        provenance=vlm.provenance("attribution_patching", *both, seed=seed, steps=steps, drop=drop and steps == 1),
    )


Place = tuple[int, int]
"""A layer, and a head or `MLP`."""


def named(place: Place) -> str:
    layer, head = place
    return f"L{layer} MLP" if head == MLP else f"L{layer}H{head}"


def exchange(places: Sequence[Place], source: Any) -> Intervention:
    """Components with their states of another run."""
    heads, mlps = [one for one in places if one[1] != MLP], [layer for layer, head in places if head == MLP]
    patches: list[Intervention] = []
    if heads:
        patches.append(Patch(HEADS, heads=heads, source=source))
    if mlps:
        patches.append(Patch(MLPS, layers=mlps, source=source))
    return functools.reduce(lambda one, other: one + other, patches)


@torch.no_grad()
def _run(vlm: HookedVLM, pair: Pair, target: Target) -> Runs:
    return Runs(vlm, pair, target)


@torch.no_grad()
def _exchanged(runs: Runs, places: Sequence[Place]) -> Float[Tensor, " place"]:
    """What the lead loses by each component alone."""
    lost = [
        runs.clean.untouched.values[0, 0] - under(runs.clean, exchange([place], runs.corrupt.x))[0].values[0, 0]
        for place in places
    ]
    return torch.stack(lost) if lost else torch.empty(0, dtype=torch.float64)


@torch.no_grad()
def places_of(vlm: HookedVLM, x: Inputs) -> list[Place]:
    """Every head and MLP, layer by layer."""
    sites = [name for name in vlm.sites if _in_block(name, ("attn.hook_z", "hook_mlp_out"))]
    if not any(name.endswith("hook_z") for name in sites):
        raise SiteError(f"{vlm.name!r} has no heads that can be seen")
    found = vlm.capture(x, sites, positions=[0])
    places = list[Place]()
    for layer in range(vlm.depth):
        if (z := found.get(f"blocks.{layer}.attn.hook_z")) is not None:
            places += [(layer, head) for head in range(z.shape[axes_of("blocks.0.attn.hook_z")[1]])]
        places += [(layer, MLP)] if f"blocks.{layer}.hook_mlp_out" in found else []
    return places


def _in_block(name: str, endings: tuple[str, ...]) -> bool:
    return name.startswith("blocks.") and name.partition(".")[2].partition(".")[2] in endings


class _Effects:
    """First-order effects of one pair."""

    def __init__(self, vlm: HookedVLM, pair: Pair, target: Target, places: Sequence[Place]) -> None:
        self.vlm, (self.clean, self.corrupt), self.places = vlm, pair, places
        self._tokens = [int(pair[0].answer_ids[0]), target.search.ids[0][0][0]]
        self._sites = sorted({self._site(place) for place in places})
        with torch.no_grad():
            before, after = (vlm.capture(x, [EMBEDDED, *self._sites]) for x in (self.clean, self._corrupt))
        self._gap = {name: (before[name] - after[name]).double() for name in self._sites}
        self._ends = after[EMBEDDED], before[EMBEDDED]

    @property
    def _corrupt(self) -> Inputs:
        """Answered with the clean answer, so that positions are each other's."""
        clean = self.clean
        return self.corrupt.with_answer(clean.answer_ids.tolist(), clean.answer_tokens, clean.answer)

    def _site(self, place: Place) -> str:
        return f"blocks.{place[0]}.hook_mlp_out" if place[1] == MLP else f"blocks.{place[0]}.attn.hook_z"

    def found(self, steps: int, drop: bool) -> Float[Tensor, "kind place"]:
        """Effects and strengths."""
        if not drop:  # one graph at a time
            each = [self._products(next(self._derivatives(share / steps))) for share in range(1, steps + 1)]
            effect = torch.stack(each).mean(0)
            return torch.stack([effect, effect.abs()])
        derivatives = self._derivatives(1.0)
        effect = self._products(next(derivatives))
        sizes = torch.stack([self._products(one).abs() for one in derivatives])  # without each layer in turn
        own = torch.tensor([[layer == place[0] for place in self.places] for layer in range(len(sizes))])
        return torch.stack([effect, sizes.masked_fill(own, 0).sum(0) / max(1, len(sizes) - 1)])

    def _products(self, derivatives: Sequence[Tensor]) -> Float[Tensor, " place"]:
        """Each component's states' difference, times the derivative by them."""
        sums = {
            name: (self._gap[name] * by.double()).flatten(0, 1).sum(0)
            for name, by in zip(self._sites, derivatives, strict=True)
        }
        found = [
            sums[self._site(place)].sum() if place[1] == MLP else sums[self._site(place)][place[1]].sum()
            for place in self.places
        ]
        return torch.stack(found).cpu()

    def _derivatives(self, share: float) -> Iterator[list[Tensor]]:
        """Of the lead by each site's states, this far on the way from the corrupt inputs; then without each layer."""
        corrupt, clean = self._ends
        start = torch.lerp(corrupt.float(), clean.float(), share).to(clean.dtype)
        added = [name for name in self.vlm.sites if _in_block(name, ("hook_attn_out", "hook_mlp_out"))]
        found = self.vlm.capture(
            self.clean,
            [*dict.fromkeys([*self._sites, *added])],
            grad=True,
            edits={EMBEDDED: lambda value: start.to(value)},
        )
        with torch.inference_mode(False), torch.enable_grad():
            row = found["logits"][0, self.clean.answer_start - 1].double()
            lead = row[self._tokens[0]] - row[self._tokens[1]]
            back = functools.partial(_back, lead, [found[name] for name in self._sites])
            yield back([])
            for layer in range(self.vlm.depth):
                yield back([found[name] for name in added if layer_of(name) == layer])


def _back(lead: Tensor, inputs: Sequence[Tensor], without: Sequence[Tensor]) -> list[Tensor]:
    """Derivatives, where nothing goes back through some values."""
    with stopped(without):
        found = torch.autograd.grad(lead, inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(of) if one is None else one for one, of in zip(found, inputs, strict=True)]
