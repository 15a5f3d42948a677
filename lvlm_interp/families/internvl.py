"""InternVL and Qianfan-OCR."""

from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import fitted, squares
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.names import Names


def _shuffled(config: PretrainedConfig) -> int:
    return round(1 / config.downsample_ratio)


FAMILIES = {
    "internvl": Family(tiled=True, layout=fitted, merge=_shuffled, film=squares),
    "qianfan_ocr": Family(tiled=True, layout=fitted, merge=_shuffled),
}
NAMES = Names(output_projection=("projection_layer",))
