"""Molmo 2."""

from __future__ import annotations

import math

from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Block, Layout, Processed, Span, spans
from lvlm_interp.families.shared.names import Names


def _overlapping(image: Processed) -> Layout:
    """A thumbnail, then crops that overlap, of which the patches in the middle are laid together (Molmo 2)."""
    most = image.settings("max_crops")
    if most is None:
        return Layout((Block(),))  # the model inputs tell tokens, not patches, and the last may be half padding
    from transformers.models.molmo2.image_processing_molmo2 import compute_crop_geometry

    side, patch, pool = image.settings("size")["height"], image.patch, image.settings("pooling_size")
    told = most, image.settings("overlap_margins"), side, patch
    canvas = compute_crop_geometry(image.size[1], image.size[0], *told)[2:]
    blocks = []
    for sides in ((side, side), canvas):
        of_axes = zip(sides, pool, image.size[::-1], strict=True)
        rows, columns = (_pooled_spans(pixels // patch, one, length) for pixels, one, length in of_axes)
        blocks.append(Block(rows, columns))
    return Layout(tuple(blocks), ((1,),))


def _pooled_spans(patches: int, pool: int, length: float) -> tuple[Span, ...]:
    """Spans of several patches each, with padding on both sides where they do not come out even."""
    count, scale = math.ceil(patches / pool), length / patches
    return spans(count, pool, scale, -((count * pool - patches) // 2) * scale)


COUNTED = {"image_token_pooling": "pixel_values", "video_token_pooling": "pixel_values_videos"}
FAMILIES = {"molmo2": Family(layout=_overlapping, indices=COUNTED)}
NAMES = Names(norms_moved=("norm_after",), per_image=("image_grids",))
