"""Qwen-VL, and Qwen's models of more than pictures."""

from __future__ import annotations

from lvlm_interp.families.shared.cuts import even, merged, resized
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Film, Layout, Processed
from lvlm_interp.families.shared.names import Names


def _paired(image: Processed) -> Film | None:
    """Frames at a size of their own, several of which make one token (Qwen-VL); the last is repeated to fill up."""
    times, *sides = (int(n) for n in image.inputs["video_grid_thw"][image.index])
    block = even(sides[0] // image.merge, sides[1] // image.merge, image.size)
    return Film(Layout((block,)), times, image.config.vision_config.temporal_patch_size)


WITH_VIDEO = ("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
PICTURES = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "qwen4_exp")
FAMILIES = {
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        Family(projector="visual.merger", layout=resized, merge=merged, film=_paired),
    ),
    **dict.fromkeys(WITH_VIDEO, Family(layout=resized, merge=merged, film=_paired)),
    **dict.fromkeys(PICTURES, Family(layout=resized, merge=merged)),
}
NAMES = Names(  # of Qwen4: several residual streams, and an embedding of each layer's own that carries a state
    recurrent=("ple",),
    mixed_for_mlp=("mlp_hyper_connection",),
    final_norm=("hyper_connection_mixer",),
    of_tokens={"ple_input_ids": None},
)
