"""What transformers itself does not say about a family of vision-language models: one table.

Everything else (decoder, unembedding, chat template, image token) is asked of transformers at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PretrainedConfig

from lvlm_interp.compat import has_transformers


@dataclass(frozen=True)
class Family:
    """One row of the table. Every field has a default that holds for most families.

    Attributes:
        prompt: used when the processor has no chat template; `{image}`, `{question}`. Without `{image}` the processor
            itself says where the image goes.
        vision: attribute path of the vision tower inside the base model, where `get_encoder("image")` does not find it.
        projector: attribute path of what maps its features to embeddings, where its name is not a usual one.
        image_token: the config's name of the id of image tokens, where it is not `image_token_id`.
        image_mask: the model input that is 1 at image tokens, where no id of theirs tells them from words.
        carriers: arguments of the decoder that bring the image to it where its tokens do not: hidden by leaving them
            out. Elsewhere the image is hidden by hiding its positions.
        image_inputs: the model inputs that bring such an image; without them the model runs without one.
        gates: arguments of the model and of its decoder that say which rows read the image, where it does not run
            without one: hidden by setting them to zero.
        own_masks: the decoder makes its masks of padding alone; others can be given to its attention only.
        fills: model inputs that run along the positions and what an answer gets in them; see `Inputs.fills`.
        tiled: the first axis of the pixels counts tiles, not images.
        cast: the model takes pixels of the type of its weights only.
        multiplied: the config's `logits_scaling` multiplies the logits; elsewhere it divides them.
        never: attribute path of the ids of tokens that the model never says, inside the base model.
        since: the release of transformers from which on it is read truly; with an older one it is checked as a family
            that is not in the table.
        note: what a user should know about the family.
    """

    prompt: str = "{image}\n{question}"
    vision: str | None = None
    projector: str | None = None
    image_token: str = "image_token_id"
    image_mask: str | None = None
    carriers: tuple[str, ...] = ()
    image_inputs: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    own_masks: bool = False
    fills: Mapping[str, int | None] = field(default_factory=dict)
    tiled: bool = False
    cast: bool = False
    multiplied: bool = False
    never: str | None = None
    since: str = "0"
    note: str = ""


USER = "USER: {image}\n{question} ASSISTANT:"
CHAT = (
    "<md>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: {question} ASSISTANT:"
)
READS_QUESTION = "the Q-Former reads the question too, so image tokens carry some of it"
FORGETS = "while it writes, a word sees the prompt and a window of the words before it; scored at once, it sees all"
STAGES = "no sites inside its vision tower, whose stages are maps of channels and no residual stream"
PLAIN = (
    "aria",
    "cohere_compass",
    "cosmos3_edge",
    "cosmos3_omni",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "dots3_note",
    "emu3",
    "ernie4_5_vl_moe",
    "exaone4_5",
    "fuyu",
    "gemma4",
    "glm46v",
    "glm4v",
    "glm4v_moe",
    "glm_ocr",
    "glm5_next",
    "glmga",
    "got_ocr2",
    "hunyuan_vl",
    "janus",
    "kimi_k25",
    "lfm2_vl",
    "lfm3_vl",
    "lighton_ocr",
    "minicpm_ocr",
    "minicpmv4_6",
    "minicpmv4_7",
    "mistral3",
    "mistral_large4",
    "molmo2",
    "nemotron_h_omni",
    "ovis2",
    "paddleocr_vl",
    "perception_lm",
    "pp_chart2table",
    "qwen2_5_omni_thinker",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_omni_moe_thinker",
    "qwen3_vl_moe",
    "qwen4_exp",
    "shieldgemma2",
    "step3p7",
    "video_llama_3",
    "video_llava",
)
"""Families of which transformers says all."""

FAMILIES: dict[str, Family] = {
    "llava": Family(prompt=USER),
    "llava_next": Family(prompt=USER, tiled=True),
    "llava_onevision": Family(tiled=True),
    "idefics3": Family(tiled=True),
    "smolvlm": Family(tiled=True),
    "qwen2_vl": Family(projector="visual.merger"),
    "qwen2_5_vl": Family(projector="visual.merger"),
    "qwen3_vl": Family(projector="visual.merger"),
    "gemma3": Family(),
    # The prompt sees itself in both directions, the answer does not: type 1.
    "paligemma": Family(prompt="{image}{question}\n", fills={"token_type_ids": 1}),
    "internvl": Family(tiled=True),
    # A masked image leaks: transformers lets a row whose whole image is masked attend to all of it.
    "mllama": Family(
        vision="vision_model.transformer",
        carriers=("cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask"),
        image_inputs=("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask"),
        fills={"cross_attention_mask": None},
        tiled=True,
    ),
    "idefics": Family(
        prompt="User: {question}\nAssistant:",
        gates=("image_attention_mask",),
        fills={"image_attention_mask": None},
        tiled=True,
        since="5.17",  # before, positions could not be beyond the number of rows
    ),
    "instructblip": Family(prompt="{image}{question}", note=READS_QUESTION),
    "instructblipvideo": Family(prompt="{image}{question}", image_token="video_token_index", note=READS_QUESTION),
    "blip-2": Family(prompt="{image}{question}"),
    "vipllava": Family(prompt=USER),
    "llava_next_video": Family(prompt=USER, tiled=True),
    "aya_vision": Family(tiled=True),
    "cohere2_vision": Family(tiled=True),
    "idefics2": Family(tiled=True),
    "llama4": Family(tiled=True),
    "granite4_vision": Family(tiled=True),
    "granite_docling": Family(tiled=True),
    "qianfan_ocr": Family(tiled=True),
    "hyperclovax_vision_v2": Family(multiplied=True),
    "chameleon": Family(never="vocabulary_mapping.image_tokens"),
    "gemma4_unified": Family(projector="embed_vision.multimodal_embedder"),
    "deepseek_ocr2": Family(vision="vision_tower.vision_encoder"),
    "muse_glimmer": Family(projector="perception_emb_norm"),
    "muse_spark": Family(projector="perception_emb_norm"),
    "kosmos-2": Family(
        prompt="Question: {question} Answer:",
        projector="image_to_text_projection",
        image_mask="image_embeds_position_mask",
        own_masks=True,
    ),
    "kosmos-2.5": Family(
        prompt=CHAT,
        projector="image_to_text_projection",
        image_mask="image_embeds_position_mask",
        cast=True,
        note="no heads inside its vision tower, which computes attention by itself",
    ),
    "unlimited_ocr": Family(vision="vision_tower.vision_encoder", note=FORGETS),
    **dict.fromkeys(("fast_vlm", "gemma3n"), Family(note=STAGES)),
    **dict.fromkeys(PLAIN, Family()),
}


def family_of(config: PretrainedConfig) -> Family:
    """The row of a model; a type outside the table gets what holds for most, and must pass the checks."""
    return FAMILIES.get(config.model_type, Family())


def known(model_type: str) -> bool:
    """Whether models of a type are known to be read truly with the transformers installed here."""
    row = FAMILIES.get(model_type)
    return row is not None and has_transformers(row.since)
