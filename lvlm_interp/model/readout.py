"""From the residual stream to logits: final norm, unembedding, and what a family does to logits afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from lvlm_interp.errors import ModelError
from lvlm_interp.given import explaining
from lvlm_interp.model.acting import acting, wrapped_by
from lvlm_interp.model.weights import fetched, map_of, sizes_of

LOGITS_AT_ONCE = 1 << 24  # elements of logits held at once
WEIGHTS_AT_ONCE = 1 << 26  # elements of the unembedding held in float32 at once
HALF = (torch.bfloat16, torch.float16)


class Mixing(nn.Module):
    """The final norm of several residual streams, side by side in the width: what mixes them, then the norm."""

    def __init__(self, mixer: nn.Module, norm: nn.Module, width: int) -> None:
        super().__init__()
        self.mixer, self.norm, self.width = mixer, norm, width

    def forward(self, residual: Float[Tensor, "*rows streams"]) -> Float[Tensor, "*rows width"]:
        """What the unembedding reads; the mixer takes `[batch, position, stream, width]`."""
        streams = residual.reshape(1, -1, residual.shape[-1] // self.width, self.width)
        normalized: Tensor = self.norm(self.mixer(streams))
        return normalized.reshape(*residual.shape[:-1], self.width)


class Giving(nn.Module):
    """In the place of a block: gives what it holds, whatever it is given."""

    def __init__(self, held: Tensor) -> None:
        super().__init__()
        self.held = held

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.held


class Behind(nn.Module):
    """What stands behind the last block, where the decoder mixes its residual streams in code of its own (Gemma 3n).

    That code is run as it is, in a likeness of the decoder: the same modules, but one in the place of all its blocks,
    which gives the streams. `axis` is theirs in what a block, one of these, gives.
    """

    def __init__(self, decoder: PreTrainedModel, block: nn.Module, axis: int, width: int) -> None:
        super().__init__()
        self.decoder, self.axis, self.width = decoder, axis, width
        self.place = next(
            name for name, child in decoder.named_children() if block in map(acting, acting(child).children())
        )

    def forward(self, residual: Float[Tensor, "*rows streams"]) -> Float[Tensor, "*rows width"]:
        """What the unembedding reads; every row is a sequence of its own, so that masks stay small."""
        streams = residual.reshape(-1, 1, residual.shape[-1] // self.width, self.width).movedim(-2, self.axis)
        likeness = copy.copy(self.decoder)
        likeness._modules = {**self.decoder._modules, self.place: nn.ModuleList([Giving(streams)])}
        embeds = streams.select(self.axis, 0)  # nothing comes of them: they go to the block
        found = type(likeness).forward(likeness, inputs_embeds=embeds, use_cache=False)
        normalized: Tensor = found.last_hidden_state
        return normalized.reshape(*residual.shape[:-1], self.width)


@explaining
@dataclass(frozen=True)
class Readout:
    """The last steps of a language model.

    They are taken in float32 where the model computes in half precision: in bfloat16, a logit of 20 is rounded to the
    nearest eighth, more than hiding a patch may change it.

    Attributes:
        norm: final norm of the decoder; before it, what mixes its residual streams into one, where there are several.
        unembed: linear map to the vocabulary.
        scale: what logits are multiplied by (Granite, Cohere), 1 for most.
        softcap: `c · tanh(logits / c)` (Gemma 2), None for most.
        never: ids of tokens that the model never says (Chameleon, whose image tokens are in its vocabulary): it sets
            their logits to the lowest number. None for most.
    """

    norm: nn.Module
    unembed: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    never: Int[Tensor, " some"] | None = None

    @property
    def weight(self) -> Float[Tensor, "vocabulary width"]:
        """The direction in which each token's logit is read: the map that is computed, also where another is stored."""
        return map_of(self.unembed)[0]

    @property
    def bias(self) -> Float[Tensor, " vocabulary"] | None:
        """What is added to each token's logit, whatever is read; None for most."""
        return map_of(self.unembed)[1]

    @property
    def vocabulary(self) -> int:
        """How many tokens there are logits for."""
        return self._sizes[1]

    @property
    def width(self) -> int:
        """How many numbers the unembedding reads."""
        return self._sizes[0]

    @property
    def _sizes(self) -> tuple[int, int]:
        sizes = sizes_of(self.unembed)
        if sizes is None:
            raise ModelError(f"{type(self.unembed).__name__} is no linear map from a stream to a vocabulary")
        return sizes

    def __call__(self, residual: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocabulary"]:
        """Logits of a residual stream (the logit lens, at any layer)."""
        return self.logits(self._normalized(residual))

    def _normalized(self, residual: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows wide"]:
        """The final norm; in float32 where it is one module with its weights."""
        weights = dict(self.norm.named_parameters())
        simple = not any(self.norm.children()) and not any(weight.is_meta for weight in weights.values())
        if residual.dtype not in HALF or not simple:
            normalized: Tensor = self.norm(residual)
            return normalized
        return torch.func.functional_call(self.norm, {k: v.float() for k, v in weights.items()}, (residual.float(),))

    def logits(self, normalized: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocabulary"]:
        """Logits of what already went through the final norm."""
        logits = self._unembedded(normalized)
        logits = logits * self.scale if self.scale != 1.0 else logits
        logits = torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits
        if self.never is None:
            return logits
        return logits.index_fill(-1, self.never.to(logits.device), torch.finfo(logits.dtype).min)

    def _unembedded(self, normalized: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocabulary"]:
        """The linear map; in float32, a part of the vocabulary at a time, where its weights are in half precision."""
        weight = self.weight if type(self.unembed) is nn.Linear and not _hooked(self.unembed) else None
        if weight is None or weight.dtype not in HALF:
            logits: Tensor = self.unembed(normalized.to(_read_in(self.unembed, normalized.dtype)))
            return logits
        states = normalized.to(weight.device, torch.float32)
        parts = weight.split(max(1, WEIGHTS_AT_ONCE // weight.shape[-1]))
        logits = torch.cat([states @ part.float().T for part in parts], -1)
        bias = self.unembed.bias
        return logits if bias is None else logits + fetched(self.unembed, "bias").float()

    @property
    def rows_at_once(self) -> int:
        """How many rows go through the unembedding together."""
        return max(1, LOGITS_AT_ONCE // getattr(self.unembed, "out_features", 1 << 16))

    def few_at_once(
        self, normalized: Float[Tensor, "rows width"]
    ) -> Iterator[tuple[slice, Float[Tensor, "some vocabulary"]]]:
        """Logits of many rows, as many at a time as `LOGITS_AT_ONCE` allows: which rows, and their logits.

        Rows times vocabulary would soon be gigabytes; and unembedding a few rows costs as much as unembedding many.
        """
        for start in range(0, len(normalized), self.rows_at_once):
            rows = slice(start, start + self.rows_at_once)
            yield rows, self.logits(normalized[rows])


def _read_in(module: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """The half precision in which the layer within an adapter reads; adapters alone are in float32."""
    while (inner := wrapped_by(module)) is not None:
        module = inner
    weight = getattr(module, "weight", None)
    return weight.dtype if isinstance(weight, Tensor) and weight.dtype in HALF else otherwise


def _hooked(module: nn.Module) -> bool:
    """Whether something of a user's runs with a module, so that it must be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
