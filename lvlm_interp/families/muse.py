"""Muse Glimmer and Muse Spark."""

from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import resized
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.names import Names


def _size(config: PretrainedConfig) -> int:
    return int(config.vision_config.merge_size)


FAMILIES = dict.fromkeys(
    ("muse_glimmer", "muse_spark"), Family(projector="perception_emb_norm", layout=resized, merge=_size)
)
NAMES = Names(
    carried=("post_attention_residual_gate", "post_feedforward_residual_gate"),
    scales={"output_multiplier": 1},
)
