"""Where in the image: how much a value of each part of the answer falls when one image token is hidden.

By default, the value is the log-odds of each token; against a foil, it is why this word *rather than that*.

Occlusion (Zeiler & Fergus 2014) of *tokens*: a vision tower mixes patches before tokens are made, so hiding a token is
not the same as covering its pixels. Where a family shows a picture twice, as tiles and as a thumbnail, a cell of the
tiles is hidden together with the thumbnail tokens that show its centre: otherwise they would go on telling it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.attribution.against import Against, listed, of_each, plain, rather_than
from lvlm_interp.attribution.value import Target, Value, target_of, texts_of, values_of
from lvlm_interp.engine.decoder import DecoderInputs
from lvlm_interp.engine.score import HideFrom
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.view import Box, ImageView
from lvlm_interp.inputs.words import Unit, Word, by_word, unit_name
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.pairs import Comparable
from lvlm_interp.results import heading, html, number_of, table, text
from lvlm_interp.shown import table_html


@dataclass(frozen=True)
class PatchMap(Comparable):
    """How much each patch of one image supports each answer token.

    Attributes:
        tokens: the answer tokens (or words, …) as text.
        values: the value of the token with everything seen, minus the same without this patch, `[answer, row, column]`;
            positive where the patch speaks for the token. By default log-odds, in nats: odds p / (1 − p) rather than p,
            since a token that is nearly certain stays nearly certain whatever single patch is hidden.
        image_total: the same for the whole of this image, `[answer]`. Patches overlap in what they tell, so `values`
            does not add up to it.
        boxes: (left, top, right, bottom) of every patch in pixels of the original image, `[row, column, 4]`; in patches
            where only processed pixels were given.
        size: width and height of the original image, in the same unit.
        hide_from: who lost sight of the patch: `text` rows only, or `all` rows.
        value: which value.
        unit: nats or logits.
        alternatives: for each token, what the value compares it with; nothing for those that compare with none.
        alternative_ids: their token ids.
    """

    along: ClassVar[Mapping[str, str]] = {"tokens": "answer"}
    keys = ("answer", "token", "row", "column", "left", "top", "right", "bottom")
    agreeing = ("tokens", "value", "unit", "alternatives", "hide_from", "size", "boxes")
    tokens: tuple[str, ...]
    values: Float[Tensor, "answer row column"]
    image_total: Float[Tensor, " answer"]
    boxes: Float[Tensor, "row column 4"]
    size: tuple[int, int]
    hide_from: HideFrom
    value: str = "logodds"
    unit: str = "nats"
    alternatives: tuple[tuple[str, ...], ...] = ()
    alternative_ids: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(*self.size, self.values.shape[1], self.values.shape[2]) < 1:
            raise InputError(f"a map has patches and a picture; got {list(self.values.shape)} of a picture {self.size}")
        for some in (self.alternatives, self.alternative_ids):
            if len(some) not in (0, len(self.tokens)):
                raise InputError(f"a map of {len(self.tokens)} parts has alternatives for {len(some)}")

    @property
    def note(self) -> str:
        rows, columns = self.values.shape[1:]
        rather = rather_than(self.alternatives)
        return f"{self.value} lost, in {self.unit}; {rows} × {columns} patches; hidden from {self.hide_from}{rather}"

    def peak(self, token: int | str = 0) -> tuple[int, int]:
        """Row and column of the patch that supports a token most, which is told by its number, from 0, or its text.

        Raises:
            InputError: no such token.
        """
        number = number_of(self.tokens, token, "the map")
        row, column = divmod(int(self.values[number].argmax()), self.values.shape[2])
        return row, column

    def peak_box(self, token: int | str = 0) -> Box:
        """The box of that patch in the original image; see `peak`."""
        left, top, right, bottom = self.boxes[self.peak(token)].tolist()
        return left, top, right, bottom

    def words(self, words: Sequence[Word]) -> PatchMap:
        """The same map by word: what its tokens lose, added up; `attribute(unit="word")` takes words as wholes."""
        values, total = by_word(self.values, words), by_word(self.image_total, words)
        none: dict[str, Any] = {"alternatives": (), "alternative_ids": ()}
        return dataclasses.replace(self, tokens=texts_of(words), values=values, image_total=total, **none)

    def peaks(self) -> pd.DataFrame:
        """One row for each token: what hiding its strongest patch takes from it, where that is, and the whole image."""
        sides = [self.peak_box(i) for i in range(len(self.tokens))]
        boxes = [f"({left:.0f}, {top:.0f})–({right:.0f}, {bottom:.0f})" for left, top, right, bottom in sides]
        found = {"strongest patch": boxes, "patch": self.values.flatten(1).amax(1).tolist()}
        return pd.DataFrame({"token": self.tokens, **found, "image": self.image_total.tolist()})

    def to_frame(self) -> pd.DataFrame:
        """One row for each token and patch."""
        answers, rows, columns = self.values.shape
        index = pd.MultiIndex.from_product([range(answers), range(rows), range(columns)])
        frame = index.to_frame(index=False, name=["answer", "row", "column"])
        frame.insert(1, "token", [self.tokens[i] for i in frame["answer"]])
        boxes = self.boxes.reshape(-1, 4).repeat(answers, 1)
        sides = {name: boxes[:, i].tolist() for i, name in enumerate(("left", "top", "right", "bottom"))}
        return self.identified(frame.assign(value=self.values.flatten().tolist(), **sides))


@text.register
def _peaks(result: PatchMap) -> str:
    return f"{heading(result)}\n{table(result.peaks())}"


@html.register
def _peaks_in_a_cell(result: PatchMap) -> str:
    return table_html(result.peaks(), caption=f"{result.note}; figures.heatmap draws it")


@explained
@in_one_go
def attribute(
    vlm: HookedVLM,
    x: Inputs,
    method: Literal["occlusion"] = "occlusion",
    hide_from: HideFrom | None = None,
    image: int = 0,
    progress: bool = False,
    decoder_inputs: DecoderInputs | None = None,
    frame: int | None = None,
    *,
    value: str | Value | None = None,
    unit: Unit | None = None,
    target: int | str | None = None,
    against: Against | None = None,
) -> PatchMap:
    """Attribute every answer token to the patches of an image or a video.

    `attribute(vlm, x, against="Yellow")` asks where it is seen that the answer's first word is what it is rather than
    "Yellow"; with `unit="answer"`, rather than another answer.

    Args:
        vlm: the model.
        x: an example with an image and an answer.
        method: `occlusion`, each token of the image's grid hidden in turn, with the thumbnail tokens that show its
            centre if there is a thumbnail (and the original picture is known).
        hide_from: `text`: image tokens go on seeing the hidden one, what text reads from it is gone (fast: the image is
            computed once for all patches); `all`: nobody sees it. By default `text`, or `all` where layers carry on
            what image tokens see, masked or not (Qwen3.5's linear attention).
        image: which image or video of the prompt.
        progress: show a progress bar.
        decoder_inputs: of the example (`run_to_decoder`), if it is scored by several methods.
        frame: of a video. None hides a patch in all frames at once, and says where in the picture the answer comes
            from, at whatever time. A number hides it in that frame only (Qwen-VL: in the two frames that share its
            tokens); what neighbouring frames show again goes on telling it, so that such values are small.
        value: what a patch is said to change (`attribution.value`). By default `logodds`; with `against`, `difference`,
            or `odds` if it names several.
        unit: `token`, `word`, `sentence`, `answer`, a span (start, stop) of answer tokens, or a function that cuts a
            text into words; each is scored as a whole. By default `token`, or `word` where a target or a foil is named.
        target: the only part to map: its number, counted from 0, or its text. With `against`, the first by default.
        against: a foil, or several, as text: whole words against words, answers against answers. Or foils of every
            part, as a list with an entry for each, a mapping from their numbers, or an earlier result.

    Raises:
        InputError: no image, no answer, an unknown method, value or unit, no such frame or part, or a foil that is the
            part itself.
        ImageError: the image's tokens have no place in the picture, or it is not known.
        VisibilityError: `text` in a model where only `all` is possible.
    """
    x.need_image()
    x.need_answer()
    if method != "occlusion":
        raise InputError(f"no attribution method {method!r}; there is 'occlusion'")
    hide_from = hide_from or ("all" if vlm.recurrent else "text")
    explained = _explained(vlm, x, value, unit, target, against)
    view, cells = _view(x, image, frame)
    visible = x.everything.repeat(cells.numel() + 2, 1)
    visible[1, view.positions] = False
    for row, tokens in zip(visible[2:], hidden_together(view, cells, frame), strict=True):
        row[view.positions[tokens]] = False
    valued = values_of(
        vlm, x, visible, explained, hide_from=hide_from, progress=progress, decoder_inputs=decoder_inputs
    )
    found, chosen, (boxes, size) = valued.numbers[0], explained.values[0], _boxes(view, cells)
    told: dict[str, Any] = {
        "value": chosen.name,
        "unit": unit_name(explained.search.unit),
        "target": target,
        "against": None if against is None else plain(against),
    }
    return PatchMap(
        tokens=texts_of(explained.parts),
        values=(found[:, :1] - found[:, 2:]).float().reshape(-1, *cells.shape),
        image_total=(found[:, 0] - found[:, 1]).float(),
        boxes=boxes,
        size=size,
        hide_from=hide_from,
        value=chosen.name,
        unit=chosen.unit,
        alternatives=valued.alternatives if explained.compares else (),
        alternative_ids=valued.alternative_ids if explained.compares else (),
        provenance=vlm.provenance("occlusion", x, hide_from=hide_from, image=image, frame=frame, **told),
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
    unit = unit or ("token" if target is None and against is None else "word")
    default = "logodds" if against is None else "odds" if foils is None or len(foils) > 1 else "difference"
    every = target_of(vlm, x, [value or default], unit, each)
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
    if not 0 <= image < len(x.images):
        raise InputError(f"no image {image}: the prompt has {len(x.images)}, counted from 0")
    view = x.images[image]
    if view.cells is None:
        raise ImageError(view.no_grid)
    return view, view.cells if frame is None else view.cells_of(frame)


def _boxes(view: ImageView, cells: Int[Tensor, "row column"]) -> tuple[Tensor, tuple[int, int]]:
    """Boxes `[row, column, 4]` and the picture's size; in units of patches where there is no picture."""
    rows, columns = cells.shape
    if view.patches is not None and view.picture is not None:
        shown = [view.patches[i] for i in cells.flatten().tolist()]
        return torch.tensor(shown, dtype=torch.float32).view(rows, columns, 4), view.picture.size
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([x, y, x + 1, y + 1], -1).float(), (columns, rows)
