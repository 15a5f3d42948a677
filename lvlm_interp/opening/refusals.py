"""Why a model could not be opened: a broken file, a missing package or weight, or transformers' own words."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import is_torchvision_available

from lvlm_interp.errors import LvlmInterpWarning, ModelError
from lvlm_interp.families.shared.registry import family_of
from lvlm_interp.opening.broken import broken, remedy
from lvlm_interp.opening.fault import field_at_fault, need_ends, need_processing
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


def why_not_opened(name: str, path: str, revision: str | None, trust_remote_code: bool, error: Exception) -> str | None:
    """What a user can do about an error of transformers; None where nothing better than its own words is known."""
    said = str(error)
    if found := next(broken(path, revision), None):
        return f"could not open {name!r}: {found}. {remedy(path)}"
    if isinstance(error, SafetensorError):
        return f"could not open {name!r}: a file of its weights is damaged ({gist(error)}). {remedy(path)}"
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
    return why_not_used(name, path, revision, trust_remote_code)


def why_not_used(name: str, path: str, revision: str | None, trust_remote_code: bool) -> str | None:
    """The field of its files without which a model can be used; None where there is none."""
    found = field_at_fault(path, revision, trust_remote_code=trust_remote_code)
    return found and f"could not open {name!r}: {found}. {remedy(path)}"


def as_told(name: str, error: Exception) -> str:
    """That a model could not be opened, in the words of transformers."""
    return (
        f"could not open {name!r} as an image-text-to-text model: {gist(error)}\n"
        f"Known names: {REFERENCE!r}, a hub id such as 'llava-hf/llava-1.5-7b-hf', or a directory with config.json."
    )


def need_usable(
    name: str, path: str, revision: str | None, trust_remote_code: bool, processor: Any, model: PreTrainedModel
) -> None:
    """Raise for a field of files with which a model opens, and cannot be asked anything.

    Where no field is at fault, whoever asks is told what fails.
    """
    try:
        need_processing(processor, family_of(model.config).prompt)
        if (generation := getattr(model, "generation_config", None)) is not None:
            need_ends(generation)
    except Exception as error:  # of transformers, of any kind
        if told := why_not_used(name, path, revision, trust_remote_code):
            raise ModelError(told) from error


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
            "would be random. Fetch it anew, or mend its directory: a model.safetensors is read alone, whatever stands "
            "beside it, and of several files what model.safetensors.index.json names; or, if you mean to, open it with "
            "transformers and wrap(model, processor)"
        )
    others = [] if may_differ else sorted(report.get("mismatched_keys", ()), key=str)
    if others:
        shapes = [f"{key!r} {list(stored)}, not {list(built)}" for key, stored, built in others[:3]]
        raise ModelError(
            f"could not open {name!r}: {len(others)} weights have other shapes in its files than its config.json says: "
            f"{'; '.join(shapes)}. Put back the config.json that belongs to them, or fetch both anew"
        )
