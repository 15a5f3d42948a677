"""How faithful maps are: whether the value follows when patches go, or come, in the order that a map gives them.

All maps are held to the same regions, whatever they were made of, and to random orders. For each substrate (what stands
in the place of a patch that is not seen), regions come one by one, those of the largest numbers first (insertion), and
go one by one (deletion). A map that says what matters lets the value rise early, and fall early. What is removed last,
first: the least relevant in front, is insertion read backwards, so both orders are here.

Deletion and insertion: Petsiuk et al. 2018 (RISE); ROAD is deletion on the substrate `road` (Rong et al. 2022);
comprehensiveness and sufficiency: DeYoung et al. 2020 (ERASER); sensitivity-n: Ancona et al. 2018. A method that
chooses regions by these very curves does well on them by itself: look at substrates that it did not use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from lvlm_interp.attribution.against import Against
from lvlm_interp.attribution.asked import Asked, asked_of, need_same_part, span_of
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.attribution.value import Value
from lvlm_interp.errors import InputError
from lvlm_interp.fields import Range
from lvlm_interp.given import explained, need_seed
from lvlm_interp.heatmaps.filling import TOKENS, Substrate
from lvlm_interp.heatmaps.game import Game
from lvlm_interp.heatmaps.hiding import named
from lvlm_interp.heatmaps.regions import Regions, regions_of
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Unit
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result, number_of

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Of the picture, over which comprehensiveness and sufficiency are means: ERASER's, by area."""
CENTRE = "centre"
"""A map that is none: the nearer to the middle, the more. Pictures show things there."""


@dataclass(frozen=True)
class Faithfulness(Result):
    """Curves of one part of an answer under several maps and substrates, and what random orders give.

    Attributes:
        token: the part, as text.
        maps: names of the maps; the last is `centre`, which is a prior and no map.
        substrates: what stood in the place of what was not seen.
        numbers: what each map gives a region, the mean over its patches, `[map, region]`.
        revealed: the share of the patches in the first k regions of each map, `[map, step]`.
        insertion: the value with only these seen, `[map, substrate, step]`.
        deletion: the value with only these gone, `[map, substrate, step]`.
        random_insertion, random_deletion: areas under the same curves of random orders, `[order, substrate]`.
        sensitivity: correlation over random sets between what a map gives them together and what the value loses
            without them, `[map, substrate]`; NaN where either does not vary.
        value: which value.
        unit: its unit.
        alternatives: what it is compared with, whatever stands in the place of what is not seen; nothing where it
            compares with none.
    """

    along: ClassVar[Mapping[str, str]] = {"maps": "map", "substrates": "substrate"}
    ranges: ClassVar[Mapping[str, Range]] = {"revealed": (0, 1 + 1e-6), "sensitivity": (-1 - 1e-6, 1 + 1e-6)}
    blank: ClassVar[frozenset[str]] = frozenset({"sensitivity"})
    token: str
    maps: tuple[str, ...]
    substrates: tuple[str, ...]
    numbers: Float[Tensor, "map region"]
    revealed: Float[Tensor, "map step"]
    insertion: Float[Tensor, "map substrate step"]
    deletion: Float[Tensor, "map substrate step"]
    random_insertion: Float[Tensor, "order substrate"]
    random_deletion: Float[Tensor, "order substrate"]
    sensitivity: Float[Tensor, "map substrate"]
    value: str
    unit: str
    alternatives: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        orders, regions = len(self.random_insertion), self.revealed.shape[1] - 1
        return (
            f"mean {self.value} over what is revealed or removed, in {self.unit}; insertion is better above random, "
            f"deletion below; {regions} regions, {orders} random orders"
        )

    @property
    def insertion_area(self) -> Float[Tensor, "map substrate"]:
        """The mean value over the area that is revealed: higher is better."""
        return area_under(self.insertion, self.revealed)

    @property
    def deletion_area(self) -> Float[Tensor, "map substrate"]:
        """The mean value over the area that is removed: lower is better."""
        return area_under(self.deletion, self.revealed)

    @property
    def comprehensiveness(self) -> Float[Tensor, "map substrate"]:
        """What the value loses without the first 1, 5, 10, 20 and 50% of the picture, on average: higher is better."""
        return self.deletion[:, :, 0] - _mean_at(SHARES, self.deletion, self.revealed)

    @property
    def sufficiency(self) -> Float[Tensor, "map substrate"]:
        """What it lacks with these alone, on average: lower is better."""
        return self.deletion[:, :, 0] - _mean_at(SHARES, self.insertion, self.revealed)

    def agreement(self) -> pd.DataFrame:
        """Spearman's correlation of every two maps over regions; NaN where one is the same everywhere."""
        return pd.DataFrame(self.numbers.double().numpy().T, columns=list(self.maps)).corr("spearman")

    def to_frame(self) -> pd.DataFrame:
        """One row for each map and substrate; `above random` are shares of random orders that do worse."""
        rows = []
        for m, name in enumerate(self.maps):
            for s, substrate in enumerate(self.substrates):
                inserted, deleted = self.insertion_area[m, s], self.deletion_area[m, s]
                rows.append(
                    {
                        "map": name,
                        "substrate": substrate,
                        "insertion": float(inserted),
                        "random insertion": float(self.random_insertion[:, s].mean()),
                        "insertion above random": float((inserted > self.random_insertion[:, s]).float().mean()),
                        "deletion": float(deleted),
                        "random deletion": float(self.random_deletion[:, s].mean()),
                        "deletion below random": float((deleted < self.random_deletion[:, s]).float().mean()),
                        "comprehensiveness": float(self.comprehensiveness[m, s]),
                        "sufficiency": float(self.sufficiency[m, s]),
                        "sensitivity": float(self.sensitivity[m, s]),
                    }
                )
        return self.identified(pd.DataFrame(rows))


