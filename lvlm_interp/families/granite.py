"""IBM's Granite Vision and Granite Docling."""

from __future__ import annotations

import dataclasses
import inspect

from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import mosaic
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Layout, Processed
from lvlm_interp.families.shared.names import Names


def _paged(image: Processed) -> Layout:
    """As InternVL, with bounds of its own, and four times the tokens on the fine of two ways (Granite Docling)."""
    from transformers.models.granite_docling.image_processing_pil_granite_docling import get_page_tile_grid

    if "tile_fine_mask" in image.inputs:
        image = dataclasses.replace(image, merge=image.merge // 2)
    if image.settings("max_patches") is None:
        return mosaic(image, 1, 1)
    names = [n for n in inspect.signature(get_page_tile_grid).parameters if n not in ("height", "width")]
    told = {name: image.settings(name) for name in names}
    return mosaic(image, *get_page_tile_grid(image.size[1], image.size[0], **told))


def _scale(config: PretrainedConfig) -> int:
    return int(config.vision_config.scale_factor)


FAMILIES = {
    "granite4_vision": Family(tiled=True),
    "granite_docling": Family(tiled=True, layout=_paged, merge=_scale),
}
NAMES = Names(row_axis={"vision_mask": 1}, image_rows={"deepstack_features": "vision_mask"})
