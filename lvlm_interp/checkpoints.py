"""Checkpoints: what learns, and the state of its optimizer, in one safetensors file that is replaced whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from xxhash import xxh3_128

from lvlm_interp.errors import InputError, OutputError
from lvlm_interp.files import told

STEP, VALUE, DIGEST = "step", "value", "digest"


def need_place(path: Path) -> Path:
    """The path of a checkpoint, before anything is computed that it is to keep.

    Raises:
        OutputError: no file can be written there.
    """
    with told("write the checkpoint", path):
        if path.is_dir():
            raise OutputError(f"{path} is a directory; give the checkpoint's file")
        partial = _partial(path)
        partial.write_bytes(b"0")  # by its name, which may be longer than names may be
        partial.unlink()
    return path


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def write_checkpoint(
    path: Path,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
    about: Mapping[str, str] | None = None,
) -> None:
    """Keep all that the next step needs.

    Args:
        path: the file; it is whole or as it was, never half.
        parameters: what learns, by name.
        optimizer: whose state of them is kept.
        step: how many steps are done.
        about: what the checkpoint is of, as text; `read_checkpoint` wants the same.

    Raises:
        OutputError: the file cannot be written.
    """
    from safetensors.torch import save_file

    kept = {f"{VALUE}/{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        kept.update({f"{key}/{name}": state for key, state in optimizer.state.get(parameter, {}).items()})
    partial = _partial(path)
    try:
        whole = {k: v.contiguous() for k, v in kept.items()}
        save_file(whole, partial, {STEP: str(step), DIGEST: _digest(whole, str(step)), **(about or {})})
        os.replace(partial, path)
    except Exception as error:  # safetensors raises its own kinds for a full disk or a missing folder
        raise OutputError(f"could not write the checkpoint {path}: {error}") from error


@torch.no_grad()
def read_checkpoint(
    path: Path,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    about: Mapping[str, str] | None = None,
) -> int:
    """Put back what a checkpoint holds, and return the number of steps done: 0 if there is none.

    Raises:
        InputError: the file is no checkpoint, or one of something else.
    """
    if not path.exists():
        return 0
    tensors, header = _read(path)
    if differing := [key for key, value in (about or {}).items() if header.get(key) != value]:
        raise InputError(f"{path} is a checkpoint of another fitting: {differing} differ; choose another file")
    if lost := [name for name in parameters if f"{VALUE}/{name}" not in tensors]:
        raise InputError(f"{path} is a checkpoint of another fitting: it lacks {lost[0]!r}; choose another file")
    if other := [name for name, parameter in parameters.items() if not _fits(tensors, name, parameter.shape)]:
        raise InputError(f"{path} is a checkpoint of another fitting: {other[0]!r} has another shape; choose another")
    if not header.get(STEP, "").isdecimal():
        raise InputError(f"{path} is no checkpoint: it says {header.get(STEP)!r} for its steps; choose another file")
    for name, parameter in parameters.items():
        found = {key.split("/")[0]: value.to(parameter.device) for key, value in tensors.items() if _of(key, name)}
        parameter.copy_(found.pop(VALUE))
        if found:
            optimizer.state[parameter] = found
    return int(header[STEP])


def _fits(tensors: Mapping[str, Tensor], name: str, shape: torch.Size) -> bool:
    """Whether what is kept of a parameter has its shape; its optimizer counts steps by single numbers."""
    held = {value.shape for key, value in tensors.items() if _of(key, name)}
    return tensors[f"{VALUE}/{name}"].shape == shape and held <= {shape, torch.Size()}


def _of(key: str, name: str) -> bool:
    return key.partition("/")[2] == name


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no checkpoint that can be read ({error}); choose another file") from error
    if STEP not in header:
        raise InputError(f"{path} is no checkpoint: it says nothing of steps; choose another file")
    if header.get(DIGEST) not in (None, _digest(tensors, header[STEP])):  # older ones have none
        raise InputError(f"{path} is damaged: its numbers are not those that were written; choose another file")
    return tensors, header


def _digest(tensors: Mapping[str, Tensor], step: str) -> str:
    found = xxh3_128(step.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
