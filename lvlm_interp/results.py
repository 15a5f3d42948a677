"""What every result has in common: where it came from, a frame, and a file that is not a pickle."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import numbers
import os
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from lvlm_interp.causes import RAW
from lvlm_interp.errors import InputError, OutputError
from lvlm_interp.fields import ANY, Range, check_fields, check_numbers, equal
from lvlm_interp.files import aside
from lvlm_interp.given import checked, explained, explaining
from lvlm_interp.shown import printable
from lvlm_interp.storing import KINDS, is_frame, is_tensor, need_numbers, packed, scalar, settled, storable, unpacked

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R", bound="Result")
MOST_ROWS = 40  # of a table in a notebook; it shows the first and the last of more
FEW_ROWS, LINE = 12, 100  # of a table that is printed, and letters in its lines
PACKAGES = ("lvlm-interp", "torch", "transformers", "numpy")
LAYOUT = "3"  # of files
WHOLE = "result"  # how a file is called until it is
NOTHING = "no tensors"
LONGEST = 99_000_000  # bytes of a header; safetensors reads 100 MB
ENDING = ".safetensors"


def package_versions() -> dict[str, str]:
    """The versions that decide a number: Python's, ours and those we compute with."""
    return {"python": platform.python_version(), **{name: _version_of(name) for name in PACKAGES}}


@functools.cache
def _version_of(package: str) -> str:
    """Read once: it takes a millisecond, and what is loaded stays."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@storable
@dataclass(frozen=True)
class Provenance:
    """Which model, which method, which parameters, of what: enough to compute a result again.

    Attributes:
        model: what it was loaded from.
        weights: a fingerprint of its weights and settings (see `HookedVLM.fingerprint`).
        method, parameters: what was computed.
        revision: of the model, on a hub.
        seed: what decided all that was random; None where nothing was.
        dtype: in which the model computed.
        example: a digest of all that the model was called with: tokens, pixels, masks; of several examples together.
        edits: the sites that were edited meanwhile, and modules with hooks of others.
        versions: of the packages that decide a number.
    """

    ranges: ClassVar[Mapping[str, Range]] = {"parameters": ANY}
    model: str
    weights: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    seed: int | None = None
    dtype: str | None = None
    example: str | None = None
    edits: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=package_versions)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", _settled(self.parameters))
        check_fields(self, {}, {})


def _is_strewn(value: Any) -> bool:
    """Whether a tensor's numbers stand in memory in another order than in a file."""
    return is_tensor(value) and str(value.layout) == "torch.strided" and not value.is_contiguous()


def _settled(value: Any) -> Any:
    """Parameters as they are read from a file again, whatever kind of number or list they were given as."""
    if isinstance(value, Mapping):
        return {key: _settled(one) for key, one in value.items()}
    if isinstance(value, (range, list, tuple)) and not hasattr(value, "_fields"):
        found = map(_settled, value)
        return list(found) if isinstance(value, list) else tuple(found)
    if hasattr(value, "tolist") and not is_tensor(value):  # numpy's
        return value.tolist()
    return float(value) if isinstance(value, (Fraction, Decimal)) else value


