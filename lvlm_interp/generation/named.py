"""Ways to decode, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lvlm_interp.errors import InputError
from lvlm_interp.generation.choosing import Changing, Choosing, Greedy, Sampled
from lvlm_interp.generation.contrasting import CONTRASTIVE
from lvlm_interp.generation.layered import DeCo, DoLa
from lvlm_interp.given import explained

DECODINGS: Mapping[str, Changing] = {**CONTRASTIVE, "dola": DoLa(), "deco": DeCo()}
"""Published settings of ways to change logits, by name."""


@explained
def decoding(name: str | None = None, temperature: float = 0.0) -> Choosing:
    """How logits are changed, and whether a token is drawn of them.

    Args:
        name: one of `DECODINGS`; None changes nothing.
        temperature: 0 takes the likeliest.

    Raises:
        InputError: no such name, or a temperature below 0.
    """
    if name is not None and name not in DECODINGS:
        raise InputError(f"no decoding {name!r}; there are {list(DECODINGS)}")
    then = Sampled(temperature) if temperature else Greedy()
    return then if name is None else dataclasses.replace(DECODINGS[name], then=then)