@explained
@in_one_go
def faithfulness(
    vlm: HookedVLM,
    x: Inputs,
    maps: PatchMap | Mapping[str, PatchMap],
    token: int | str = 0,
    *,
    substrates: Substrate | Iterable[Substrate] = (TOKENS, "mean", "blur"),
    regions: Regions = 8,
    orders: int = 20,
    sets: int = 64,
    seed: int = 0,
    progress: bool = False,
    image: int = 0,
    value: str | Value | None = None,
    unit: Unit | None = None,
    target: int | str | None = None,
    against: Against | None = None,
) -> Faithfulness:
    """Hold maps of one part of an answer to what the model does when patches come and go.

    Args:
        vlm: the model.
        x: the example that they are of.
        maps: one, or several by name, of one image and one part of its answer.
        token: which of the parts of the maps, its number or its text.
        substrates: what stands in the place of a patch that is not seen (`heatmaps.filling`), one or several.
        regions: what comes and goes together (`heatmaps.regions`); 8 × 8 blocks by default. A map's number of a region
            is the sum over its patches, of which order goes by the mean.
        orders: random ones, the null.
        sets: random sets of regions for the sensitivity.
        seed: of what is drawn.
        progress: show a progress bar.
        image, value, unit, target, against: as they were asked for in `attribute`.

    Raises:
        InputError: no map, maps of other patches or another part, no orders or sets, one substrate twice.
        ImageError: pixels are to be changed, and the original picture is not known.
    """
    need_seed(seed)
    if orders < 1 or sets < 3:
        raise InputError(f"a null takes 1 random order or more, and a correlation 3 sets; got {orders}, {sets}")
    given = _maps(maps)
    asked = asked_of(vlm, x, image, None, value, unit, target, against, progress)
    judged = _judged(
        asked, given, {name: number_of(one.tokens, token, f"the map {name!r}") for name, one in given.items()}
    )
    return _measured(asked, judged, _several(substrates), regions, orders, sets, seed)


