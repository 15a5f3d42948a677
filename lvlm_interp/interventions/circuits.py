"""How much of a model a behaviour takes: components are kept in an order, and all others have the corrupt run's states.

Faithfulness of a circuit C is (m(C) − m(none)) / (m(all) − m(none)), where m is the lead of the clean answer and `none`
has every head and MLP exchanged; completeness is the same of what is left without C, and should fall to 0. Means over
pairs are divided by each other, not the pairs' quotients. Areas over the share of components that is kept, or over its
logarithm: CPR under faithfulness (higher is better), CMD under its distance from 1 (lower is better), as in MIB
(Mueller et al. 2025, arXiv 2504.13151), whose circuits are of edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.bootstrap import bootstrap_weights, interval
from lvlm_interp.columns import Column, numbered
from lvlm_interp.errors import InputError
from lvlm_interp.fields import POSITIVE, Range
from lvlm_interp.given import explained, need_seed
from lvlm_interp.interventions.nodes import KINDS, Node, exchange, node_named, nodes_of
from lvlm_interp.interventions.patching import Components
from lvlm_interp.interventions.sources import remembering
from lvlm_interp.interventions.sweep import under
from lvlm_interp.interventions.tracing import Pair, Runs, target_of_pair
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result

Order = Components | Sequence[str]
"""Components with their strengths, or the names of all, the first to be kept first."""
SIZES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.5)
RANDOM = "random"
SHOWN = 4  # names that a message lists


@dataclass(frozen=True)
class Circuits(Result):
    """Faithfulness of the first components of several orders.

    Attributes:
        orders: names of the orders; the last is `random`, the null.
        sizes: shares of the components that are kept.
        kept: how many that is.
        faithfulness: of these alone, `[order, size]`; with its interval, `low` and `high`, NaN of one pair.
        completeness: of all the others, without these.
        whole, nothing: the mean lead with all components, and with none, in logits.
        pairs: how many there are.
        confidence: of the intervals.
    """

    along: ClassVar[Mapping[str, str]] = {"orders": "order", "sizes": "size"}
    blank: ClassVar[frozenset[str]] = frozenset({"low", "high"})
    ranges: ClassVar[Mapping[str, Range]] = {"sizes": (0, 1), "kept": POSITIVE, "pairs": POSITIVE}
    orders: tuple[str, ...]
    sizes: tuple[float, ...]
    kept: Int[Tensor, " size"]
    faithfulness: Float[Tensor, "order size"]
    low: Float[Tensor, "order size"]
    high: Float[Tensor, "order size"]
    completeness: Float[Tensor, "order size"]
    whole: float
    nothing: float
    pairs: int
    confidence: float

    @property
    def note(self) -> str:
        return (
            f"lead of the clean answer {self.whole:.2f} with all components, {self.nothing:.2f} with none, in logits; "
            f"pairs: {self.pairs}"
        )

    def areas(self, log: bool = False) -> pd.DataFrame:
        """CPR and CMD of each order, over the share that is kept or, with `log`, its logarithm; 0 and 1 are ends."""
        shares = torch.tensor([0.0, *self.sizes, 1.0]).double()
        values = torch.nn.functional.pad(self.faithfulness.double(), (1, 0), value=0.0)
        values = torch.nn.functional.pad(values, (0, 1), value=1.0)
        if log:
            shares, values = shares[1:].log(), values[:, 1:]
        width = float(shares[-1] - shares[0])
        cpr, cmd = (torch.trapezoid(some, shares, dim=1) / width for some in (values, (1 - values).abs()))
        return pd.DataFrame({"order": self.orders, "CPR": cpr.tolist(), "CMD": cmd.tolist()})

    def to_frame(self) -> pd.DataFrame:
        """One row for each order and size."""
        index = pd.MultiIndex.from_product([self.orders, self.sizes], names=["order", "size"])
        names = ("faithfulness", "low", "high", "completeness")
        frame = pd.DataFrame(
            {name: getattr(self, name).flatten().tolist() for name in names}, index=index
        ).reset_index()
        frame.insert(2, "kept", self.kept.tolist() * len(self.orders))
        return self.identified(frame)


@explained
@in_one_go
@torch.no_grad()
def circuits(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    ranked: Order | Mapping[str, Order],
    sizes: Sequence[float] = SIZES,
    *,
    groups: Column | None = None,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Circuits:
    """Keep the strongest components, and see how much of the behaviour they make.

    Take other pairs than those that the components were ranked by.

    Args:
        vlm: the model.
        pairs: clean and corrupt examples with their answers, as long as each other.
        ranked: from `attribution_patching`, or names of heads and MLPs in an order of your own (`L12H3`, `L12 MLP`):
            all of those kinds, each once. Several by name.
        sizes: shares of the components that are kept.
        groups: which pairs are not independent; by default each is alone.
        confidence: of the intervals.
        samples: of the bootstrap.
        seed: of the random order and of the bootstrap.
        progress: show a progress bar.

    Raises:
        InputError: no pairs or sizes, components of another model, names that are not all, or a lead that all
            components do not change.
    """
    need_seed(seed)
    named = dict(ranked) if isinstance(ranked, Mapping) else {"components": ranked}
    numbers = torch.arange(len(pairs)) if groups is None else numbered(groups)
    if not pairs or not named or not sizes or not all(0 < size < 1 for size in sizes) or len(numbers) != len(pairs):
        raise InputError(
            f"{len(pairs)} pairs, {len(numbers)} groups, orders {[*named]}, sizes {list(sizes)}: give at least one of "
            "each, a group for each pair or none, and sizes between 0 and 1"
        )
    ordered = {name: _names(vlm, one) for name, one in named.items()}
    nodes = nodes_of(vlm, pairs[0][0], *_asked(ordered))
    orders = _orders(ordered, nodes, seed)
    counts = [max(1, round(size * len(nodes))) for size in sizes]
    leads = [
        _leads(Runs(vlm, pair, target_of_pair(vlm, pair, ["difference"], "token", None)), nodes, orders, counts)
        for pair in tqdm(pairs, desc="pairs", disable=not progress, leave=False)
    ]
    kept, ends = (torch.stack(some) for some in zip(*leads, strict=True))
    told = {"sizes": list(sizes), "samples": samples, "orders": [*named]}
    return Circuits(
        orders=(*named, RANDOM),
        sizes=tuple(sizes),
        kept=torch.tensor(counts),
        **_shares(kept, ends, numbers, confidence, samples, seed),
        whole=float(ends[:, 0].mean()),
        nothing=float(ends[:, 1].mean()),
        pairs=len(pairs),
        confidence=confidence,
        provenance=vlm.provenance("circuits", *(x for pair in pairs for x in pair), seed=seed, **told),
    )


def _names(vlm: HookedVLM, order: Order) -> list[str]:
    """The first to be kept first.

    Raises:
        InputError: they are of another model.
    """
    if not isinstance(order, Components):
        return list(order)
    if order.provenance.weights != vlm.identity:
        raise InputError("components were ranked in another model, or in this one before its weights changed")
    return [order.names[n] for n in order.order.tolist()]


def _asked(ordered: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """The kinds, and classes of positions, of all that is ordered."""
    there = [node_named(name) for names in ordered.values() for name in names]
    kinds = {node.kind for node in there}
    return [kind for kind in KINDS if kind in kinds], [*dict.fromkeys(node.at for node in there)]


def _orders(ordered: Mapping[str, Sequence[str]], nodes: Sequence[Node], seed: int) -> list[list[int]]:
    """Numbers of nodes, the first to be kept first; the last order is random.

    Raises:
        InputError: an order is not of all these nodes, each once.
    """
    numbers = {node.name: n for n, node in enumerate(nodes)}
    for order, names in ordered.items():
        if sorted(names) != sorted(numbers):
            odd = sorted({*names} ^ {*numbers})[:SHOWN] or "one twice"
            raise InputError(
                f"the order {order!r} has {len(names)} names; like all orders it takes {len(numbers)} components, "
                f"all of these kinds and positions, each once. Of one alone: {odd}"
            )
    drawn = torch.randperm(len(nodes), generator=torch.Generator().manual_seed(int(seed)))
    return [*([numbers[name] for name in names] for names in ordered.values()), drawn.tolist()]


def _leads(
    runs: Runs, nodes: Sequence[Node], orders: Sequence[Sequence[int]], counts: Sequence[int]
) -> tuple[Float[Tensor, "kind order size"], Float[Tensor, " end"]]:
    """The lead with the first of each order alone, and with all others; and with everything, and with nothing."""
    run, source = runs.clean, runs.corrupt.x
    with remembering(run.vlm, exchange(nodes, source).reads(run.vlm, run.x)):

        def without(gone: Sequence[int]) -> Tensor:
            return under(run, exchange([nodes[n] for n in gone], source))[0].values[0, 0]

        kept = [[without(order[count:]) for count in counts] for order in orders]
        left = [[without(order[:count]) for count in counts] for order in orders]
        ends = torch.stack([run.untouched.values[0, 0], without(range(len(nodes)))])
    return torch.stack([torch.stack([torch.stack(row) for row in some]) for some in (kept, left)]), ends


def _shares(
    leads: Float[Tensor, "pair kind order size"],
    ends: Float[Tensor, "pair end"],
    groups: Int[Tensor, " pair"],
    confidence: float,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Means divided by means, over pairs as they are drawn.

    Raises:
        InputError: all components together change next to nothing.
    """
    whole, nothing = ends.mean(0)
    if abs(float(whole - nothing)) < 0.1:
        raise InputError(f"the lead is {float(whole):.3f} with all components and {float(nothing):.3f} with none")
    drawn = bootstrap_weights(groups, samples, torch.Generator().manual_seed(int(seed))).double()
    gained = torch.einsum("sp,pkoz->skoz", drawn, leads - ends[:, 1, None, None, None])
    shares = gained / (drawn @ (ends[:, 0] - ends[:, 1]))[:, None, None, None]
    low, high = interval(shares[:, 0].flatten(1).T, confidence, int(groups.max()) + 1)
    shape = leads.shape[2:]
    kept, left = shares[0].float()
    return {
        "faithfulness": kept,
        "completeness": left,
        "low": low.view(shape).float(),
        "high": high.view(shape).float(),
    }
