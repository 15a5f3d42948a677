"""Mistral 3 and others with the vision tower of Pixtral."""

from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import rows
from lvlm_interp.families.shared.family import Family


def _merge(config: PretrainedConfig) -> int:
    return int(config.spatial_merge_size)


FAMILIES = dict.fromkeys(("mistral3", "mistral_large4", "lighton_ocr"), Family(layout=rows, merge=_merge))
