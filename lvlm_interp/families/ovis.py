"""Ovis 2."""

from __future__ import annotations

from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import mosaic
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Layout, Processed
from lvlm_interp.families.shared.names import Names


def _covering(image: Processed) -> Layout:
    """A thumbnail, then as few tiles as show nine tenths of the picture's area, or in its shape (Ovis 2)."""
    from transformers.models.ovis2 import image_processing_pil_ovis2 as ovis2

    most = image.settings("max_patches")
    if not image.settings("crop_to_patches") or most <= 1:
        return mosaic(image, 1, 1)
    size, tile = image.size[::-1], image.tile[::-1]
    if image.settings("use_covering_area_grid"):
        across, down = ovis2.get_min_tile_covering_grid(size, tile[0], most)
    else:
        across, down = ovis2.get_optimal_tiled_canvas(size, tile, image.settings("min_patches"), most)
    return mosaic(image, down, across, thumbnail_first=True)


def _stride(config: PretrainedConfig) -> int:
    return int(config.vision_config.hidden_stride)


FAMILIES = {"ovis2": Family(layout=_covering, merge=_stride)}
NAMES = Names(before_mlp=("rms_norm2",))
