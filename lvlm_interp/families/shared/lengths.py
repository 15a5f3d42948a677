"""From how many positions on a decoder computes a row by the length of the batch that it stands in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PretrainedConfig

# Kinds of rotary embedding whose frequencies follow from the largest position, for all rows at once.
BY_LENGTH = ("dynamic", "longrope")


def counts_rows(config: PretrainedConfig) -> float:
    """The number of positions up to which a row does not depend on how long the others are; infinite for most.

    Llama 4 scales its queries by the number of a row, not by its position.
    """
    found = [_original(config, one) for one in _rotary(config) if one.get("rope_type") in BY_LENGTH]
    if getattr(config, "attn_temperature_tuning", False) and (floor := getattr(config, "floor_scale", None)):
        found.append(int(floor))
    return min(found, default=math.inf)


def counted(base: Any, given: Mapping[str, Any]) -> Int[Tensor, "1 position"]:
    """Positions counted from the first of an example: what a decoder takes for granted, padding in front or not."""
    ids = given["input_ids"]
    return torch.arange(ids.shape[-1], device=ids.device)[None]


def _rotary(config: PretrainedConfig) -> Iterator[Mapping[str, Any]]:
    """The kinds of rotary embedding of a config: one, or one for each type of layer."""
    told = getattr(config, "rope_parameters", None) or {}
    yield told
    yield from (one for one in told.values() if isinstance(one, Mapping))


def _original(config: PretrainedConfig, told: Mapping[str, Any]) -> int:
    """The length that the frequencies were made for."""
    own = told.get("original_max_position_embeddings", getattr(config, "original_max_position_embeddings", None))
    return int(own if own is not None else config.max_position_embeddings)
