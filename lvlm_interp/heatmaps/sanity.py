"""Whether a map depends on what it is said to explain: on the weights, and on the answer.

A map that stays when the model's weights are shuffled shows the picture, and not the model; one that stays when another
answer is explained shows what the model looks at, and not why it said this (Adebayo et al. 2018, Sanity Checks for
Saliency Maps: cascading randomisation; their labels are those of training, a foil here).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.columns import Column
from lvlm_interp.compat import recounted
from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.fields import Range
from lvlm_interp.given import explained, need_seed, whole
from lvlm_interp.heatmaps.attribute import attribute
from lvlm_interp.heatmaps.method import Method
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.quantised import stored_otherwise
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result

UNPLAIN: Mapping[str, Callable[[Tensor], bool]] = {
    "is not in memory but on disk, or offloaded, where its numbers cannot change places: open the model without "
    "device_map= to shuffle it": lambda weight: weight.is_meta,
    "was made in torch.inference_mode(), and cannot be written to: open the model outside of it": lambda weight: (
        weight.is_inference()
    ),
    "is one number that stands for many, and has no places: give each its own, weight.clone()": lambda weight: any(
        size > 1 and step == 0 for size, step in zip(weight.shape, weight.stride(), strict=True)
    ),
}
"""Why the numbers of a weight cannot change places."""


@dataclass(frozen=True)
class Sanity(Result):
    """Rank correlations of a map with those of the same method that should be others; near 0 is good.

    Attributes:
        tokens: the parts of the answer, as text.
        blocks: how many blocks of the language model were shuffled, counted from the last.
        weights: Spearman's correlation over patches with the map of the shuffled model, `[answer, step]`.
        foil: the same with the map of the foil's first part, `[answer]`; NaN without a foil.
        foils: the foil, as text; empty if there is none.
    """

    along: ClassVar[dict[str, str]] = {"tokens": "answer", "blocks": "step"}
    ranges: ClassVar[dict[str, Range]] = dict.fromkeys(("weights", "foil"), (-1 - 1e-6, 1 + 1e-6))
    blank: ClassVar[frozenset[str]] = frozenset({"weights", "foil"})
    tokens: tuple[str, ...]
    blocks: tuple[int, ...]
    weights: Float[Tensor, "answer step"]
    foil: Float[Tensor, " answer"]
    foils: str = ""

    @property
    def note(self) -> str:
        rather = f", and of the answer {self.foils!r}" if self.foils else ""
        return f"rank correlation over patches with the map of shuffled weights{rather}; near 0 is good"

    def to_frame(self) -> pd.DataFrame:
        """One row for each part of the answer."""
        steps = {f"last {count} shuffled": self.weights[:, n].tolist() for n, count in enumerate(self.blocks)}
        foil = {f"rather {self.foils}": self.foil.tolist()} if self.foils else {}
        return self.identified(pd.DataFrame({"token": self.tokens, **steps, **foil}))


@explained
@in_one_go
def sanity(
    vlm: HookedVLM,
    x: Inputs,
    method: str | Method = "occlusion",
    *,
    foil: str | None = None,
    blocks: Column | None = None,
    seed: int = 0,
    **asked: Any,
) -> Sanity:
    """Compare a map with those of shuffled weights, block by block from the last, and with that of another answer.

    The numbers of every weight of a block change places, so that each has the distribution that it had. Afterwards the
    model is as it was, to the bit, whatever happened.

    Args:
        vlm: the model.
        x: an example with an image and an answer.
        method: as in `attribute`, and so are `asked`.
        foil: another answer to the same question; the map of its first part is compared, by the same `unit=`.
        blocks: how many blocks of the language model, from the last, are shuffled in each step; by default a quarter,
            half and all of them.
        seed: of the shuffling.
        asked: more of what `attribute` takes: `target=`, `unit=`, parameters of the method.

    Raises:
        InputError: more blocks than there are, or a foil that is the answer.
        ModelError: weights whose numbers have no places of their own to change: they are quantised, elsewhere than in
            memory, made in inference mode, or one number that stands for many.
    """
    need_seed(seed)
    steps = _steps(vlm, blocks)
    need_plain(vlm)
    if foil is not None and foil.strip() == x.answer.strip():
        raise InputError(f"the foil is the answer itself, {foil!r}: give another answer")
    rather = None if foil is None else vlm.answered(x, foil)
    own = attribute(vlm, x, method, **asked)
    other = None if rather is None else attribute(vlm, rather, method, **{**asked, **_first(asked)})
    found = []
    for count in steps:
        with shuffled(vlm, count, seed):
            found.append(ranks_alike(own, attribute(vlm, x, method, **asked)))
    told = {**own.provenance.parameters, "map": own.method, "blocks": steps, "foil": foil, "seed": seed}
    return Sanity(
        tokens=own.tokens,
        blocks=steps,
        weights=torch.stack(found, 1),
        foil=torch.full((len(own.tokens),), torch.nan) if other is None else ranks_alike(own, other, first=True),
        foils=foil or "",
        provenance=vlm.provenance("sanity", x, **told),
    )


def _first(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Which part of a foil is mapped, where one of the answer's is: its first, in the unit that one is told in."""
    told = asked.get("target") is not None or asked.get("against") is not None
    return {"target": 0, "unit": asked.get("unit") or "word"} if told else {}


