"""The few heads that look at the image much, and at one place of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import InputError
from lvlm_interp.fields import shown
from lvlm_interp.heatmaps.method import Kind, Method
from lvlm_interp.heatmaps.methods.attention import PATTERN, mapped
from lvlm_interp.model.finite import need_finite

Reading = Literal["paper", "code"]
Head = tuple[int, int]
"""Numbers of a layer and of one of its heads."""
Heads = Sequence[Sequence[int]] | np.ndarray
"""Several, a row each."""

ABOVE = 1e-3  # attention above the mean of the image's patches, from which a patch belongs to a place (code)
BOTTOM = 0.05  # attention to a patch of the bottom row, above which public code drops a head


@dataclass(frozen=True)
class LocalizationHeads(Method):
    """The mean attention of a few heads that look at one place, from the row that predicts the part's first token.

    A head counts if it looks at the image at least as much as the one at the elbow: with the heads' sums over the image
    in ascending order, the one farthest from the chord between the ends. Of these, heads whose largest number lies in
    the bottom row are dropped, as sinks are there. The rest are ordered by how scattered what they look at is: of
    relu(A − mean), patches above 0.001 that touch, also at corners, are one place, and the entropy of the places'
    shares says how many there are. The lowest come first; of equal ones, those of earlier layers.

    Heads are chosen for each part by this one example. The paper chooses once for a model, by how often each head is
    among the first over many samples: look at `chosen` (among the provenance's parameters: layer and head, by part) of
    such samples, and hand those that come back to `heads=`.

    Attributes:
        count: how many heads; fewer where fewer are left.
        reading: `paper`, as above. `code`: as the public code reads it, which takes the *number* of the head at the
            elbow, counted through all layers, and keeps heads of that number and above: those of later layers, whatever
            they look at. It drops heads that give any patch of the bottom row more than 0.05.
        heads: the heads to take, (layer, head), instead of choosing; negative layers count from the last.

    Raises:
        InputError: no head is left, or one that is not there.
    """

    name: ClassVar[str] = "localization_heads"
    kind: ClassVar[Kind] = "attention"
    cost: ClassVar[str] = "1"
    signed: ClassVar[bool] = False
    needs: ClassVar[str] = "attention through transformers' AttentionInterface"
    source: ClassVar[str] = "Kang et al. 2025 (localization heads); spatial entropy: Peruzzo et al. 2022"
    count: int = 3
    reading: Reading = "paper"
    heads: Heads | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1 or (self.heads is not None and not len(self.heads)):
            raise InputError(f"localization_heads takes the mean of 1 head or more; got {self.count}, {self.heads}")
        if self.heads is not None and not _are_pairs(self.heads):
            raise InputError(f"heads= has a (layer, head) for each, as ((12, 3), (14, 0)) has; got {shown(self.heads)}")

    def map(self, asked: Asked) -> PatchMap:
        rows = [asked.x.answer_start - 1 + part.start for part in asked.target.parts]
        captured = asked.vlm.capture(asked.x, PATTERN, positions=rows)
        need_finite(asked.vlm, asked.x, captured["logits"])
        looked = by_head(captured)
        names, patterns = [*looked], torch.stack([*looked.values()])
        given = None if self.heads is None else named(self.heads, names, asked.vlm.depth)
        chosen = [self._chosen(asked, one) if given is None else given for one in patterns.unbind(1)]
        mean = torch.stack([patterns[some, part].mean(0) for part, some in enumerate(chosen)])
        told = {"chosen": [[list(names[number]) for number in some] for some in chosen]}
        heads = None if given is None else [list(names[number]) for number in given]
        return mapped(asked, self.name, mean, {**self.parameters, "heads": heads, **told})

    def _chosen(self, asked: Asked, patterns: Float[Tensor, "head position"]) -> list[int]:
        """The numbers of the heads that are taken.

        Raises:
            InputError: none is left.
        """
        maps = (patterns @ asked.shares.T).view(-1, *asked.cells.shape)
        if chosen := ranked(maps, patterns @ asked.whole.double(), self.reading)[: self.count]:
            return chosen
        raise InputError(
            f"none of the {len(maps)} heads looks at one place of this image: those above the elbow look at its bottom "
            "row most, or at all patches alike. heads=((layer, head), …) takes the ones you name; 'attention' takes all"
        )


def _are_pairs(heads: Heads) -> bool:
    """Whether each of them is two whole numbers."""
    return {np.shape(one) for one in heads} == {(2,)} and np.asarray(heads).dtype.kind in "iu"


def by_head(found: Mapping[str, Tensor]) -> dict[Head, Float[Tensor, "row position"]]:
    """Patterns by layer and head, float64."""
    layers = {int(name.split(".")[1]): value[0].double().cpu() for name, value in found.items() if name != "logits"}
    return {(layer, head): one for layer, value in layers.items() for head, one in enumerate(value)}


def named(heads: Heads, names: Sequence[Head], depth: int) -> list[int]:
    """The numbers of heads that are told by layer and head.

    Raises:
        InputError: one that is not there, or is named twice.
    """
    wanted = [(int(layer) + depth * (layer < 0), int(head)) for layer, head in heads]
    if lost := [pair for pair in wanted if pair not in names]:
        raise InputError(f"there is no head {lost[0]}, (layer, head): layers are 0 to {depth - 1}; {_last_of(names)}")
    if len({*wanted}) < len(wanted):
        raise InputError(f"heads={wanted}: a head is named twice; give each once")
    return [names.index(pair) for pair in wanted]


def _last_of(names: Sequence[Head]) -> str:
    layer = names[-1][0]
    return f"layer {layer} has heads 0 to {names[-1][1]}"


def ranked(
    maps: Float[Tensor, "head row column"], sums: Float[Tensor, " head"], reading: Reading = "paper"
) -> list[int]:
    """The numbers of the heads that count, those that look at the fewest places first.

    Args:
        maps: what each looks at, in shares of attention.
        sums: how much each looks at the image.
        reading: the paper's, or that of the public code.
    """
    last = elbow(sums)
    kept = sums >= sums[last] if reading == "paper" else torch.arange(len(sums)) >= last
    looking = [number for number in kept.nonzero().flatten().tolist() if not at_bottom(maps[number], reading)]
    scattered = {number: spatial_entropy(maps[number]) for number in looking}
    return sorted((number for number in looking if math.isfinite(scattered[number])), key=lambda n: scattered[n])


def elbow(sums: Float[Tensor, " head"]) -> int:
    """The number of the head at the elbow of the sums in ascending order: farthest from the chord between the ends."""
    ascending, numbers = sums.sort(stable=True)
    chord = torch.linspace(float(ascending[0]), float(ascending[-1]), len(sums), dtype=sums.dtype)
    return int(numbers[(ascending - chord).abs().argmax()])


def at_bottom(looked: Float[Tensor, "row column"], reading: Reading = "paper") -> bool:
    """Whether a head looks at the bottom row most; a picture of one row has none."""
    if len(looked) == 1:
        return False
    return bool(looked[-1].max() >= looked.max() if reading == "paper" else looked[-1].max() > BOTTOM)


def spatial_entropy(looked: Float[Tensor, "row column"]) -> float:
    """The entropy of the places that a head looks at, in nats: 0 of one place, infinite of none."""
    from scipy.ndimage import label

    above = (looked - looked.mean()).clamp(min=0)
    places, count = label((above > ABOVE).numpy(), structure=[[1] * 3] * 3)
    if not count:
        return math.inf
    masses = torch.bincount(torch.from_numpy(places).flatten().long(), above.flatten(), count + 1)[1:]
    return float(torch.special.entr(masses / masses.sum()).sum())
