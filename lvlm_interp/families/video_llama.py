"""VideoLLaMA 3."""

from __future__ import annotations

import dataclasses

from lvlm_interp.families.shared.cuts import resized
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Layout, Processed


def _merged_as_told(image: Processed) -> Layout:
    """The model inputs tell how patches are merged, too."""
    return resized(dataclasses.replace(image, merge=int(image.inputs["image_merge_sizes"][image.index])))


FAMILIES = {"video_llama_3": Family(layout=_merged_as_told)}
