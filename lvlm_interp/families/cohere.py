"""Cohere's Aya Vision, Command A Vision and Compass."""

from __future__ import annotations

from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import fitted, merged, mosaic, resized
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Layout, Processed


def _least_stretched(image: Processed) -> Layout:
    """As InternVL, with the tiles that need the least stretching (Cohere 2 Vision)."""
    if not image.settings("crop_to_patches"):
        return mosaic(image, 1, 1)
    from transformers.models.cohere2_vision.image_processing_cohere2_vision import get_optimal_tiled_canvas

    bounds = image.settings("min_patches"), image.settings("max_patches")
    across, down = get_optimal_tiled_canvas(image.size[::-1], image.tile[::-1], *bounds)
    return mosaic(image, down, across)


def _factor(config: PretrainedConfig) -> int:
    return int(config.downsample_factor)


FAMILIES = {
    "aya_vision": Family(tiled=True, layout=fitted, merge=_factor),
    "cohere2_vision": Family(tiled=True, layout=_least_stretched, merge=_factor),
    "cohere_compass": Family(layout=resized, merge=merged),
}
