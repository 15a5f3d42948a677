"""How pictures are cut: what several families do, each a function that says which blocks an image becomes, in order.

Sizes that transformers' processors decide on are asked of transformers' own functions, or read off the model inputs,
where there are such; the rest is tested against the processors and models themselves, by painting single boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from transformers import PretrainedConfig

from lvlm_interp.families.shared.grids import Block, Film, Layout, Processed, Size, Span, spans, tiles

# --- one picture of a fixed size --------------------------------------------------------------------------------------


def fixed(image: Processed) -> Layout:
    """One picture (CLIP, SigLIP, …): padded to a square or not, resized, and its centre cut out or not."""
    processed, before = image.tile, _class_tokens(image.config)
    side = (max(image.size),) * 2 if image.settings("do_pad") else image.size
    scaled = _scaled(side, image)
    columns, rows = (
        spans(
            processed[axis] // image.step,
            image.step,
            side[axis] / scaled[axis],
            # a picture is laid on a square, and a window is cut out, at whole pixels
            (scaled[axis] - processed[axis]) // 2 * side[axis] / scaled[axis] - (side[axis] - image.size[axis]) // 2,
        )
        for axis in (0, 1)
    )
    return Layout((Block(rows, columns, before),))


def _scaled(size: Size, image: Processed) -> Size:
    """Width and height after the resize and before the crop."""
    from transformers.image_transforms import get_size_with_aspect_ratio

    wanted = image.settings("size") or {}
    if image.settings("do_resize") is False:
        return size
    if shortest := wanted.get("shortest_edge"):
        height, width = get_size_with_aspect_ratio((size[1], size[0]), shortest, wanted.get("longest_edge"))
        return width, height
    return wanted.get("width") or image.tile[0], wanted.get("height") or image.tile[1]


def _class_tokens(config: PretrainedConfig) -> int:
    """1 if the class token of the vision tower is among the image tokens."""
    full = getattr(config, "vision_feature_select_strategy", None) == "full"
    return int(full and config.vision_config.model_type == "clip_vision_model")


def stretched(rows: Span, columns: Span, image: Processed) -> Block:
    """A part of the picture, stretched over one tile."""
    across, down = (
        spans(tile // image.step, image.step, (stop - start) / tile, start)
        for tile, (start, stop) in zip(image.tile, (columns, rows), strict=True)
    )
    return Block(down, across)


def whole(image: Processed) -> Block:
    """The whole picture, stretched over one tile."""
    return stretched((0, image.size[1]), (0, image.size[0]), image)


# --- tiles ------------------------------------------------------------------------------------------------------------


def fitted(image: Processed) -> Layout:
    """Tiles in as many rows and columns as come closest to the picture's shape, then a thumbnail (InternVL)."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    most = image.settings("max_patches")
    if not image.settings("crop_to_patches") or most <= 1:
        return mosaic(image, 1, 1)
    (width, height), tile = image.size, image.tile
    across, down = get_optimal_tiled_canvas((height, width), tile[::-1], image.settings("min_patches"), most)
    return mosaic(image, down, across)


def mosaic(image: Processed, down: int, across: int, thumbnail_first: bool = False) -> Layout:
    """The picture stretched over tiles, row by row, and a thumbnail behind them; one tile is the picture itself."""
    tile, step, (width, height) = image.tile, image.step, image.size
    rows = tiles(down, tile[1], step, height / (down * tile[1]))
    columns = tiles(across, tile[0], step, width / (across * tile[0]))
    return with_thumbnail(rows, columns, whole(image), thumbnail_first)


def with_thumbnail(
    rows: Sequence[tuple[Span, ...]], columns: Sequence[tuple[Span, ...]], thumbnail: Block, first: bool = False
) -> Layout:
    """Tiles, row by row, and a thumbnail before or behind them if there are several."""
    blocks = [Block(row, column) for row in rows for column in columns]
    numbers = np.arange(len(blocks)).reshape(len(rows), len(columns))
    if len(blocks) > 1:
        blocks.insert(0 if first else len(blocks), thumbnail)
        numbers += first
    return Layout(tuple(blocks), tuple(map(tuple, numbers.tolist())))


# --- a picture at a size of its own -----------------------------------------------------------------------------------


def resized(image: Processed, grids: str = "image_grid_thw") -> Layout:
    """The whole picture at a size of its own (Qwen-VL), told by a model input."""
    return Layout((even(*grid(image, grids), image.size),))


def grid(image: Processed, grids: str = "image_grid_thw") -> tuple[int, int]:
    """Rows and columns of tokens, as a model input tells them."""
    rows, columns = (int(n) // image.merge for n in image.inputs[grids][image.index, -2:])
    return rows, columns


def rows(image: Processed) -> Layout:
    """The whole picture at a size of its own, told in `image_sizes` (Pixtral); its row breaks are no image tokens."""
    lengths = [int(n) for n in image.inputs["image_sizes"][image.index]]
    rows, columns = (
        spans(now // image.step, image.step, length / now)
        for now, length in zip(lengths, image.size[::-1], strict=True)
    )
    return Layout((Block(rows, columns),))


def laid(image: Processed, now: Size, canvas: Size) -> Block:
    """The whole picture at some size, top left on a canvas that is filled up to whole tokens."""
    columns, rows = (
        spans(math.ceil(side / image.step), image.step, length / new)
        for side, new, length in zip(canvas, now, image.size, strict=True)
    )
    return Block(rows, columns)


def even(rows: int, columns: int, size: Size) -> Block:
    """The whole picture in rows and columns of one size."""
    return Block(spans(rows, 1, size[1] / rows), spans(columns, 1, size[0] / columns))


# --- videos -----------------------------------------------------------------------------------------------------------


def squares(image: Processed) -> Film | None:
    """Every frame stretched over one tile (InternVL, SmolVLM): an image to the model, which knows of no videos."""
    return None if image.frames is None else Film(Layout((whole(image),)), image.frames)


# --- patches along the side of a token --------------------------------------------------------------------------------


def one(config: PretrainedConfig) -> int:
    return 1


def merged(config: PretrainedConfig) -> int:
    return config.vision_config.spatial_merge_size
