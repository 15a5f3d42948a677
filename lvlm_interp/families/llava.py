"""LLaVA and what was made after it."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import torch

from lvlm_interp.families.shared.cuts import fixed, rows, whole
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Block, Film, Layout, Processed, Span, interpolated, spans, tiles
from lvlm_interp.inputs.called import VIDEO_PIXELS

USER = "USER: {image}\n{question} ASSISTANT:"


def _anyres(image: Processed) -> Layout:
    """A thumbnail, then tiles of the picture laid together, without the padding, a newline after each row (LLaVA-NeXT).

    Of several images that were nested by sample, LLaVA-OneVision pads each to a square instead.
    """
    several = image.inputs.get("batch_num_images")
    if several is not None and [int(n) for n in several for _ in range(int(n))][image.index] > 1:
        return _padded(image)
    columns, rows = _anyres_spans(image)
    detail = int(bool(rows and columns))  # of a very thin picture nothing is left of the tiles but the thumbnail
    return Layout((whole(image), Block(rows, columns, row_end=1)), ((detail,),))


def _padded(image: Processed) -> Layout:
    """One picture in the middle of a square, and a newline."""
    tile, side = image.tile[0], max(image.size)
    columns, rows = (
        spans(tile // image.step, image.step, side / tile, -((side - length) // 2)) for length in image.size
    )
    return Layout((Block(rows, columns, after=1),))


def _anyres_spans(image: Processed) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Columns and rows of the tiles laid together."""
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    tile, (width, height) = image.tile[0], image.size
    canvas = select_best_resolution((height, width), image.config.image_grid_pinpoints)
    laid = get_patch_output_size(np.broadcast_to(0, (1, height, width)), canvas, "channels_first")
    rows, columns = (
        tuple(
            itertools.chain(*tiles(whole // tile, tile, image.step, length / now, -((whole - now) // 2) * length / now))
        )
        for whole, now, length in zip(canvas, laid, (height, width), strict=True)
    )
    # transformers takes the padding off the grid of features, in whole tokens, alike on both sides: all of it, at times
    kept = unpad_image(torch.empty(1, len(rows), len(columns)), (height, width))[0]
    rows, columns = (
        some[(len(some) - count) // 2 : (len(some) + count) // 2]
        for some, count in zip((rows, columns), kept.shape, strict=True)
    )
    return _shrunk(rows, columns, image)[::-1]


def _shrunk(
    rows: tuple[Span, ...], columns: tuple[Span, ...], image: Processed
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Rows and columns after LLaVA-OneVision has interpolated a large grid of features to one of at most n tiles."""
    limit = str(getattr(image.config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    if not limit.isdigit():
        return rows, columns
    side = image.tile[0] // image.step
    ratio = math.sqrt(len(rows) * len(columns) / (int(limit) * side**2))
    if ratio <= 1.1:
        return rows, columns
    return interpolated(rows, int(len(rows) // ratio)), interpolated(columns, int(len(columns) // ratio))


def _halved(image: Processed) -> Film | None:
    """Every frame stretched over one tile and its grid halved by interpolation, a newline at the end (OneVision)."""
    pixels, vision = image.inputs[VIDEO_PIXELS], image.config.vision_config
    side = vision.image_size // vision.patch_size
    columns, rows = (
        interpolated(spans(side, image.step, length / now), math.ceil(side / 2))
        for length, now in zip(image.size, (pixels.shape[-1], pixels.shape[-2]), strict=True)
    )
    return Film(Layout((Block(rows, columns),)), pixels.shape[1], after=1)


def _pixels_by_kind(image: Processed) -> Layout:
    """Video-LLaVA has other names for the pixels of its pictures."""
    return fixed(dataclasses.replace(image, inputs={"pixel_values": image.inputs["pixel_values_images"]}))


FAMILIES = {
    "llava": Family(prompt=USER, layout=fixed, towers={"pixtral": rows}),
    "vipllava": Family(prompt=USER, layout=fixed),
    "llava_next": Family(prompt=USER, tiled=True, layout=_anyres),
    "llava_next_video": Family(prompt=USER, tiled=True, layout=_anyres),
    "llava_onevision": Family(tiled=True, layout=_anyres, film=_halved),
    "video_llava": Family(layout=_pixels_by_kind),
}
