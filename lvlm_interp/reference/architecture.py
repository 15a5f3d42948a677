"""What the reference LVLM is made of: the numbers that training and assembly must agree on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURE_LAYERS = (-1, -5, -9)
"""DINOv2 layers whose patch features LLaVA concatenates: names live in the last, colour and place in the middle."""
PATCH = 14
VISION_WIDTH = 384
TEXT_WIDTH = 576
LORA_RANK = 16
LORA_ALPHA = 32
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
IMAGE_TOKEN = "<image>"
RESERVED_TOKEN = "<empty_output>"  # of SmolLM2's vocabulary, used by no text; becomes the image token
PROMPT = "<|im_start|>user\n{image}\n{question}<|im_end|>\n<|im_start|>assistant\n"
START = "<|im_start|>"
END = "<|im_end|>"


class Projector(nn.Module):
    """LLaVA's projector: features `[…, 1152]` → embeddings `[…, 576]`; names as in `LlavaMultiModalProjector`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(VISION_WIDTH * len(FEATURE_LAYERS), TEXT_WIDTH)
        self.linear_2 = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(nn.functional.gelu(self.linear_1(features)))


def folded(projector: Projector, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """The weights of a projector trained on whitened features, made to take raw ones: exact algebra."""
    state = {name: tensor.detach().clone() for name, tensor in projector.state_dict().items()}
    state["linear_1.weight"] /= std
    state["linear_1.bias"] -= state["linear_1.weight"] @ mean
    return state


def merged(weight: Tensor, lora_a: Tensor, lora_b: Tensor) -> Tensor:
    """A frozen weight with its low-rank update folded in: W + (α/r)·B·A (Hu et al. 2021, eq. 3)."""
    return weight + (LORA_ALPHA / LORA_RANK) * (lora_b.to(torch.float32) @ lora_a.to(torch.float32))
