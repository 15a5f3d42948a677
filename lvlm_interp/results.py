"""What every result has in common: where it came from, a frame, and a file that is not a pickle."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lvlm_interp.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R", bound="Result")
PACKAGES = ("lvlm-interp", "torch", "transformers", "numpy")


def package_versions() -> dict[str, str]:
    """The versions that decide a number: Python's, ours and those we compute with."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True)
class Provenance:
    """Which model, which method, which parameters: enough to compute a result again.

    `weights` is a fingerprint of the model's weights (see `HookedVLM.fingerprint`).
    """

    model: str
    weights: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    seed: int | None = None
    dtype: str | None = None
    versions: Mapping[str, str] = field(default_factory=package_versions)


@dataclass(frozen=True)
class Result:
    """Base of results: frozen, with `provenance`; tensors are saved as safetensors, the rest as its JSON header."""

    provenance: Provenance = field(kw_only=True)

    def to_frame(self) -> pd.DataFrame:
        """The result as a table, one row a token; columns are named like the attributes."""
        raise TypeError(f"{type(self).__name__} has no table")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; tensors become nested lists."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def save(self, path: str | Path) -> Path:
        """Write one `.safetensors` file, tensors and JSON header.

        Raises:
            OutputError: the file cannot be written.
        """
        from safetensors.torch import save_file

        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        tensors = {k: v.detach().cpu().contiguous() for k, v in values.items() if _is_tensor(v)}
        rest = {k: _plain(v) for k, v in values.items() if k not in tensors}
        header = {"result": type(self).__name__, "fields": json.dumps(rest)}
        try:
            save_file(tensors, str(path), metadata=header)
        except Exception as error:  # safetensors raises its own kinds for a full disk or a missing folder
            raise OutputError(f"could not write {path}: {error}") from error
        return Path(path)

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Read what `save` wrote.

        Raises:
            OutputError: the file is missing, broken, or holds another kind of result.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "pt") as file:
                header = file.metadata() or {}
                values: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise OutputError(f"could not read {path}: {error}") from error
        if header.get("result") != cls.__name__:
            raise OutputError(f"{path} holds a {header.get('result')}, not a {cls.__name__}")
        values |= {name: _frozen(value) for name, value in json.loads(header["fields"]).items()}
        values["provenance"] = Provenance(**values["provenance"])
        return cls(**values)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "numpy")


def _plain(value: Any) -> Any:
    if _is_tensor(value):
        return value.detach().float().cpu().tolist() if value.is_floating_point() else value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
