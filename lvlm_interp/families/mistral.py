"""Mistral 3 and others with the vision tower of Pixtral."""

from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import rows
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.lengths import counted


def _merge(config: PretrainedConfig) -> int:
    return int(config.spatial_merge_size)


FAMILIES = {
    # Mistral Large 4 and Ministral 3 scale queries by where they stand.
    **dict.fromkeys(
        ("mistral3", "lighton_ocr", "mistral_large4"), Family(layout=rows, merge=_merge, positions=counted)
    ),
}
