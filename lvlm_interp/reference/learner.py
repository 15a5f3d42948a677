"""What learns: the projector and LoRA around frozen base models, and the settings of its training."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lvlm_interp.reference import scenes
from lvlm_interp.reference.architecture import (
    FEATURE_LAYERS,
    IMAGE_MEAN,
    IMAGE_STD,
    PATCH,
    Projector,
    folded,
)
from lvlm_interp.reference.base_weights import load_language_model, load_tokenizer, load_vision_tower
from lvlm_interp.reference.low_rank import adapt
from lvlm_interp.reference.rule import Source
from lvlm_interp.reference.scenes import Scene

GRID = scenes.SIZE // PATCH


@functools.cache
def computed_in() -> torch.dtype:
    """The numbers of the language model: bfloat16 where this processor multiplies it itself, which is 3 times as fast.

    Where it is emulated, a step takes minutes.
    """
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


@dataclass(frozen=True)
class Stage:
    """A run of steps: rates warm up and then decay linearly; of each question, roles are hidden with these chances."""

    steps: int
    scenes: int = 12
    projector_rate: float = 5e-4
    lora_rate: float = 8e-4
    hidden: Mapping[Source, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What decides the result, written beside it."""

    seed: int = 0
    align_scenes: int = 4800
    align_epochs: int = 10
    align_rate: float = 2e-3
    tune: Stage = field(default_factory=lambda: Stage(800))
    drop: Stage = field(
        default_factory=lambda: Stage(
            200,
            projector_rate=0.0,
            lora_rate=4e-4,
            hidden={"question": 0.3, "image": 0.25, "context": 0.25, "system": 0.25},
        )
    )
    remember: float = 0.5
    warmup: int = 20
    final_rate: float = 0.02
    evaluate_every: int = 100
    checkpoint_every: int = 25
    held_out_scenes: int = 192

    @property
    def steps(self) -> int:
        """Steps of both stages together."""
        return self.tune.steps + self.drop.steps

    def at(self, step: int) -> tuple[Stage, int]:
        """The stage of a step, and which of its steps this is."""
        return (self.tune, step) if step < self.tune.steps else (self.drop, step - self.tune.steps)


@dataclass(frozen=True)
class Batch:
    """Packed talks. `see` is True where a row may look: `[row, 1, position, key]`; `features` are `[picture, …]`."""

    features: Tensor
    ids: Tensor
    positions: Tensor
    labels: Tensor
    see: Tensor
    kinds: list[list[str]]


class Learner(nn.Module):
    """Frozen base models with a trainable projector and LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer()
        self.vision = load_vision_tower().requires_grad_(False)
        self.language = load_language_model().requires_grad_(False).to(dtype=computed_in())
        # on CPU faster than SDPA for short rows with a mask, and half the step
        self.language.set_attn_implementation("eager")
        self.updates = adapt(self.language.model)
        self.projector = Projector()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(self.projector.linear_1.in_features))
        self.register_buffer("std", torch.ones(self.projector.linear_1.in_features))

    def compile(self) -> None:
        """Compute the blocks by code that is compiled first: a minute, and then each step takes 3/5 of its time."""
        torch._dynamo.config.recompile_limit = 64  # blocks differ, and run with and without gradients and adapters
        for layer in self.language.model.layers:
            layer.compile(dynamic=True)

    @property
    def lora(self) -> dict[str, nn.Parameter]:
        """The LoRA matrices, by their names in an adapter."""
        return {f"{n}.{m}": getattr(one, m) for n, one in self.updates.items() for m in ("lora_A", "lora_B")}

    def merge(self) -> None:
        """Compute by what was learnt: before each step."""
        for one in self.updates.values():
            one.merge()

    @property
    def learning(self) -> dict[str, Tensor]:
        """All that a run changes, by name; `mean` and `std` are learnt at its beginning."""
        projector = dict(self.projector.named_parameters(prefix="projector"))
        return {**projector, **self.lora, "mean": self.mean, "std": self.std}

    @functools.cached_property
    def embeddings(self) -> Tensor:
        return self.language.get_input_embeddings().weight.detach()

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    @torch.no_grad()
    def features(self, batch: Sequence[Scene]) -> Tensor:
        """Raw patch features of three layers, `[scene, patch, 1152]`."""
        if not batch:
            return torch.zeros(0, GRID**2, self.projector.linear_1.in_features)
        mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGE_MEAN, IMAGE_STD))
        pixels = torch.stack([(_pixels(s) - mean) / std for s in batch])
        states = self.vision(pixels, output_hidden_states=True).hidden_states
        return torch.cat([states[layer][:, 1:] for layer in FEATURE_LAYERS], -1)

    def whitened(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states `[scene, row, width]`."""
        embedded = self.language.get_input_embeddings()(batch.ids.clamp(min=0))
        if len(batch.features):
            image = self.projector(self.whitened(batch.features)).to(embedded.dtype)
            embedded = embedded.masked_scatter((batch.ids < 0)[:, :, None], image)
        mask = torch.zeros_like(batch.see, dtype=embedded.dtype).masked_fill(~batch.see, -1e9)
        return self.language.model(
            inputs_embeds=embedded, attention_mask=mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state

    def adapter(self) -> dict[str, Tensor]:
        """What ships: the projector on raw features and the LoRA matrices, in float16."""
        state = {f"projector.{k}": v for k, v in folded(self.projector, self.mean, self.std).items()}
        state |= {name: tensor.detach() for name, tensor in self.lora.items()}
        return {k: v.to(torch.float16).contiguous() for k, v in state.items()}

    @torch.no_grad()
    def load_adapter(self, state: Mapping[str, Tensor]) -> None:
        """Go on from an adapter that `adapter` wrote; its projector takes raw features, so whitening is undone."""
        self.mean.zero_()
        self.std.fill_(1)
        for name, parameter in self.projector.named_parameters(prefix="projector"):
            parameter.copy_(state[name])
        for name, parameter in self.lora.items():
            parameter.copy_(state[name])
        self.merge()


def _pixels(scene: Scene) -> Tensor:
    flat = torch.frombuffer(bytearray(scene.image.tobytes()), dtype=torch.uint8)
    return flat.view(scenes.SIZE, scenes.SIZE, 3).permute(2, 0, 1).float() / 255