def _maps(maps: PatchMap | Mapping[str, PatchMap]) -> dict[str, PatchMap]:
    named = {"map": maps} if isinstance(maps, PatchMap) else dict(maps)
    if strange := [name for name in named if not isinstance(name, str)]:
        raise InputError(f"maps are named by texts, which tables and figures show; got {strange[0]!r}")
    if not named or CENTRE in named:
        raise InputError(f"give at least one map, and none called {CENTRE!r}, which is a prior that is there already")
    return named


@dataclass(frozen=True)
class _Judged:
    """What each map gives each patch, `[map, patch]`, and which part of what is asked for they are of."""

    names: tuple[str, ...]
    values: Float[Tensor, "map patch"]
    part: int


def _judged(asked: Asked, maps: Mapping[str, PatchMap], numbers: Mapping[str, int]) -> _Judged:
    """The maps' numbers, where all are of one image and one part.

    Raises:
        InputError: a map of other patches, of another example, image, frame or part.
    """
    texts = {name: one.tokens[numbers[name]] for name, one in maps.items()}
    if len({text.strip() for text in texts.values()}) > 1:
        raise InputError(f"maps of one part of the answer are compared; these are of {texts}")
    first = next(iter(maps))
    part = _part(asked, maps[first], numbers[first])
    about, span = asked.vlm.provenance("faithfulness", asked.x, **asked.told), asked.target.parts[part]
    for name, one in maps.items():
        if one.values.shape[1:] != asked.cells.shape:
            raise InputError(
                f"the map {name!r} has {list(one.values.shape[1:])} patches, and this image {list(asked.cells.shape)}"
            )
        need_same_part(name, one, numbers[name], about, (span.start, span.stop))
    values = [one.values[numbers[name]].flatten().double() for name, one in maps.items()]
    return _Judged((*maps, CENTRE), torch.stack([*values, _centre(asked)]), part)


def _part(asked: Asked, one: PatchMap, number: int) -> int:
    """Which of the parts that are asked for a map's part is: by where it stands in the answer, if the map tells."""
    span, parts = span_of(one, number), asked.target.parts
    spans = [(part.start, part.stop) for part in parts]
    if span and (span[0], span[1]) in spans:
        return spans.index((span[0], span[1]))
    texts = [part.text for part in parts]
    if one.tokens[number].strip() not in {text.strip() for text in texts}:
        raise InputError(
            f"the map is of {one.tokens[number]!r}, and what is asked for is cut into {texts}: give unit= and target= "
            "as the map was asked for"
        )
    return number_of(texts, one.tokens[number].strip(), "what is asked for")


def _centre(asked: Asked) -> Float[Tensor, " patch"]:
    rows, columns = asked.cells.shape
    down, across = (torch.linspace(-1, 1, count, dtype=torch.float64) for count in (rows, columns))
    return -(down[:, None].square() + across.square()).flatten()


def _several(substrates: Substrate | Iterable[Substrate]) -> list[Substrate]:
    one = isinstance(substrates, (str, Image.Image, np.ndarray, Tensor)) or not isinstance(substrates, Iterable)
    found = [substrates] if one else list(substrates)  # type: ignore[arg-type]
    words = [substrate for substrate in found if isinstance(substrate, str)]
    if not found or len({*words}) < len(words):
        raise InputError(f"give each substrate once, and at least one; got {words}")
    return found  # type: ignore[return-value]


