"""What the model's own masks let every position see, kind of layer by kind of layer.

Most language models are causal and need nothing of this. Others let image tokens see each other (Gemma 3), or the
whole prompt (PaliGemma), or give some layers a sliding window. Their masks are not rebuilt here: they are taken from
the model's own call of its attention, so that the engine can cut rows out of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedModel

from lvlm_interp.errors import ModelError
from lvlm_interp.model.hooks import arguments_of


@dataclass(frozen=True, eq=False)
class LayerKind:
    """Layers that share one mask: their attention modules, and which key each row sees."""

    modules: tuple[nn.Module, ...]
    see: Bool[Tensor, "row key"]


@dataclass(frozen=True, eq=False)
class Sight:
    """The masks of all kinds of layers.

    `whole` says that nothing can be computed piece by piece for another reason: cross-attention keeps what it reads in
    the cache, and would read it twice; or layers leave more to later positions than a key and a value of each.
    `recurrent` says that layers hand a state from row to row, whatever the masks say: then nothing can stand side by
    side in one pass either. `unmasked` are attention modules that are told of padding only, and see what they choose
    among the rows before: nothing is hidden from them but by passing over it. `standing` says that edits or hooks of
    others are in the decoder, which must find each row at its position, or layers that compute a row by what stands
    beside it.
    """

    kinds: tuple[LayerKind, ...]
    unmasked: tuple[nn.Module, ...] = ()
    whole: bool = False
    recurrent: bool = False
    standing: bool = False

    @property
    def alone(self) -> bool:
        """Whether each sequence needs a pass of its own."""
        return self.recurrent or self.standing

    @functools.cached_property
    def causal(self) -> bool:
        """Every row sees all before it and nothing else."""
        return all(torch.equal(kind.see, torch.ones_like(kind.see).tril()) for kind in self.kinds)

    @functools.cached_property
    def cuts(self) -> tuple[bool, ...]:
        """For each position, whether no position before it sees it or anything after it.

        There a prefix can be computed without what follows.
        """
        seen = torch.stack([kind.see for kind in self.kinds]).any(0)
        last = (seen * torch.arange(seen.shape[1])).amax(1).cummax(0).values
        return (True, *(last[:-1] < torch.arange(1, len(last))).tolist())


def look(
    decoder: PreTrainedModel,
    first: nn.Module,
    kinds: Sequence[tuple[nn.Module, ...]],
    length: int,
    run: Callable[[], Any],
) -> tuple[dict[str, Any], dict[str, Any], Sight]:
    """The arguments that the decoder and its first block are called with, and the masks of its kinds of layers.

    The pass ends at the first layer of the last kind.
    """
    called, entered, *inside = arguments_of([decoder, first, *(kind[0] for kind in kinds)], run)
    masks = [(kind, given.get("attention_mask")) for kind, given in zip(kinds, inside, strict=True)]
    # Kernels that could be told which row sees what, and are told of padding only.
    told = decoder.config._attn_implementation in ("eager", "sdpa")
    padded = [told and isinstance(mask, Tensor) and mask.ndim == 2 for _, mask in masks]
    read = [pair for pair, no in zip(masks, padded, strict=True) if not no]
    found = [LayerKind(kind, _seen(kind[0], mask, length)) for kind, mask in read]
    unmasked = [module for (kind, _), no in zip(masks, padded, strict=True) if no for module in kind]
    return called, entered, Sight(tuple(found), tuple(unmasked))


def _seen(module: nn.Module, mask: Any, length: int) -> Bool[Tensor, "row key"]:
    """A mask of transformers as booleans; it leaves the mask out where a kernel can tell that it is causal."""
    if mask is None:
        everything = torch.ones(length, length, dtype=torch.bool)
        return everything.tril() if getattr(module, "is_causal", True) else everything
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise ModelError(
            f"{type(module).__name__} is called with a mask that cannot be read ({type(mask).__name__}); "
            "open the model with attn_implementation='sdpa' or 'eager'"
        )
    mask = mask[0, 0, :, :length].cpu()
    return mask.clone() if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
