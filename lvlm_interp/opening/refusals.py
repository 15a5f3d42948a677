"""Why a model could not be opened: which file of it is broken, which package is missing, or transformers' own words."""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import is_torchvision_available

from lvlm_interp.errors import LvlmInterpWarning, ModelError
from lvlm_interp.shown import gist

REFERENCE = "reference"
INSTALLED = {  # packages that some processors need, and how to get them
    "torchvision": "install the release made for your torch "
    f"({torch.__version__}): pip install torchvision, or see https://pytorch.org/get-started/locally",
    "num2words": "pip install num2words",
    "timm": "pip install timm",
}
# What transformers says where it would not import an image processor without torchvision.
UNSEEN = "Unrecognized image processor"
OBJECTS = (  # files of a model that hold an object of JSON; transformers does not always say which one it cannot read
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors.index.json",
)
FETCH = "Fetch it anew: load(…, force_download=True), or remove it from the cache that `hf cache list` shows"


def why_not_opened(name: str, path: str, revision: str | None, error: Exception) -> str:
    """What a user can do about an error of transformers; its own words where nothing better is known."""
    said = str(error)
    if isinstance(error, SafetensorError):
        return f"could not open {name!r}: a file of its weights is damaged ({gist(error)}). {FETCH}"
    if broken := next(_broken(path, revision), None):
        return f"could not open {name!r}: {broken}. {FETCH}; or put back what was there"
    needed = next((package for package in INSTALLED if re.search(rf"\b{package}\b", said.lower())), None)
    if UNSEEN in said and not is_torchvision_available():
        needed = "torchvision"
    if needed:
        return f"could not open {name!r}: its processor needs the package {needed}; {INSTALLED[needed]}"
    if "trust_remote_code" in said:
        return (
            f"{name!r} brings code of its own, which is run only if you ask for it: read that code, then "
            f"load({name!r}, trust_remote_code=True)"
        )
    return (
        f"could not open {name!r} as an image-text-to-text model: {gist(error)}\n"
        f"Known names: {REFERENCE!r}, a hub id such as 'llava-hf/llava-1.5-7b-hf', or a directory with config.json."
    )


def _broken(path: str, revision: str | None) -> Iterator[str]:
    """What is wrong with files that should hold an object of JSON, each with its name."""
    for name in OBJECTS:
        file = kept_file(path, name, revision)
        if file is not None and (wrong := _wrong_with(file)):
            yield f"{file} {wrong}"


def kept_file(path: str, name: str, revision: str | None) -> str | None:
    """A file of a model, in its directory or in the cache of its hub, where it is there."""
    from huggingface_hub import try_to_load_from_cache

    kept: Any = os.path.join(path, name)
    if not os.path.isdir(path):
        with contextlib.suppress(ValueError):  # what no model of a hub can be called
            kept = try_to_load_from_cache(path, name, revision=revision)
    return kept if isinstance(kept, str) and os.path.isfile(kept) else None


def _wrong_with(file: str) -> str | None:
    try:
        with open(file, encoding="utf-8") as stream:
            found = json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        return f"cannot be read as JSON ({gist(error)})" if os.path.getsize(file) else "is empty"
    return None if isinstance(found, dict) else f"holds a {type(found).__name__} of JSON, not an object"


def need_all_weights(name: str, report: dict[str, Any], may_differ: bool) -> None:
    """Raise for what transformers would fill with random numbers: what a checkpoint lacks, or has in other shapes."""
    missing: Collection[str] = report["missing_keys"]
    if unread := sorted(report.get("unexpected_keys", ())):
        warnings.warn(
            f"{len(unread)} weights in the files of {name!r} are not read, {unread[0]!r} among them: its config.json "
            "tells of a smaller model, or they belong to parts that are not opened",
            LvlmInterpWarning,
            stacklevel=3,
        )
    if missing:
        first = sorted(missing)[:3]
        raise ModelError(
            f"{len(missing)} weights are not in the files of {name!r}, {', '.join(map(repr, first))} among them: they "
            "would be random. Fetch it anew; or, if you mean to, open it with transformers and wrap(model, processor)"
        )
    others = [] if may_differ else sorted(report.get("mismatched_keys", ()), key=str)
    if others:
        shapes = [f"{key!r} {list(stored)}, not {list(built)}" for key, stored, built in others[:3]]
        raise ModelError(
            f"could not open {name!r}: {len(others)} weights have other shapes in its files than its config.json says: "
            f"{'; '.join(shapes)}. Put back the config.json that belongs to them, or fetch both anew"
        )
