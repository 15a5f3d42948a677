"""NVIDIA's Nemotron-H Omni and Cosmos 3."""

from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import merged, resized
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Layout, Processed
from lvlm_interp.families.shared.names import Names


def _shuffled(config: PretrainedConfig) -> int:
    return round(1 / config.downsample_ratio)


def _resized(image: Processed) -> Layout:
    return resized(image, "image_grid_hw")


FAMILIES = {
    "nemotron_h_omni": Family(layout=_resized, merge=_shuffled),
    # Before, its mask was made of positions that image tokens share, as if each were a text of its own.
    "cosmos3_edge": Family(layout=resized, merge=merged, since="5.23"),
    "cosmos3_omni": Family(layout=resized, merge=merged),
}
NAMES = Names(final_norm=("norm_f",), per_image=("image_grid_hw",))
