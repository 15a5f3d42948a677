"""What older releases of transformers lack or call otherwise: asked of it here, in one place.

Each entry says which release ends it: once that is the lower bound in `pyproject.toml`, the entry goes.
`make test-oldest` runs the tests with the lowest releases.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from transformers import cache_utils
from transformers.utils import output_capturing

# 5.23: what a cache has for a layer that keeps nothing itself; before, it had nothing for it.
EMPTY_LAYER: type | None = getattr(cache_utils, "DummyLayer", None)
# By 5.23: only those hidden states of a tower are kept that are asked for, and layer 0 alone is taken for none.
READS_LAYER_ZERO = not hasattr(output_capturing, "select_hidden_states")


def recounted(tensor: torch.Tensor, count: int) -> None:
    """Have torch's count of writes into a tensor say what it said, where it can be told to."""
    set_count = getattr(torch._C._autograd, "_unsafe_set_version_counter", None)
    with contextlib.suppress(TypeError):  # up to 2.5 it takes one tensor
        if set_count is not None:
            set_count((tensor,), (count,))
            return
    if set_count is not None:
        set_count(tensor, count)


def has_transformers(release: str) -> bool:
    """Whether the transformers installed here is of this release or a later one."""
    here = transformers.__version__.split(".")[:2]
    return [int(n) for n in here] >= [int(n) for n in release.split(".")]


def known_to(function: Callable[..., Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function has: 5.21 gave some one more, or took one from them."""
    return {name: told[name] for name in told.keys() & inspect.signature(function).parameters.keys()}


def images_kwargs(processor: Any) -> Mapping[str, Any]:
    """What a processor tells its image processor by default.

    From 5.23 on it says so itself; before, a class of arguments that stands beside its own did.
    """
    if (told := getattr(processor, "images_kwargs", None)) is not None:
        return told
    beside = (vars(sys.modules[kind.__module__]).get(f"{kind.__name__}Kwargs") for kind in type(processor).__mro__)
    defaults = (getattr(kwargs, "_defaults", None) for kwargs in beside)
    return next((found.get("images_kwargs", {}) for found in defaults if found is not None), {})
