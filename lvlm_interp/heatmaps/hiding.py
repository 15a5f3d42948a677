"""What it means that a patch is not seen: its tokens are hidden, or other pixels stand in its place."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import xxhash
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from lvlm_interp.attribution.asked import Asked, boxes_of
from lvlm_interp.attribution.occlusion import usual
from lvlm_interp.attribution.value import Target, Valued, values_of
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.engine.score import HideFrom
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.heatmaps.filling import TOKENS, Substrate, filling_of, is_picture
from lvlm_interp.heatmaps.regions import pixels_in
from lvlm_interp.inputs.example import Inputs


@runtime_checkable
class Hiding(Protocol):
    """Values of sets of hidden patches."""

    hide_from: HideFrom | None
    substrate: str
    picture: str | None
    """A digest of the other picture, if there is one."""
    at_once: int
    """How many sets are best asked for together."""

    def valued(self, hidden: Bool[Tensor, "set patch"], target: Target) -> Valued:
        """The values of a target with these patches hidden; alternatives are found among these sets."""
        ...


def hiding_of(asked: Asked, substrate: Substrate, hide_from: HideFrom | None) -> Hiding:
    """How patches are hidden.

    Raises:
        InputError: an unknown substrate, or rows that lose sight where pixels are changed.
        ImageError: the original picture is not known, or the other one cannot be read.
    """
    if isinstance(substrate, str) and substrate == TOKENS:
        return OfTokens(asked, hide_from)
    if hide_from is not None:
        raise InputError("hide_from says who loses sight of tokens; where pixels are changed, nobody sees the old ones")
    return OfPixels(asked, substrate)


class OfTokens:
    """Tokens are hidden, all sets in the engine's few passes."""

    substrate = TOKENS
    picture: str | None = None
    at_once = 64

    def __init__(self, asked: Asked, hide_from: HideFrom | None) -> None:
        self.hide_from: HideFrom | None = hide_from or usual(asked)
        self.asked, whole = asked, self.hide_from == "all"
        self._given = asked.decoder_inputs or run_to_decoder(asked.vlm, asked.x, keep_prompt=whole)

    def valued(self, hidden: Bool[Tensor, "set patch"], target: Target) -> Valued:
        """See `Hiding`; a token that shows two patches (a thumbnail's) is hidden with either."""
        lost = hidden.float() @ self.asked.patches.float() > 0
        options: dict[str, Any] = {"hide_from": self.hide_from, "decoder_inputs": self._given}
        return values_of(self.asked.vlm, self.asked.x, ~lost, target, **options)


class OfPixels:
    """Other pixels, a whole pass of the model for each set; of a video, in every frame."""

    hide_from: HideFrom | None = None
    at_once = 1

    def __init__(self, asked: Asked, substrate: Substrate) -> None:
        if asked.view.picture is None or asked.view.patches is None or any(v.picture is None for v in asked.x.images):
            raise ImageError(
                "pixels are changed in the original picture, and this example was made from processed ones: make it "
                "with vlm.prepare(question, picture), or hide tokens, substrate='tokens'"
            )
        if asked.frame is not None:
            raise InputError("pixels are changed in every frame of a video at once: leave out frame=, or hide tokens")
        self.asked = asked
        self.substrate = "picture" if is_picture(substrate) else str(substrate)
        self._shown = asked.view.clip or (asked.view.picture,)
        self._fillings = [filling_of(picture, substrate) for picture in self._shown]
        nothing = np.zeros(self._shown[0].size[::-1], bool)
        self.picture = named(self._fillings[0](nothing)) if self.substrate == "picture" else None

    @functools.cached_property
    def _boxes(self) -> list[list[float]]:
        return boxes_of(self.asked.view, self.asked.cells)[0].flatten(0, 1).tolist()

    def drawn(self, numbers: Sequence[float], elsewhere: float = 0.0) -> Float[np.ndarray, "height width"]:
        """Each patch's number at all of its pixels."""
        found = np.full(self._shown[0].size[::-1], elsewhere)
        for number, box in zip(numbers, self._boxes, strict=True):
            found[pixels_in(box, found.shape)] = number
        return found

    def changed(self, hidden: Bool[Tensor, " patch"]) -> Inputs:
        """The example with these patches replaced."""
        where = self.drawn(hidden.tolist()) > 0
        return self.showing(
            [
                Image.fromarray(np.where(where[..., None], filling(where), np.asarray(picture.convert("RGB"))))
                for picture, filling in zip(self._shown, self._fillings, strict=True)
            ]
        )

    def in_shades(self, shades: Float[np.ndarray, "height width"]) -> Inputs:
        """The example with greys in the picture's place, or in that of each frame, from 0 to 1."""
        grey = Image.fromarray((shades * 255).round().astype(np.uint8)).convert("RGB")
        return self.showing([grey] * len(self._shown))

    def showing(self, pictures: list[Image.Image]) -> Inputs:
        """The example with another picture in the place of this one, or other frames; others stay."""
        shown = [pictures if view is self.asked.view else list(view.clip) or [view.picture] for view in self._views]
        each = [some if view.clip else some[0] for some, view in zip(shown, self._views, strict=True)]
        return self.asked.vlm.with_pictures(self.asked.x, each)

    @property
    def _views(self) -> Sequence[Any]:
        return self.asked.x.images

    def valued(self, hidden: Bool[Tensor, "set patch"], target: Target) -> Valued:
        """See `Hiding`; alternatives are found with the picture as it is."""
        first = self._value(self.asked.x, target)
        held = first.held(target)
        numbers = [self._value(self.changed(some), held).numbers for some in hidden]
        return Valued(torch.cat(numbers, 2), first.alternatives, first.alternative_ids)

    def _value(self, x: Inputs, target: Target) -> Valued:
        return values_of(self.asked.vlm, x, x.everything[None], target)


def named(array: np.ndarray) -> str:
    """A digest of an array, which tells it from others."""
    return xxhash.xxh3_64(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
