"""Liquid's LFM2-VL and LFM3-VL."""

from __future__ import annotations

from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import even, merged, resized, with_thumbnail
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Layout, Processed, tiles
from lvlm_interp.families.shared.names import Names


def _large_split(image: Processed) -> Layout:
    """The picture at a size of its own, behind tiles of it if it is large (LFM2-VL)."""
    if image.settings("tile_size") is None:
        rows, columns = (int(n) // image.merge for n in image.inputs["spatial_shapes"][image.index])
        return Layout((even(rows, columns, image.size),))
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

    cutter, (width, height), settings = Lfm2VlImageProcessor(), image.size, image.settings
    budget = {n: settings(n) for n in ("downsample_factor", "max_image_tokens", "encoder_patch_size")}
    across, down = cutter.smart_resize(height, width, min_image_tokens=settings("min_image_tokens"), **budget)
    whole = even(down // image.step, across // image.step, image.size)
    large = cutter._is_image_too_large(height, width, max_pixels_tolerance=settings("max_pixels_tolerance"), **budget)
    bounds, side = (settings("min_tiles"), settings("max_tiles")), settings("tile_size")
    if not large or not settings("do_image_splitting") or bounds == (1, 1):
        return Layout((whole,))
    across, down = cutter._get_grid_layout(height, width, *bounds, side)[:2]
    tall = tiles(down, side, image.step, height / (down * side))
    wide = tiles(across, side, image.step, width / (across * side))
    laid = with_thumbnail(tall, wide, whole)
    return laid if settings("use_thumbnail") else Layout(laid.blocks[: down * across], laid.detail)


def _factor(config: PretrainedConfig) -> int:
    return int(config.downsample_factor)


FAMILIES = {
    "lfm2_vl": Family(layout=_large_split, merge=_factor),
    "lfm3_vl": Family(layout=resized, merge=merged),
}
NAMES = Names(
    after_attention=("post_operator_norm",),
    after_mlp=("post_ffn_norm",),
    final_norm=("embedding_norm",),
    per_image=("spatial_shapes",),
)
