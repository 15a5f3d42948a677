"""What a heatmap is asked for: which parts of an answer, which value of them, and which patches of which image."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.attribution.against import Against, listed, of_each, plain
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.attribution.value import Target, Value, Valued, target_of, texts_of
from lvlm_interp.engine.decoder import DecoderInputs
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.fields import shown
from lvlm_interp.given import explained, explaining, whole
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.view import Box, ImageView
from lvlm_interp.inputs.words import Unit, unit_name
from lvlm_interp.model.finite import first_bad, need_finite
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Provenance, Result


@explaining
@dataclass(frozen=True, eq=False)
class Asked:
    """One heatmap, before a method is chosen.

    Attributes:
        vlm, x: the model and an example with an image and an answer.
        target: what is explained: one value of every part, or of one.
        view: the image.
        cells: the tokens of its grid, as indices into `view.positions`.
        frame: of a video.
        progress: show a progress bar.
        decoder_inputs: of the example, if they are known.
        told: what provenance says of the question.
    """

    vlm: HookedVLM
    x: Inputs
    target: Target
    view: ImageView
    cells: Int[Tensor, "row column"]
    frame: int | None = None
    progress: bool = False
    decoder_inputs: DecoderInputs | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> Value:
        return self.target.values[0]

    @functools.cached_property
    def patches(self) -> Bool[Tensor, "patch position"]:
        """The positions that show each patch of the grid, row by row."""
        found = torch.zeros(self.cells.numel(), self.x.length, dtype=torch.bool)
        for row, tokens in zip(found, hidden_together(self.view, self.cells, self.frame), strict=True):
            row[self.view.positions[tokens]] = True
        return found

    @functools.cached_property
    def shares(self) -> Float[Tensor, "patch position"]:
        """The share that each patch has of each position: a token that shows several (a thumbnail's) counts once."""
        shown = self.patches.double()
        return shown / shown.sum(0).clamp(min=1)

    @functools.cached_property
    def whole(self) -> Bool[Tensor, " position"]:
        """The positions of the whole image."""
        found = torch.zeros(self.x.length, dtype=torch.bool)
        found[self.view.positions] = True
        return found

    def compared(self, valued: Valued) -> dict[str, Any]:
        """Fields of a map that say what its value was compared with; none where it compares with nothing."""
        if not self.target.compares:
            return {}
        return {"alternatives": valued.alternatives, "alternative_ids": valued.alternative_ids}

    def mapped(
        self,
        method: str,
        values: Float[Tensor, "_ _"],
        image_total: Float[Tensor, " part"],
        parameters: Mapping[str, Any],
        **about: Any,
    ) -> PatchMap:
        """The map of what a method found; `about` are more of its fields.

        Raises:
            InputError: numbers for other parts or patches than were asked for.
            ModelError: NaN or infinity.
        """
        if values.shape != (expected := (len(self.target.parts), self.cells.numel())):
            raise InputError(
                f"a map of this is [part, patch], {list(expected)} numbers; {method!r} has {shown(values)}"
            )
        if not values.isfinite().all() and first_bad(self.vlm, self.x):  # else it is the method's, and PatchMap says so
            need_finite(self.vlm, self.x, values)
        boxes, size = boxes_of(self.view, self.cells)
        return PatchMap(
            tokens=texts_of(self.target.parts),
            values=values.detach().float().reshape(-1, *self.cells.shape),
            image_total=image_total.detach().float(),
            boxes=boxes,
            size=size,
            **{"value": self.value.name, "unit": self.value.unit, **about},
            provenance=self.vlm.provenance(method, self.x, **parameters, **self.told),
        )


@explained
def asked_of(
    vlm: HookedVLM,
    x: Inputs,
    image: int = 0,
    frame: int | None = None,
    value: str | Value | None = None,
    unit: Unit | None = None,
    target: int | str | None = None,
    against: Against | None = None,
    progress: bool = False,
    decoder_inputs: DecoderInputs | None = None,
) -> Asked:
    """What a user asks to have mapped; see `heatmaps.attribute`.

    Raises:
        InputError: no image, no answer, an unknown value or unit, no such frame or part, or a foil that is the part
            itself.
        ImageError: the image's tokens have no place in the picture, or it is not known.
    """
    x.need_image()
    x.need_answer()
    explained = _explained(vlm, x, value, unit, target, against)
    view, cells = _view(x, image, frame)
    told = {
        "image": image,
        "frame": frame,
        "value": explained.values[0].name,
        "unit": unit_name(explained.search.unit),
        "target": target,
        "parts": tuple((part.start, part.stop) for part in explained.parts),
        "against": None if against is None else plain(against),
    }
    return Asked(vlm, x, explained, view, cells, frame, progress, decoder_inputs, told)


def span_of(result: Result, number: int) -> tuple[int, ...] | None:
    """Where in the answer a part of a result stands, by its tokens; None where it does not tell."""
    parts = result.provenance.parameters.get("parts")
    told = parts is not None and len(parts) == len(getattr(result, "tokens", ()))
    return tuple(parts[number]) if told and parts is not None else None


def need_same_part(
    name: str, one: Result, number: int, other: Result | Provenance, span: tuple[int, ...] | None
) -> None:
    """Raise where a result is of another example or image, or of another part of its answer that reads the same.

    Raises:
        InputError: names the result, and what it is of.
    """
    about = other if isinstance(other, Provenance) else other.provenance
    if None not in (one.provenance.example, about.example) and one.provenance.example != about.example:
        raise InputError(f"the map {name!r} is of another example: another picture, prompt or answer")
    for what in ("image", "frame"):
        its, asked_for = (told.parameters.get(what, "untold") for told in (one.provenance, about))
        if "untold" not in (its, asked_for) and its != asked_for:
            raise InputError(f"the map {name!r} is of {what} {its}, and {what} {asked_for} was asked for")
    own = span_of(one, number)
    if None not in (own, span) and own != span:
        raise InputError(
            f"the map {name!r} is of the tokens {own} of the answer, and {span} were asked for: make both with the "
            "same unit= and target="
        )


def _explained(
    vlm: HookedVLM,
    x: Inputs,
    value: str | Value | None,
    unit: Unit | None,
    target: int | str | None,
    against: Against | None,
) -> Target:
    """What the map explains: one value of every part, or of one."""
    each = against if of_each(against) else None
    foils = None if against is None or each is not None else listed(against)
    unit = unit if unit is not None else ("token" if target is None and against is None else "word")
    default = "logodds" if against is None else "odds" if foils is None or len(foils) > 1 else "difference"
    every = target_of(vlm, x, [value or default], unit, each)
    if against is not None and not every.compares:
        raise InputError(
            f"value={every.values[0].name!r} compares with nothing, so that against= would change nothing: leave it "
            "out, or take value='odds' or 'difference'"
        )
    return every if target is None and foils is None else every.only(0 if target is None else target, foils)


def hidden_together(view: ImageView, cells: Int[Tensor, "row column"], frame: int | None = None) -> list[list[int]]:
    """For each cell, its token and those outside the grid whose box holds its centre, as indices into `positions`.

    Of a video, the tokens of its place in all frames, or in the one that is chosen.
    """
    if view.starts:
        times = [cells] if frame is not None else [view.cells_of(start) for start in view.starts]
        return torch.stack([cell.flatten() for cell in times], 1).tolist()
    places = view.patches or (None,) * len(view.positions)
    grid = set(cells.flatten().tolist())
    outside = [(i, box) for i, box in enumerate(places) if box is not None and i not in grid]
    return [[cell, *_holding(outside, places[cell])] for cell in cells.flatten().tolist()]


def _holding(boxes: Sequence[tuple[int, Box]], cell: Box | None) -> list[int]:
    if cell is None:
        return []
    x, y = (cell[0] + cell[2]) / 2, (cell[1] + cell[3]) / 2
    return [i for i, (left, top, right, bottom) in boxes if left <= x < right and top <= y < bottom]


def _view(x: Inputs, image: int, frame: int | None = None) -> tuple[ImageView, Int[Tensor, "row column"]]:
    if isinstance(frame, bool) or not isinstance(frame := whole(frame), int | None):
        raise InputError(f"frame= is the number of a frame, counted from 0; got {frame!r}")
    if isinstance(image, bool) or not 0 <= image < len(x.images):
        raise InputError(f"no image {image}: the prompt has {len(x.images)}, counted from 0")
    view = x.images[image]
    if view.cells is None:
        raise ImageError(view.no_grid)
    return view, view.cells if frame is None else view.cells_of(frame)


def boxes_of(view: ImageView, cells: Int[Tensor, "row column"]) -> tuple[Tensor, tuple[int, int]]:
    """Boxes `[row, column, 4]` and the picture's size; in units of patches where there is no picture."""
    rows, columns = cells.shape
    if view.patches is not None and view.picture is not None:
        shown = [view.patches[i] for i in cells.flatten().tolist()]
        return torch.tensor(shown, dtype=torch.float32).view(rows, columns, 4), view.picture.size
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([x, y, x + 1, y + 1], -1).float(), (columns, rows)
