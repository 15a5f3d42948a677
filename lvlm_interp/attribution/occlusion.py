"""Where in the image: how much the odds of each answer token fall when one image token is hidden.

Occlusion (Zeiler & Fergus 2014) of *tokens*: a vision tower mixes patches before tokens are made, so hiding a token is
not the same as covering its pixels. Where a family shows a picture twice, as tiles and as a thumbnail, a cell of the
tiles is hidden together with the thumbnail tokens that show its centre: otherwise they would go on telling it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.engine.decoder import DecoderInputs
from lvlm_interp.engine.score import HideFrom, score
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.view import Box, ImageView
from lvlm_interp.inputs.words import Word, by_word
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result


@dataclass(frozen=True)
class PatchMap(Result):
    """How much each patch of one image supports each answer token.

    Attributes:
        tokens: the answer tokens (or words) as text.
        values: log-odds of the token with everything seen, minus those without this patch, nats,
            `[answer, row, column]`; positive where the patch speaks for the token. Odds p / (1 − p) rather than p,
            since a token that is nearly certain stays nearly certain whatever single patch is hidden.
        image_total: the same for the whole of this image, nats, `[answer]`. Patches overlap in what they tell, so
            `values` does not add up to it.
        boxes: (left, top, right, bottom) of every patch in pixels of the original image, `[row, column, 4]`; in patches
            where only processed pixels were given.
        size: width and height of the original image, in the same unit.
        hide_from: who lost sight of the patch: `text` rows only, or `all` rows.
    """

    tokens: tuple[str, ...]
    values: Float[Tensor, "answer row column"]
    image_total: Float[Tensor, " answer"]
    boxes: Float[Tensor, "row column 4"]
    size: tuple[int, int]
    hide_from: HideFrom

    def peak(self, token: int = 0) -> tuple[int, int]:
        """Row and column of the patch that supports a token most."""
        row, column = divmod(int(self.values[token].argmax()), self.values.shape[2])
        return row, column

    def peak_box(self, token: int = 0) -> Box:
        """The box of that patch in the original image."""
        left, top, right, bottom = self.boxes[self.peak(token)].tolist()
        return left, top, right, bottom

    def words(self, words: Sequence[Word]) -> PatchMap:
        """The same map by word: what its tokens lose, added up."""
        values, total = by_word(self.values, words), by_word(self.image_total, words)
        texts = tuple(word.text for word in words)
        return PatchMap(texts, values, total, self.boxes, self.size, self.hide_from, provenance=self.provenance)

    def to_frame(self) -> pd.DataFrame:
        """One row for each token and patch."""
        answers, rows, columns = self.values.shape
        index = pd.MultiIndex.from_product([range(answers), range(rows), range(columns)])
        frame = index.to_frame(index=False, name=["answer", "row", "column"])
        frame.insert(1, "token", [self.tokens[i] for i in frame["answer"]])
        boxes = self.boxes.reshape(-1, 4).repeat(answers, 1)
        sides = {name: boxes[:, i].tolist() for i, name in enumerate(("left", "top", "right", "bottom"))}
        return frame.assign(value=self.values.flatten().tolist(), **sides)


def attribute(
    vlm: HookedVLM,
    x: Inputs,
    method: Literal["occlusion"] = "occlusion",
    hide_from: HideFrom | None = None,
    image: int = 0,
    progress: bool = False,
    decoder_inputs: DecoderInputs | None = None,
    frame: int | None = None,
) -> PatchMap:
    """Attribute every answer token to the patches of an image or a video.

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

    Raises:
        InputError: no image, no answer, an unknown method, or no such frame.
        ImageError: the image's tokens have no place in the picture, or it is not known.
        VisibilityError: `text` in a model where only `all` is possible.
    """
    x.need_image()
    x.need_answer()
    if method != "occlusion":
        raise InputError(f"no attribution method {method!r}; there is 'occlusion'")
    hide_from = hide_from or ("all" if vlm.recurrent else "text")
    view, cells = _view(x, image, frame)
    visible = x.everything.repeat(cells.numel() + 2, 1)
    visible[1, view.positions] = False
    for row, tokens in zip(visible[2:], hidden_together(view, cells, frame), strict=True):
        row[view.positions[tokens]] = False
    odds = score(vlm, x, visible, hide_from, progress, decoder_inputs).logodds
    drop = (odds[0] - odds[2:]).T.reshape(-1, *cells.shape)
    boxes, size = _boxes(view, cells)
    return PatchMap(
        tokens=x.answer_tokens,
        values=drop,
        image_total=odds[0] - odds[1],
        boxes=boxes,
        size=size,
        hide_from=hide_from,
        provenance=vlm.provenance("occlusion", hide_from=hide_from, image=image, frame=frame),
    )


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
