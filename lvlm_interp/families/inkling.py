"""Inkling: its types do not pass the checks, but its parts can be looked at."""

from lvlm_interp.families.shared.names import Names

NAMES = Names(
    after_attention=("attn_sconv", "post_attention_convolution"),
    after_mlp=("mlp_sconv", "post_mlp_convolution"),
    scales={"logits_mup_width_multiplier": -1},
)
