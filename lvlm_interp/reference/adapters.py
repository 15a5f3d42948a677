"""The trained weights that ship, by version; they are kept small as lines of eight-bit numbers, each with a scale."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from lvlm_interp.errors import ModelError

SCALE = ".scale"
VERSIONS: Mapping[str, tuple[str, ...]] = {
    "0.1": ("0.1.safetensors",),
    "align": ("align.safetensors",),
    "tune": ("tune.safetensors",),
    "0.2": ("tune.safetensors", "drop.safetensors"),
}
"""The files of a version; what stands in a later one counts. `align` and `tune` are 0.2 after its first two stages."""
LATEST = "0.2"


def adapter_files(version: str = LATEST) -> list[Path]:
    """The files of a version.

    Raises:
        ModelError: no such version; names those that there are.
    """
    if version not in VERSIONS:
        known = ", ".join(f"reference@{name}" for name in VERSIONS)
        raise ModelError(f"there is no reference@{version}; there are {known}, and reference, which is the latest")
    folder = resources.files("lvlm_interp.reference")
    return [Path(str(folder / name)) for name in VERSIONS[version]]


def read(version: str = LATEST) -> dict[str, Tensor]:
    """The projector and the LoRA matrices of a version, in numbers with a point."""
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for path in adapter_files(version):
        state |= unpacked(load_file(path))
    return state


def small(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in eight bits, each line with its own scale: off by at most 1/254 of a line's largest number.

    Lines run along the longer side, so that there are few scales. Everything else is in float16.
    """
    kept: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.ndim != 2:
            kept[name] = value.half()
            continue
        along = 1 if value.shape[1] >= value.shape[0] else 0
        scale = (value.float().abs().amax(along, keepdim=True) / 127).clamp(min=1e-12)
        kept[name] = (value.float() / scale).round().to(torch.int8)
        kept[name + SCALE] = scale
    return kept


def unpacked(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `small` made small; what it did not is as it is."""
    matrices = {name.removesuffix(SCALE) for name in kept if name.endswith(SCALE)}
    whole = {name: value for name, value in kept.items() if name not in matrices and not name.endswith(SCALE)}
    return whole | {name: kept[name].float() * kept[name + SCALE] for name in matrices}
