"""Idefics and SmolVLM."""

from __future__ import annotations

import math

import numpy as np
from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import mosaic, squares
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Layout, Processed
from lvlm_interp.families.shared.names import Names


def _split(image: Processed) -> Layout:
    """Tiles row by row, then a thumbnail (Idefics 3). The resize fits the tiles, so that there is no padding."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

    if not image.settings("do_image_splitting"):
        return mosaic(image, 1, 1)
    (width, height), tile = image.size, image.settings("max_image_size")["longest_edge"]
    if image.settings("do_resize"):
        longest = image.settings("size")["longest_edge"]
        height, width = get_resize_output_image_size(np.broadcast_to(0, (1, height, width)), longest)
    # the long side is rounded up to whole tiles, the short side follows it and is then rounded up too
    aspect = width / height
    if width >= height:
        across = math.ceil(width / tile)
        return mosaic(image, math.ceil(int(across * tile / aspect) / tile), across)
    down = math.ceil(height / tile)
    return mosaic(image, down, math.ceil(int(down * tile * aspect) / tile))


def _scale(config: PretrainedConfig) -> int:
    return int(config.scale_factor)


FAMILIES = {
    "idefics": Family(
        prompt="User: {question}\nAssistant:",
        gates=("image_attention_mask",),
        fills={"image_attention_mask": None},
        tiled=True,
        whole=True,  # read by cross-attention
        since="5.17",  # before, positions could not be beyond the number of rows
    ),
    "idefics2": Family(tiled=True, whole=True),  # resampled
    "idefics3": Family(tiled=True, layout=_split, merge=_scale),
    "smolvlm": Family(tiled=True, layout=_split, merge=_scale, film=squares),
}
NAMES = Names(
    projector=("modality_projection", "perceiver_resampler"),
    row_axis={"image_attention_mask": 1},
)