def _measured(
    asked: Asked,
    judged: _Judged,
    substrates: Sequence[Substrate],
    regions: Regions,
    orders: int,
    sets: int,
    seed: int,
) -> Faithfulness:
    labels = regions_of(asked, regions)
    count = int(labels.max()) + 1
    sizes = torch.bincount(labels[labels >= 0], minlength=count).double()
    together = torch.stack([judged.values[:, labels == region].sum(1) for region in range(count)], 1)
    generator = torch.Generator().manual_seed(int(seed))
    drawn = [torch.randperm(count, generator=generator) for _ in range(orders)]
    ranked = [*(together / sizes).argsort(dim=1, descending=True, stable=True), *drawn]
    revealed = torch.stack([_cumulated(sizes[order] / sizes.sum()) for order in ranked])
    some = torch.rand(sets, count, generator=generator, dtype=torch.float64) < 0.5
    shown = torch.stack([_first(order) for order in ranked])
    asked_for = torch.cat([torch.cat([shown, ~shown]).flatten(0, 1), ~some])
    part, curves, losses = judged.part, [], []
    names, pictures = list[str](), list[str | None]()
    for substrate in substrates:
        game = Game(asked, regions, substrate)
        asked = dataclasses.replace(asked, target=game.target)  # every substrate is compared with the same
        names.append(_named(game.hiding.substrate, names))
        pictures.append(game.hiding.picture)
        values, without = game.each(asked_for)[part].split([len(asked_for) - sets, sets])
        curves.append(values.view(2, *shown.shape[:2]))
        losses.append(game.whole[part] - without)
    inserted, deleted = torch.stack(curves, 2)
    first = len(judged.names)
    areas = [area_under(one[first:], revealed[first:]).float() for one in (inserted, deleted)]
    of = {"labels": named(labels.numpy()), "maps": named(judged.values.numpy()), "pictures": pictures}
    told = {"orders": orders, "sets": sets, "seed": seed, "regions": count, **of, **asked.told}
    return Faithfulness(
        token=asked.target.parts[part].text,
        maps=judged.names,
        numbers=(together / sizes).float(),
        substrates=tuple(names),
        revealed=revealed[:first].float(),
        insertion=inserted[:first].float(),
        deletion=deleted[:first].float(),
        random_insertion=areas[0],
        random_deletion=areas[1],
        sensitivity=_correlations(together @ some.double().T, torch.stack(losses)).float(),
        value=asked.value.name,
        unit=asked.value.unit,
        alternatives=game.valued.alternatives[part] if asked.target.compares else (),
        provenance=asked.vlm.provenance("faithfulness", asked.x, **told),
    )


def _named(substrate: str, others: Sequence[str]) -> str:
    """Several pictures have a name each."""
    count = sum(other.partition(" ")[0] == substrate for other in others)
    return f"{substrate} {count + 1}" if count else substrate


def _cumulated(shares: Float[Tensor, " region"]) -> Float[Tensor, " step"]:
    return torch.cat([shares.new_zeros(1), shares.cumsum(0)]).clamp(max=1)


def _first(order: Int[Tensor, " region"]) -> Bool[Tensor, "step region"]:
    """The first k of an order."""
    return order.argsort() < torch.arange(len(order) + 1)[:, None]


@explained
def area_under(
    values: Float[Tensor, "*several step"], revealed: Float[Tensor, "several step"]
) -> Float[Tensor, "*several"]:
    """The area under curves over the share of the picture, by trapezoids: the mean value."""
    along = revealed if values.ndim == revealed.ndim else revealed[:, None].expand_as(values)
    return torch.trapezoid(values, along.to(values.dtype), dim=-1)


def _mean_at(
    shares: Sequence[float], values: Float[Tensor, "map substrate step"], revealed: Float[Tensor, "map step"]
) -> Float[Tensor, "map substrate"]:
    """The mean of curves at some shares of the picture, straight between steps."""
    found = [
        [float(np.mean(np.interp(shares, along.numpy(), curve.numpy()))) for curve in curves]
        for along, curves in zip(revealed.double(), values.double(), strict=True)
    ]
    return torch.tensor(found)


def _correlations(
    given: Float[Tensor, "map set"], lost: Float[Tensor, "substrate set"]
) -> Float[Tensor, "map substrate"]:
    """Pearson's; NaN where one side does not vary."""
    one, other = (side - side.mean(1, keepdim=True) for side in (given, lost))
    return (one @ other.T) / (one.norm(dim=1)[:, None] * other.norm(dim=1))
