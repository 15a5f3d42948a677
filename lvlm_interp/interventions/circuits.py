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
from lvlm_interp.interventions.nodes import KINDS, Node, exchange, nodes_of
from lvlm_interp.interventions.patching import Components
from lvlm_interp.interventions.sources import remembering
from lvlm_interp.interventions.sweep import under
from lvlm_interp.interventions.tracing import Pair, Runs, target_of_pair
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result

SIZES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.5)
RANDOM = "random"


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
    ranked: Components | Mapping[str, Components],
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
        ranked: from `attribution_patching`; several by name.
        sizes: shares of the components that are kept.
        groups: which pairs are not independent; by default each is alone.
        confidence: of the intervals.
        samples: of the bootstrap.
        seed: of the random order and of the bootstrap.
        progress: show a progress bar.

    Raises:
        InputError: no pairs or sizes, components of another model, or a lead that all components do not change.
    """
    need_seed(seed)
    named = {"components": ranked} if isinstance(ranked, Components) else dict(ranked)
    numbers = torch.arange(len(pairs)) if groups is None else numbered(groups)
    if not pairs or not named or not sizes or not all(0 < size < 1 for size in sizes) or len(numbers) != len(pairs):
        raise InputError(
            f"{len(pairs)} pairs, {len(numbers)} groups, orders {[*named]}, sizes {list(sizes)}: give at least one of "
            "each, a group for each pair or none, and sizes between 0 and 1"
        )
    nodes = nodes_of(vlm, pairs[0][0], [kind for kind in KINDS if any(kind in one.kinds for one in named.values())])
    orders = _orders(vlm, named, nodes, seed)
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


def _orders(vlm: HookedVLM, named: Mapping[str, Components], nodes: Sequence[Node], seed: int) -> list[list[int]]:
    """The strongest first, of each; the last is random.

    Raises:
        InputError: they are of another model, or not all of the same components.
    """
    own, names = list(named.values()), tuple(node.name for node in nodes)
    if any(one.provenance.weights != vlm.identity or one.names != names for one in own):
        raise InputError(
            "components were ranked in another model, or in this one before its weights changed, or several orders are "
            "not of the same components (nodes=)"
        )
    drawn = torch.randperm(len(nodes), generator=torch.Generator().manual_seed(int(seed)))
    return [*(one.order.tolist() for one in own), drawn.tolist()]


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
