"""The tokens that end a turn, as a model's settings have them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from lvlm_interp.errors import ModelError
from lvlm_interp.fields import shown


def stops_of(model: PreTrainedModel, vocabulary: int) -> list[int]:
    """Their ids, those of the configuration where the settings of generation name none; 0 where nothing does.

    Raises:
        ModelError: they are no ids.
    """
    of = (model.generation_config, model.config.get_text_config())
    told = (ids_in("eos_token_id", getattr(one, "eos_token_id", None)) for one in of)
    said = ([one for one in ids if one < vocabulary] for ids in told)  # others end no turn
    return next(filter(None, said), [0])


def ids_in(name: str, value: Any) -> list[int]:
    """Numbers of tokens, one or several, in whatever a setting holds them; without those that are none (-1).

    Raises:
        ModelError: what are no ids.
    """
    if value is None:
        return []
    try:
        found = torch.as_tensor(value)
        if found.numel() and (found.is_floating_point() or found.dtype == torch.bool):
            raise TypeError(f"{found.dtype}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{name} is the number of a token, or several; got {shown(value)}") from error
    return [int(one) for one in found.flatten().tolist() if one >= 0]
