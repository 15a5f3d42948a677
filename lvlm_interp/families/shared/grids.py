"""Boxes of image tokens in original pixels, from spans along each axis.

Image processors resize, pad, crop and tile along each axis by itself. So one token's box is a span of columns times a
span of rows, and all tokens of a picture, a tile or a thumbnail are one `Block`: the spans of its rows and of its
columns, in original pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PretrainedConfig

from lvlm_interp.inputs.view import Box

Size = tuple[int, int]
"""Width and height in pixels."""
Span = tuple[float, float]
"""Where something starts and stops along one axis of the original picture, in pixels; outside of it is padding."""
ROUNDING = 1e-6  # pixels: what is left of a box of padding where its side is computed to 109.9999999 of 110


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Where the tokens of one image (or video) were taken from.

    Attributes:
        boxes: (left, top, right, bottom) of every token in pixels of the original picture, clipped to it, in the order
            of the tokens; None for a token without a place (a row's end, a class token, padding only).
        cells: the tokens of the one rectangular grid that a heatmap is drawn on, as indices into `boxes`,
            `[row, column]`: the tiles laid together where there are tiles, else the picture, not the thumbnail; none
            of them is padding only. Of a video, its first frame.
        frames: for a video, the number of the first of the sampled frames that each token was made from, None for a
            token of no frame.
    """

    boxes: tuple[Box | None, ...]
    cells: Int[Tensor, "row column"]
    frames: tuple[int | None, ...] | None = None


@dataclass(frozen=True)
class Block:
    """Tokens that stand in the prompt row by row.

    Attributes:
        rows: span of every row of tokens, in the original picture's pixels.
        columns: the same of every column.
        before: tokens without a place in front (a class token).
        row_end: tokens without a place after each row (a newline).
        after: tokens without a place at the end.
    """

    rows: tuple[Span, ...] = ()
    columns: tuple[Span, ...] = ()
    before: int = 0
    row_end: int = 0
    after: int = 0

    def boxes(self, size: Size) -> Iterable[Box | None]:
        """The box of every token of the block, in order."""
        yield from [None] * self.before
        for top, bottom in self.rows:
            yield from (_clipped((left, top, right, bottom), size) for left, right in self.columns)
            yield from [None] * self.row_end
        yield from [None] * self.after

    def cells(self, start: int, size: Size) -> Int[Tensor, "row column"]:
        """Indices of the tokens that show some of the picture, if the block's first token has index `start`."""
        rows = torch.tensor(_showing(self.rows, size[1]), dtype=torch.long)
        columns = torch.tensor(_showing(self.columns, size[0]), dtype=torch.long)
        return start + self.before + rows[:, None] * (len(self.columns) + self.row_end) + columns


@dataclass(frozen=True)
class Layout:
    """The blocks of one image in the order of their tokens, and which of them, laid together, show it in most detail.

    Attributes:
        blocks: all blocks.
        detail: indices of blocks, by row and column.
    """

    blocks: tuple[Block, ...]
    detail: tuple[tuple[int, ...], ...] = ((0,),)

    def token_map(self, size: Size) -> TokenMap:
        """Boxes and cells, for a picture of this size."""
        boxes = [tuple(block.boxes(size)) for block in self.blocks]
        starts = list(itertools.accumulate((len(some) for some in boxes), initial=0))
        grid = [[self.blocks[i].cells(starts[i], size) for i in row] for row in self.detail]
        return TokenMap(tuple(itertools.chain(*boxes)), torch.cat([torch.cat(row, 1) for row in grid]))


@dataclass(frozen=True)
class Film:
    """The tokens of a video, frame after frame.

    Attributes:
        frame: the blocks of one frame.
        times: how often they stand in the prompt.
        together: neighbouring frames that one token is made from.
        after: tokens without a place at the end.
    """

    frame: Layout
    times: int
    together: int = 1
    after: int = 0

    def token_map(self, size: Size) -> TokenMap:
        """Boxes, cells and frames, for frames of this size."""
        one, rest = self.frame.token_map(size), (None,) * self.after
        frames = (self.together * time for time in range(self.times) for _ in one.boxes)
        return TokenMap(one.boxes * self.times + rest, one.cells, (*frames, *rest))


@dataclass(frozen=True)
class Processed:
    """What is known of one image, or one video, of a prompt, and of what its processor was told.

    Attributes:
        size: width and height of the original picture, or of a frame.
        index: which image, or which video, of the prompt it is.
        settings: what the image processor was told, by name.
        config: the model's.
        inputs: the model inputs.
        patch: pixels along a patch's side, once processed.
        merge: patches along a token's side.
        frames: of a video, the number of frames that the processor was given, if that is known.
    """

    size: Size
    index: int
    settings: Callable[[str], Any]
    config: PretrainedConfig
    inputs: Mapping[str, Tensor]
    patch: int
    merge: int
    frames: int | None = None

    @property
    def step(self) -> int:
        """Pixels along a token's side, once processed."""
        return self.patch * self.merge

    @property
    def tile(self) -> Size:
        """Width and height of what the vision tower is given: one picture, or one tile."""
        pixels = self.inputs["pixel_values"]
        return pixels.shape[-1], pixels.shape[-2]


# --- one axis ---------------------------------------------------------------------------------------------------------


def spans(count: int, step: float, scale: float, shift: float = 0.0) -> tuple[Span, ...]:
    """Neighbouring spans of `step` processed pixels, each `scale` original pixels; the first starts at `shift`."""
    return tuple((shift + k * step * scale, shift + (k + 1) * step * scale) for k in range(count))


def tiles(tiles: int, tile: int, step: int, scale: float, shift: float = 0.0) -> list[tuple[Span, ...]]:
    """The same for each of several tiles in a row. What is left of a tile after its last whole token is not seen."""
    return [spans(tile // step, step, scale, shift + k * tile * scale) for k in range(tiles)]


def interpolated(spans: Sequence[Span], count: int) -> tuple[Span, ...]:
    """Fewer spans by torch's bilinear interpolation (align_corners=False): each from the first to the last it reads.

    Below half the number, some of the spans are read by nobody; above it, neighbours share one.
    """
    read = [max((k + 0.5) * len(spans) / count - 0.5, 0.0) for k in range(count)]
    return tuple((spans[math.floor(at)][0], spans[min(math.ceil(at), len(spans) - 1)][1]) for at in read)


def _showing(spans: Sequence[Span], length: int) -> list[int]:
    """Which spans are not padding only."""
    return [k for k, (start, stop) in enumerate(spans) if min(stop, length) - max(start, 0) > ROUNDING]


def _clipped(box: Box, size: Size) -> Box | None:
    left, top, right, bottom = max(box[0], 0.0), max(box[1], 0.0), min(box[2], size[0]), min(box[3], size[1])
    return (left, top, right, bottom) if min(right - left, bottom - top) > ROUNDING else None
