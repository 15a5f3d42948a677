"""What every result has in common: where it came from, a frame, and a file that is not a pickle."""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from lvlm_interp.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R", bound="Result")
MOST_ROWS = 40  # of a table in a notebook; it shows the first and the last of more
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
    """Base of results: frozen, with `provenance`; tensors are saved as safetensors, the rest as its JSON header.

    Results may hold results; names in `too_large` are fields that `to_dict` leaves out.
    """

    too_large: ClassVar[frozenset[str]] = frozenset()
    provenance: Provenance = field(kw_only=True)

    def to_frame(self) -> pd.DataFrame:
        """The result as a table, one row a token; columns are named like the attributes."""
        raise TypeError(f"{type(self).__name__} has no table")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; tensors become nested lists."""
        kept = (f.name for f in dataclasses.fields(self) if f.name not in self.too_large)
        return {name: _plain(getattr(self, name)) for name in kept}

    def _repr_html_(self) -> str | None:
        return html(self)

    def save(self, path: str | Path) -> Path:
        """Write one `.safetensors` file, tensors and JSON header.

        Raises:
            OutputError: the file cannot be written.
        """
        from safetensors.torch import save_file

        tensors: dict[str, Any] = {}
        header = {"result": type(self).__name__, "fields": json.dumps(_packed(self, "", tensors))}
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
        return _unpacked(cls, json.loads(header["fields"]), "", values)


@functools.singledispatch
def html(result: Result) -> str | None:
    """What a notebook shows of a result: its table, escaped, or None where it has none.

    A kind of result that shows itself otherwise is registered on this function, by what draws it.
    """
    if type(result).to_frame is Result.to_frame:
        return None
    return result.to_frame().to_html(float_format="{:.3f}".format, max_rows=MOST_ROWS)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "numpy")


def _packed(result: Result, path: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """The fields of a result as JSON values; its tensors, and those of results inside it, go to `tensors` by path."""
    rest: dict[str, Any] = {}
    for f in dataclasses.fields(result):
        value = getattr(result, f.name)
        if _is_tensor(value):
            tensors[path + f.name] = value.detach().cpu().contiguous().clone()  # safetensors refuses shared memory
        elif isinstance(value, Result):
            rest[f.name] = {"result": type(value).__name__, "fields": _packed(value, f"{path}{f.name}.", tensors)}
        else:
            rest[f.name] = _plain(value)
    return rest


def _unpacked(kind: type[Any], rest: Mapping[str, Any], path: str, tensors: Mapping[str, Any]) -> Any:
    """What `_packed` took apart."""
    known = {one.__name__: one for one in Result.__subclasses__()}
    values: dict[str, Any] = {}
    for f in dataclasses.fields(kind):
        value = rest.get(f.name)
        if path + f.name in tensors:
            values[f.name] = tensors[path + f.name]
        elif f.name not in rest:
            continue  # written before the field existed: its default stands
        elif isinstance(value, Mapping) and value.keys() == {"result", "fields"}:
            values[f.name] = _unpacked(known[value["result"]], value["fields"], f"{path}{f.name}.", tensors)
        else:
            values[f.name] = _frozen(value)
    values["provenance"] = Provenance(**values["provenance"])
    return kind(**values)


def _plain(value: Any) -> Any:
    if _is_tensor(value):
        return value.detach().float().cpu().tolist() if value.is_floating_point() else value.tolist()
    if isinstance(value, Result):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