def _steps(vlm: HookedVLM, blocks: Column | None) -> tuple[int, ...]:
    every = len(vlm.blocks)
    parts = (max(every // 4, 1), max(every // 2, 1), every)
    steps = tuple(dict.fromkeys(parts)) if blocks is None else tuple(map(whole, blocks))
    numbers = all(isinstance(count, int) and not isinstance(count, bool) for count in steps)
    if not steps or not numbers or len({*steps}) < len(steps) or not all(1 <= count <= every for count in steps):
        raise InputError(f"blocks are counts from 1 to {every}, each once; got {list(steps)}")
    return steps


def need_plain(vlm: HookedVLM) -> None:
    """Raise for weights that are no plain numbers in memory.

    Raises:
        ModelError: names one, and why it is none.
    """
    if name := next((name for name, _ in stored_otherwise(vlm.model)), None):
        raise ModelError(
            f"the weights of {name} are quantised, and their numbers have no places to change: open the model in "
            "bfloat16 to shuffle it, or compare with a foil's map yourself"
        )
    for number, block in enumerate(vlm.blocks):
        for name, weight in block.named_parameters():
            if why := next((why for why, of in UNPLAIN.items() if of(weight)), None):
                raise ModelError(f"{name} of block {number} {why}")


@contextlib.contextmanager
def shuffled(vlm: HookedVLM, count: int, seed: int) -> Iterator[None]:
    """Within the `with`, the numbers of every weight of the last blocks have changed places."""
    weights = {id(one): one for block in vlm.blocks[-count:] for one in block.parameters()}
    kept = [(weight, weight.detach().clone()) for weight in weights.values()]
    generator = torch.Generator().manual_seed(int(seed))
    counts = [(weight, weight._version) for weight, _ in kept if not weight.is_inference()]
    try:
        for weight, before in kept:
            places = torch.randperm(before.numel(), generator=generator).to(before.device)
            _write(weight, before.flatten()[places].view_as(before))
        yield
    finally:
        for weight, before in kept:
            _write(weight, before)
        for weight, count in counts:  # what was computed before is of these very numbers
            recounted(weight, count)


@torch.no_grad()
def _write(weight: nn.Parameter, numbers: Tensor) -> None:
    weight.copy_(numbers)


def ranks_alike(one: PatchMap, other: PatchMap, first: bool = False) -> Float[Tensor, " answer"]:
    """Spearman's correlation over patches of each part, or of each with the other's first; NaN where one is flat."""
    left, right = (patches.values.flatten(1).double() for patches in (one, other))
    right = right[:1].expand_as(left) if first else right
    ranked = [_ranks(side) for side in (left, right)]
    left, right = (side - side.mean(1, keepdim=True) for side in ranked)
    return ((left * right).sum(1) / (left.norm(dim=1) * right.norm(dim=1))).float()


def _ranks(values: Float[Tensor, "answer patch"]) -> Float[Tensor, "answer patch"]:
    """Ranks, equal ones shared."""
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(values.numpy(), axis=1))
