"""A tiny random LLaVA from a config: plumbing is tested on it, behaviour on the reference model."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_TOKEN = 150
PATCHES = 4


def tiny_llava(attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0, side: int = 2):
    torch.manual_seed(seed)
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=200,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,  # the default is so small that every coalition would score alike
    )
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=14 * side,
        patch_size=14,
        initializer_range=0.3,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration._from_config(config, attn_implementation=attention).to(dtype).eval()


def tiny_inputs(vlm, answer=(7, 8, 9), images=1, roles=True, seed=1, side=2):
    """BOS, system, images, context, question, template, answer."""
    ids = [1, 20, 21, *[IMAGE_TOKEN] * side**2 * images, 30, 31, 32, 40, 41, 42, 50, *answer]
    named = ["template", "system", "system", *["image"] * side**2 * images, *["context"] * 3, *["question"] * 3]
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, 3, 14 * side, 14 * side, generator=generator).to(vlm.model.dtype)
    return vlm.inputs(
        input_ids=torch.tensor([ids]),
        answer_start=len(ids) - len(answer),
        roles=[*named, "template", *["answer"] * len(answer)] if roles else None,
        pixel_values=pixels,
    )


def hooks_of(model):
    """How many hooks all modules have together."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
