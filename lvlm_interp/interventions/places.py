"""Where an intervention acts: positions by role, number or region of the picture; layers and heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from lvlm_interp.errors import ImageError, InputError, SiteError
from lvlm_interp.given import explaining
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.view import Box
from lvlm_interp.model.choice import Positions, indices, listed
from lvlm_interp.model.sites import Site, match
from lvlm_interp.model.vlm import HookedVLM

LAST, PREDICTING = "last", "predicting"


@explaining
@dataclass(frozen=True)
class Region:
    """The tokens of an image of which more than a half lies in a box, or those of which it does not.

    Attributes:
        box: (left, top, right, bottom) in pixels of the original picture.
        image: which image of the prompt.
        outside: the image's other tokens, in their place.
    """

    box: Box
    image: int = 0
    outside: bool = False

    def positions(self, x: Inputs) -> Bool[Tensor, " position"]:
        """Where they stand.

        Raises:
            InputError: no such image, a box without an inside, or no token there.
            ImageError: the image's tokens have no place in the picture.
        """
        if isinstance(self.image, bool) or not 0 <= self.image < len(x.images):
            raise InputError(f"no image {self.image}: the prompt has {len(x.images)}, counted from 0")
        left, top, right, bottom = self.box
        if not (left < right and top < bottom):
            raise InputError(f"a box is (left, top, right, bottom), left before right, top before bottom: {self.box}")
        view = x.images[self.image]
        if view.patches is None:
            raise ImageError(view.no_grid)
        found = torch.zeros(x.length, dtype=torch.bool)
        for position, patch in zip(view.positions.tolist(), view.patches, strict=True):
            found[position] = patch is not None and (_within(patch, self.box) > 0.5) != self.outside
        if not found.any():
            raise InputError(f"no token of the image lies {'outside' if self.outside else 'in'} {self.box}")
        return found


def _within(patch: Box, box: Box) -> float:
    """The share of a patch that lies in a box."""
    width = max(0.0, min(patch[2], box[2]) - max(patch[0], box[0]))
    height = max(0.0, min(patch[3], box[3]) - max(patch[1], box[1]))
    return width * height / max((patch[2] - patch[0]) * (patch[3] - patch[1]), 1e-9)


Places = Positions | Region
"""Roles (`"image"`, `["context", "question"]`), numbers, a bool mask, a `Region`; `"last"`, the position that predicts
the first token of the answer; `"predicting"`, all that predict one."""
Heads = int | Iterable[int] | Iterable[tuple[int, int]] | None
"""Numbers of heads, the same in every layer, or pairs (layer, head); None means all."""
Layers = int | Iterable[int] | None
"""Numbers of blocks, negative ones from the last; None means all."""


def placed(x: Inputs, places: Places | None, length: int) -> Bool[Tensor, " position"]:
    """The places among the positions of a pass, which may have others than the example behind its prompt.

    Raises:
        InputError: out of range, or none at all.
        VisibilityError: an unknown role.
    """
    found = torch.zeros(max(length, x.length), dtype=torch.bool)
    if places is None:
        return ~found[:length]
    if isinstance(places, str) and places in (LAST, PREDICTING):
        start = x.answer_start - 1
        found[start : start + 1 if places == LAST else length] = True
    elif isinstance(places, Region):
        found[: x.length] = places.positions(x)
    else:
        found[indices(x, places)] = True
    return found[:length]


def first_of(x: Inputs, places: Places | None) -> int:
    """The first of the places; behind all where there is none."""
    return next(iter(placed(x, places, x.length).nonzero()[:, 0].tolist()), x.length)


def layer_of(name: str) -> int | None:
    """The number of the block that a site of the language model is in."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else None


def chosen_layers(vlm: HookedVLM, layers: Layers) -> list[int]:
    """Numbers of blocks, from 0.

    Raises:
        SiteError: one that is not there, or none.
    """
    asked = range(vlm.depth) if layers is None else listed(layers)
    if wrong := [n for n in asked if not -vlm.depth <= n < vlm.depth]:
        raise SiteError(f"there is no layer {wrong[0]}: the model has blocks 0 to {vlm.depth - 1}")
    if not asked:
        raise SiteError("no layer was asked for; layers=None means all")
    return sorted({n % vlm.depth for n in asked})


def chosen_sites(vlm: HookedVLM, names: str | Sequence[str], layers: Layers) -> list[Site]:
    """Sites by name or glob, those in these blocks only; those outside of blocks where no layers are named.

    Raises:
        SiteError: a name matches nothing, or nothing in these layers.
    """
    found = match(vlm.sites, names, vlm.missing)
    if layers is None:
        return found
    kept = [site for site in found if layer_of(site.name) in chosen_layers(vlm, layers)]
    if not kept:
        raise SiteError(f"none of {[site.name for site in found][:3]} … is in the layers {layers}")
    return kept


def headed(heads: Heads, layer: int | None, count: int) -> Bool[Tensor, " head"]:
    """The heads of a layer that are meant.

    Raises:
        SiteError: one that is not there.
    """
    if heads is None:
        return torch.ones(count, dtype=torch.bool)
    found = torch.zeros(count, dtype=torch.bool)
    for one in [heads] if isinstance(heads, int) else heads:
        block, head = one if isinstance(one, tuple) else (layer, one)
        if block != layer:
            continue
        if not 0 <= head < count:
            raise SiteError(f"there is no head {head} in layer {layer}, which has {count}, counted from 0")
        found[head] = True
    return found


def layers_of(heads: Heads, layers: Layers) -> Layers:
    """The layers that are meant: where heads are pairs, those that are in one."""
    pairs = () if heads is None or isinstance(heads, int) else [one for one in heads if isinstance(one, tuple)]
    if not pairs:
        return layers
    meant = {layer for layer, _ in pairs}
    if layers is not None and (left := sorted(meant - {*listed(layers)})):
        raise SiteError(f"heads= names one of layer {left[0]}, which layers= leaves out")
    return sorted(meant)
