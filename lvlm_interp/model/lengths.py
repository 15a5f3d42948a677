"""Layers that know how long the whole is, or count the rows that they are given: what they must be told in a part.

Rotary embeddings of the types `dynamic` and `longrope` turn every row by the length of what is read, once that is
beyond the length that the model was made for; Llama 4 multiplies queries by a number that grows with the row's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lvlm_interp.families.shared.family import Family
from lvlm_interp.model.parts import projections

FOLLOWING = ("dynamic", "longrope")
NOW, ORIGINAL = "inv_freq", "original_inv_freq"


def following(decoder: nn.Module) -> list[nn.Module]:
    """The rotary embeddings that follow the length of what is read."""
    rotaries = (module for module in decoder.modules() if "rope_type" in vars(module))
    return [module for module in rotaries if any(kind in told for told in _types(module) for kind in FOLLOWING)]


def _types(module: nn.Module) -> list[str]:
    """The type of a rotary embedding, or those of its kinds of layers."""
    told = module.rope_type
    return [str(one) for one in told.values()] if isinstance(told, Mapping) else [str(told)]


def unmoved(rotaries: Iterable[nn.Module]) -> float:
    """The length up to which they turn all rows alike."""
    told = [length for rotary in rotaries for length in _lengths(rotary)]
    return min(told, default=math.inf)


def _lengths(rotary: nn.Module) -> Iterator[int]:
    settings: Any = getattr(getattr(rotary, "config", None), "rope_parameters", None) or {}
    for some in (settings, *(kind for kind in settings.values() if isinstance(kind, Mapping))):
        if (length := some.get("original_max_position_embeddings")) is not None:
            yield int(length)
    if (length := getattr(rotary, "original_max_seq_len", None)) is not None:
        yield int(length)


def forget(rotaries: Iterable[nn.Module]) -> None:
    """Undo what they remember of longer passes before: transformers goes on with those frequencies for shorter ones."""
    for rotary in rotaries:
        for name in [name for name in rotary._buffers if name.endswith(ORIGINAL)]:
            prefix, original = name.removesuffix(ORIGINAL), getattr(rotary, name)
            now = getattr(rotary, prefix + NOW)
            setattr(rotary, prefix + NOW, original.clone().to(now.device))
            if hasattr(rotary, f"{prefix}max_seq_len_cached"):
                setattr(rotary, f"{prefix}max_seq_len_cached", getattr(rotary, "original_max_seq_len"))  # noqa: B009


def recounted(
    family: Family, attentions: Iterable[nn.Module], places: Int[Tensor, "*batch row"], first: int = 0
) -> dict[nn.Module, Float[Tensor, "*batch row 1"]]:
    """What computes queries, and what its rows must be multiplied by to be those of their places.

    Layers number the rows that they are given from `first` on; empty where that makes no difference.
    """
    if family.tempered is None:
        return {}
    counted, found = torch.arange(first, first + places.shape[-1], device=places.device), {}
    for attention in attentions:
        asked, given = family.tempered(attention, places), family.tempered(attention, counted)
        if asked is not None and given is not None and not (asked == given).all():
            found[projections(attention)["q"].module] = (asked / given)[..., None]
    return found