@explaining
@dataclass(frozen=True, repr=False)
class Result:
    """Base of results: frozen, with `provenance`; tensors are saved as safetensors, the rest as its JSON header.

    Printed, a result is a short table. Results may hold results. Two are equal if all in them is, tensors number by
    number. One whose fields do not fit together cannot be made, nor read from a file.

    Attributes:
        too_large: fields that `to_dict` leaves out.
        unsaved: fields that a file does not hold either.
        along: fields with a member for each place of an axis of the tensors, and the name of that axis.
        among: fields whose members are each one of some.
        ranges: of the numbers of fields that need not be finite, or may not be any finite number.
        blank: fields in which NaN says that there is no number.
    """

    too_large: ClassVar[frozenset[str]] = frozenset()
    unsaved: ClassVar[frozenset[str]] = frozenset()
    along: ClassVar[Mapping[str, str]] = {}
    among: ClassVar[Mapping[str, Collection[str]]] = {}
    ranges: ClassVar[Mapping[str, Range]] = {}
    blank: ClassVar[frozenset[str]] = frozenset()
    provenance: Provenance = field(kw_only=True)

    def __post_init__(self) -> None:
        for name, value in [*vars(self).items()]:
            if is_frame(value):
                object.__setattr__(self, name, settled(value))
            elif _is_strewn(value):  # sums round by how numbers are laid out, and a file holds them in a row
                object.__setattr__(self, name, value.contiguous())
        check_fields(self, self.along, self.among)
        check_numbers(self)

    def __eq__(self, other: object) -> bool:
        return equal(self, other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        about = self.provenance
        return hash((type(self).__name__, about.model, about.weights, about.method, about.example))

    @property
    def note(self) -> str:
        """What a reader of its numbers must know: their unit, and what they are compared with."""
        return ""

    def to_frame(self) -> pd.DataFrame:
        """The result as a table, one row a token; columns are named like the attributes."""
        raise TypeError(f"{type(self).__name__} has no table")

    def identified(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with a last column `example`, the digest of what it is about, to join what else is known of it."""
        if not is_frame(frame):
            raise InputError(f"identified() takes a table, what to_frame() gives; got {type(frame).__name__}")
        return frame.assign(example=self.provenance.example)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; tensors become nested lists."""
        kept = (f.name for f in dataclasses.fields(self) if f.name not in self.too_large | self.unsaved)
        return {name: _plain(getattr(self, name)) for name in kept}

    def _repr_html_(self) -> str | None:
        return html(self)

    def __repr__(self) -> str:
        return printable(text(self))

    def __sub__(self, other: object) -> Any:
        """Of kinds that have a difference (`lvlm_interp.pairs`), both results side by side."""
        raise InputError(f"a {type(self).__name__} has no difference to another; to_frame() has its numbers")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # What a dataclass would have of itself compares tensors as truths. These it leaves, as they are there first.
        cls.__eq__, cls.__hash__ = Result.__eq__, Result.__hash__  # type: ignore[method-assign]
        if "__repr__" not in vars(cls):  # a dataclass would write its own, all numbers in it
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]
        explaining(cls)
        storable(cls)

    def save(self, path: str | Path) -> Path:
        """Write one `.safetensors` file, tensors and JSON header; it is whole or as it was, never half.

        Raises:
            OutputError: a name that says it is a file of another kind, or a file that cannot be written.
        """
        import torch
        from safetensors.torch import save_file

        path = Path(path)
        if path.suffix.lower() != ENDING:
            raise OutputError(f"results are saved as {ENDING}, which {path} does not end in; to_frame() has tables")
        tensors: dict[str, Any] = {}
        header = {"result": type(self).__name__, "layout": LAYOUT}
        try:
            os.fspath(path).encode()  # safetensors opens no names that are not UTF-8
            _need_own(path)
            header["value"] = json.dumps(packed(self, "", tensors))
            need_numbers(tensors)
            tensors = tensors or {
                NOTHING: torch.zeros(1, device="cpu")
            }  # safetensors before 0.5 cannot read a file without any
            _need_short(header["value"])
            header["digest"] = _digest(header, tensors)
            place = path.resolve()  # behind a link
            with aside(place.parent) as folder:
                (folder / WHOLE).touch()
                mode = (folder / WHOLE).stat().st_mode  # which safetensors does not ask for
                save_file(tensors, folder / WHOLE, metadata=header)
                (folder / WHOLE).chmod(mode)
                os.replace(folder / WHOLE, place)
        except OutputError:
            raise
        except Exception as error:  # safetensors raises its own kinds for a full disk or a missing folder
            raise OutputError(f"could not write {path}: {error}") from error
        return path

    @classmethod
    @checked
    def load(cls: type[R], path: str | Path) -> R:
        """Read what `save` wrote; `lvlm_interp.load_result` needs not know of which kind it is.

        Raises:
            OutputError: the file is missing, damaged, or holds another kind of result.
            InputError: what is no path.
        """
        header, tensors = _read(path)
        kind = KINDS.get(header.get("result", ""))
        if kind is None or not issubclass(kind, cls):
            raise OutputError(f"{path} holds a {header.get('result', 'file of another kind')}, not a {cls.__name__}")
        if header.get("layout") != LAYOUT:
            raise OutputError(f"{path} was written by another version of lvlm_interp; compute it again")
        if header.get("digest") != _digest(header, tensors):
            raise OutputError(f"{path} is damaged: it does not hold what was written")
        try:
            need_numbers(tensors)
            result = unpacked(json.loads(header["value"]), tensors)
            if type(result) is not kind:
                raise TypeError(f"holds a {type(result).__name__}")
        except (*RAW, MemoryError) as error:
            raise OutputError(f"{path} is damaged: {type(error).__name__} {error}") from error
        return result


def _need_own(path: Path) -> None:
    """Raise where a file of tensors is there that holds no result: somebody's weights, say, which writing would end.

    Raises:
        OutputError: names it.
    """
    from safetensors import SafetensorError, safe_open

    if os.path.exists(path) and not os.path.isfile(path):  # opened, a pipe would be waited for
        raise OutputError(f"could not write {path}: it is a directory, a pipe or a device; give the name of a file")
    others = False
    with contextlib.suppress(OSError, SafetensorError), safe_open(str(path), "pt") as file:
        others = "result" not in (file.metadata() or {})
    if others:
        raise OutputError(f"{path} holds tensors that are no result, weights maybe: give the result another name")


def _digest(header: Mapping[str, str], tensors: Mapping[str, Any]) -> str:
    """Notices a bit that a disk or a transfer turned; it is no seal against anybody."""
    import torch
    import xxhash

    found = xxhash.xxh3_128(header.get("value", "").encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    if os.path.isdir(path):
        raise OutputError(f"could not read {path}: it is a directory; a result is a file in it that ends in {ENDING}")
    if os.path.exists(path) and not os.path.isfile(path):  # opened, a pipe would be waited for
        raise OutputError(f"could not read {path}: it is a pipe or a device; a result is a file that ends in {ENDING}")
    try:
        with safe_open(str(path), "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, UnicodeEncodeError) as error:
        raise OutputError(f"could not read {printable(str(path))}: {error}") from error


def number_of(tokens: Sequence[str], token: int | str, holder: str) -> int:
    """The number of a token, by its number or its text; `holder` has them, "the map" for example.

    Raises:
        InputError: there is no such token, or several read so.
    """
    if isinstance(token, str):
        found = [i for i, text in enumerate(tokens) if text.strip().casefold() == token.strip().casefold()]
        if len(found) != 1:
            raise InputError(
                f"{len(found) or 'no'} tokens read {token!r}: {holder} has {list(enumerate(tokens))}; give a number"
            )
        return found[0]
    if isinstance(token, bool) or not isinstance(token, numbers.Integral) or not -len(tokens) <= token < len(tokens):
        raise InputError(f"no token {token!r}: {holder} has {len(tokens)}, counted from 0")
    return int(token) % len(tokens)


@functools.singledispatch
@explained
def html(result: Result) -> str | None:
    """What a notebook shows of a result: its table, escaped, or None where it has none.

    A kind of result that shows itself otherwise is registered on this function, by what draws it.
    """
    if type(result).to_frame is Result.to_frame:
        return None
    return shown_frame(result).to_html(float_format="{:.3f}".format, max_rows=MOST_ROWS)


def shown_frame(result: Result) -> pd.DataFrame:
    """Its frame without the digest of the example, which is for programs."""
    return result.to_frame().drop(columns="example", errors="ignore")


@functools.singledispatch
@explained
def text(result: Result) -> str:
    """What is printed of a result: its kind, where it comes from, and the ends of its table; like `html`, by kind."""
    if type(result).to_frame is Result.to_frame:
        names = (f.name for f in dataclasses.fields(result) if f.name != "provenance")
        return heading(result) + "".join(f"\n  {name}: {_told(getattr(result, name))}" for name in names)
    return f"{heading(result)}\n{table(shown_frame(result))}"


def heading(result: Result) -> str:
    """Its kind, what was computed, of which model, and its note."""
    about = [f"{result.provenance.method}, {result.provenance.model}", *filter(None, [result.note])]
    return f"{type(result).__name__} ({'; '.join(about)})"


def table(frame: pd.DataFrame, index: bool = False) -> str:
    """The ends of a frame, numbers rounded, lines broken."""
    rounded = "{:.3f}".format
    return frame.to_string(index=index, max_rows=FEW_ROWS, line_width=LINE, max_colwidth=40, float_format=rounded)


def _told(value: Any) -> str:
    """A field in at most a line: the shape of a tensor, how many of a collection."""
    if is_tensor(value):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, (Mapping, list, tuple, set, frozenset)) and len(repr(value)) > LINE:
        return f"{len(value)} × {type(next(iter(value))).__name__}"
    return repr(value)[:LINE]


def _plain(value: Any) -> Any:
    if is_tensor(value):
        half = value.is_floating_point() and value.dtype.itemsize < 4
        return (value.detach().float() if half else value.detach()).cpu().tolist()
    if isinstance(value, Result):
        return value.to_dict()
    if is_frame(value):
        return _plain(value.to_dict("list"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    return scalar(value)


def _need_short(text: str) -> None:
    """Raise for more text than a file of safetensors has room for: some releases would write what none can read.

    Raises:
        OutputError: says how much there is.
    """
    if (size := len(text.encode())) > LONGEST:
        raise OutputError(
            f"the result has {size / 1e6:.0f} MB of names, texts and tables, and a file holds {LONGEST / 1e6:.0f} MB: "
            "save it in parts, of fewer examples each; to_frame() is not bound by that"
        )
