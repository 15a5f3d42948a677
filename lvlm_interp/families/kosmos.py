"""Kosmos-2 and Kosmos-2.5."""

from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.names import Names

CHAT = (
    "<md>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: {question} ASSISTANT:"
)
FAMILIES = {
    "kosmos-2": Family(
        prompt="Question: {question} Answer:",
        projector="image_to_text_projection",
        image_mask="image_embeds_position_mask",
        own_masks=True,
        whole=True,  # resampled
    ),
    "kosmos-2.5": Family(
        prompt=CHAT,
        projector="image_to_text_projection",
        image_mask="image_embeds_position_mask",
        cast=True,
        places={"flattened_patches": 2},
        whole=True,
        note="no heads inside its vision tower, which computes attention by itself",
    ),
}
NAMES = Names(
    before_mlp=("pre_mlp_layer_norm",),
    inner_norm=("inner_attn_ln",),
    output_projection=("wo",),
    row_axis={"image_embeds_position_mask": 1},
    laid_over=("image_embeds",),
)
