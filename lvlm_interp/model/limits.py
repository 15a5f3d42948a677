"""How many positions a model was made for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PretrainedConfig

from lvlm_interp.errors import LvlmInterpWarning

LONGEST, ORIGINAL = "max_position_embeddings", "original_max_position_embeddings"


def longest(config: PretrainedConfig) -> int | None:
    """Positions that the language model was made for, stretched rotary ones included; None where it does not say."""
    text = config.get_text_config()
    said = [getattr(text, LONGEST, None)]
    said += [int(rope[ORIGINAL] * rope["factor"]) for rope in _ropes(text) if rope.get(ORIGINAL) and rope.get("factor")]
    return max((n for n in said if isinstance(n, int)), default=None)


def warn_if_longer(length: int, config: PretrainedConfig) -> None:
    """Warn where an example has more positions than that: what a model says there is no finding about it."""
    limit = longest(config)
    if limit is not None and length > limit:
        warnings.warn(
            f"the example has {length:,} positions, and the model was made for {limit:,} ({LONGEST}): beyond them its "
            "numbers mean little. Shorten the text, or give fewer or smaller pictures.",
            LvlmInterpWarning,
            stacklevel=4,
        )


def _ropes(text: PretrainedConfig) -> Iterator[Mapping[str, Any]]:
    """How positions are turned; some families say it for each kind of layer."""
    found = getattr(text, "rope_parameters", None) or {}
    yield from (found, *(one for one in found.values() if isinstance(one, Mapping)))
