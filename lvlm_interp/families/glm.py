"""GLM-4V and what came after it."""

from __future__ import annotations

import numpy as np

from lvlm_interp.families.shared.cuts import laid, merged, resized
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Layout, Processed
from lvlm_interp.families.shared.names import Names


def _cornered(image: Processed) -> Layout:
    """The whole picture at a size of its own, padded to whole tokens to the right and below (GLM-5 Next)."""
    from transformers.models.glm5_next.image_processing_pil_glm5_next import Glm5NextImageProcessorPil

    if not image.settings("do_resize"):
        return resized(image)
    names = ("min_image_tokens", "max_image_tokens")
    ones = np.ones((1, image.size[1], image.size[0]), np.uint8)
    padded = Glm5NextImageProcessorPil().resize(
        ones,
        resample=0,
        factor=image.step,
        temporal_factor=image.settings("temporal_patch_size"),
        **{name: image.settings(name) for name in names},
    )[0]
    return Layout((laid(image, (int(padded.any(0).sum()), int(padded.any(1).sum())), padded.shape[::-1]),))


FAMILIES = {
    **dict.fromkeys(
        ("glm4v", "glm4v_moe", "glm46v", "glm_ocr", "glmga"),
        Family(layout=resized, merge=merged),
    ),
    "glm5_next": Family(layout=_cornered, merge=merged),
}
NAMES = Names(  # of GLM-5 Next: residual streams with an axis of their own
    mixed_apart=("ffn_hc",),
    mixed_at_last=("hc_head",),
    streams={"ffn_hc": -2},
)
