"""Kimi K2.5."""

from __future__ import annotations

from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import laid, resized
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Layout, Processed
from lvlm_interp.families.shared.names import Names


def _packed(image: Processed) -> Layout:
    """The same, never made larger (Kimi K2.5)."""
    most = image.settings("size")
    if most is None or not image.settings("do_resize"):
        return resized(image)
    from transformers.models.kimi_k25.image_processing_kimi_k25 import navit_resize

    told = image.patch, image.merge, image.settings("max_patches"), most["max_height"]
    now, canvas = navit_resize(image.size[1], image.size[0], *told)
    return Layout((laid(image, now[::-1], canvas[::-1]),))


def _kernel(config: PretrainedConfig) -> int:
    return int(config.vision_config.merge_kernel_size[0])


FAMILIES = {"kimi_k25": Family(layout=_packed, merge=_kernel)}
NAMES = Names(projector=("mm_projector",), per_image=("image_grid_hws",))
