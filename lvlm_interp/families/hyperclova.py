"""HyperCLOVA X."""

from lvlm_interp.families.shared.cuts import merged, resized
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.names import Names

FAMILIES = {"hyperclovax_vision_v2": Family(multiplied=True, layout=resized, merge=merged)}
NAMES = Names(after_attention=("post_norm1",), after_mlp=("post_norm2",))
