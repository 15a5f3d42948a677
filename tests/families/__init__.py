"""Tiny random models of many families, from configs alone: no network, no weights. A file for each group of families.

A row of `TINY` says which class, which config, what the processor would have made of one image, and around which ids
its tokens stand. How many tokens the image has is asked of the model where the row does not say it. A file may have
`CASES` too (image processors, for `tests.processors`), `CLIPS`, `FILMS` and `READERS` (videos, for `tests.videos`), and
`SAVED` (processors in a directory, for `tests.saved`).
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from lvlm_interp.families.shared.registry import known
from tests.families.shared.tiny import ANSWER, IMAGE, QUESTION, Tiny, need, too_new

FILES = [
    importlib.import_module(f"{__name__}.{name}")
    for name in sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.ispkg)
]


def collected(kind: str) -> dict[str, Any]:
    """The rows of one kind in all files, by name."""
    found = [(name, row) for file in FILES for name, row in getattr(file, kind, {}).items()]
    assert len(dict(found)) == len(found), f"two files have a row of {kind} for one name"
    return dict(found)


ROWS: dict[str, Tiny] = collected("TINY")
FAMILIES = {name: row for name, row in ROWS.items() if row.promised}
"""The families that the package promises."""
WITH_TIMM = {name: row for name, row in ROWS.items() if row.timm}
ALL = {name: row for name, row in ROWS.items() if not row.timm or importlib.util.find_spec("timm")}
"""Those that can be built here."""
FAILING = {name: row.failing for name, row in ROWS.items() if row.failing}
"""Families that are refused when they are opened, or do not pass, with the reason."""

TIMM = "its vision tower is built by timm, which is not installed here"
UNTRIED: dict[str, str] = {
    **dict.fromkeys(WITH_TIMM.keys() - ALL.keys(), TIMM),
    "mistral4": "a language model alone, which takes no image",
    "pi0": "it gives a robot's actions by flow matching, not tokens",
}
"""Types of the mapping without a row here, with the reason; others have not been tried."""

MODEL_TYPES = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


TOO_NEW = {row.config["model_type"] for row in ALL.values() if too_new(row.config["model_type"])}
"""Types that the transformers installed here does not have: they came with later releases."""


def need_read(model_type: str) -> None:
    """Skip a test of a type that is refused with the transformers installed here, and read with later ones."""
    if not known(model_type):
        pytest.skip(f"with transformers {transformers.__version__}, models of type {model_type!r} are refused")


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of a size at which every part makes a difference: gates open, projections not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                spread = 0.5 if "embed_tokens" in name else weight[0].numel() ** -0.5
                weight.copy_(drawn * spread)
            else:
                weight.add_(0.3 * drawn.abs())
    return model


def tiny_model(
    name: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, rows: Mapping[str, Tiny] | None = None
) -> Any:
    """A random model of a family, in evaluation mode."""
    row = (rows or ALL)[name]
    need(row.config["model_type"])
    named = {row.image_name: IMAGE} if row.image_name else {}
    given = copy.deepcopy({**row.config, **named})  # configs write into what they are given
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
    kind = getattr(transformers, MODEL_TYPES[config.model_type])
    # The parts of some models cannot use SDPA yet in older releases of transformers, which say so where it is named.
    asked = row.kernel or (None if attention == "sdpa" else attention)
    return lively(kind._from_config(config, attn_implementation=asked)).to(dtype).eval()


def tiny_example(vlm: Any, name: str, seed: int = 1, rows: Mapping[str, Tiny] | None = None) -> Any:
    """An example with an image, a question and an answer, as `vlm.inputs` takes it."""
    row, generator = (rows or ALL)[name], torch.Generator().manual_seed(seed)
    pixels = {
        k: v if isinstance(v, Tensor) else torch.randn(v, generator=generator).to(vlm.model.dtype)
        for k, v in row.pixels.items()
    }
    image = [*row.around[0], *[IMAGE] * (row.tokens or _counted(vlm.model, pixels)), *row.around[1]]
    prompt = [*image, 1, *QUESTION] if row.first else [1, *image, *QUESTION]
    ids = torch.tensor([[*prompt, *ANSWER]])
    return vlm.inputs(input_ids=ids, answer_start=len(prompt), **pixels, **row.more(ids))


@torch.no_grad()
def _counted(model: Any, pixels: Mapping[str, Tensor]) -> int:
    found = model.base_model.get_image_features(**pixels)
    features = getattr(found, "pooler_output", found)
    return sum(f.reshape(-1, f.shape[-1]).shape[0] for f in features)
