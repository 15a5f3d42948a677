"""Recorded activations: a model's values at its sites, after edits, in one pass."""

from __future__ import annotations

import contextlib
import copy
import functools
import html
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lvlm_interp.errors import OutputError, SiteError
from lvlm_interp.fields import ANY, Range, equal
from lvlm_interp.given import explaining
from lvlm_interp.model.choice import Choice
from lvlm_interp.model.hooks import passed, visiting
from lvlm_interp.model.listing import grouped
from lvlm_interp.model.sites import Site
from lvlm_interp.model.taps import Reading, Visit
from lvlm_interp.results import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd

Edit = Callable[[Tensor], Tensor]


@explaining
class Capture(Mapping[str, Tensor]):
    """Recorded activations: site name → tensor, as the table in `model.sites` gives its shape.

    It keeps its model alive, which tells what it is of; `save` keeps it without, and pickle is refused.

    Attributes:
        choice: what of every value was kept.
    """

    def __init__(
        self, values: Mapping[str, Tensor], choice: Choice, origin: Callable[[], Provenance] | None = None
    ) -> None:
        self._values, self.choice, self._origin = dict(values), choice, origin

    @functools.cached_property
    def provenance(self) -> Provenance:
        """Of which model and example these activations are, and what was kept of them.

        Looked up when it is first asked for, since that costs a part of a pass: ask before the model changes. A change
        in between, or by an edit within the pass, is refused where it is seen: every setting that a fingerprint holds,
        and every write that torch counts, into a weight or into a tensor of the example. Of writes past that count
        (`weight.data.mul_(2)`, an array of numpy that shares the memory, tensors of inference mode) those that change
        a tensor of at most 4 KB, or one of four places of a larger one, from its first bytes to its last. Not seen
        are such writes elsewhere in a large tensor, those to tensors on a device (a GPU) or that are not contiguous,
        and an edit that writes and puts back within the pass. So it is with all writes, counted or not, into a weight
        that peft puts in anew in each pass (`target_parameters`), and into sinusoids, which longer prompts make longer.

        Raises:
            ModelError: the model was changed since.
            InputError: the example's tensors were written to since.
        """
        if self._origin is None:
            raise SiteError("these activations were put together by hand: nothing tells which model they are of")
        return self._origin()

    def save(self, path: str | Path) -> Path:
        """Write one `.safetensors` file; `lvlm_interp.load_result` reads it.

        Raises:
            OutputError: the file cannot be written.
            ModelError: the model was changed since.
        """
        return Captured(self._values, provenance=self.provenance).save(path)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled, it would take its whole model along, which alone knows what it is of."""
        if self._origin is not None:
            raise OutputError("a capture is not pickled: capture.save('name.safetensors') keeps it, and what it is of")
        return super().__reduce_ex__(protocol)

    def __copy__(self) -> Capture:
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Capture:
        made = self.__copy__()
        made._values = copy.deepcopy(self._values, memo)
        return made

    def __eq__(self, other: object) -> bool:
        """Whether the same was recorded at the same sites; what it is of is in `provenance`."""
        return equal(self._values, other._values) if isinstance(other, Capture) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._values:
            raise SiteError(f"{name!r} was not captured; this capture holds {list(self._values)}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        kinds: dict[str, list[str]] = defaultdict(list)
        for name, value in self.items():
            kinds[f"{tuple(value.shape)} {value.dtype}"].append(name)
        told = [f"  {name}: {kind}\n" for kind, names in kinds.items() for name in grouped(names)]
        return "Capture(\n" + "".join(told) + ")"

    def _repr_html_(self) -> str:
        cells = ((html.escape(name), tuple(value.shape), value.dtype) for name, value in self.items())
        rows = "".join(f"<tr><td>{name}</td><td>{shape}</td><td>{dtype}</td></tr>" for name, shape, dtype in cells)
        return f"<table><tr><th>site</th><th>shape</th><th>dtype</th></tr>{rows}</table>"


@dataclass(frozen=True, eq=False)
class Captured(Result, Mapping[str, Tensor]):
    """A capture that was saved: site name → tensor."""

    ranges: ClassVar[Mapping[str, Range]] = {"activations": ANY}  # scores of what is hidden are infinite
    activations: Mapping[str, Tensor] = field(repr=False)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.activations:
            raise SiteError(f"{name!r} was not captured; this capture holds {list(self.activations)}")
        return self.activations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    def to_frame(self) -> pd.DataFrame:
        """One row a site: its shape and the type of its numbers."""
        import pandas as pd

        rows = [(name, str(tuple(value.shape)), str(value.dtype)) for name, value in self.items()]
        return pd.DataFrame(rows, columns=["site", "shape", "dtype"])


@contextlib.contextmanager
def recording(
    model: PreTrainedModel, sites: Iterable[Site], choice: Choice, edits: Mapping[Site, Edit] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Within the `with`, what is chosen of the values at the sites is recorded, after edits.

    The yielded dictionary holds it afterwards. Where a tower attends window by window, its windows are put together.

    Raises:
        SiteError: on leaving without another error, if a site did not fire, or if what was recorded there has been
            written over since (nothing is copied that need not be, so that would show in the record).
    """
    edits, found = edits or {}, dict[str, Tensor]()
    versions: dict[str, int] = defaultdict(int)
    pieces: dict[str, list[Tensor]] = defaultdict(list)

    def visit(site: Site, choice: Choice) -> Visit:
        name, edit, mine = site.name, edits.get(site), pieces[site.name]

        def record(value: Tensor) -> Tensor:
            value = value if edit is None else passed(name, edit, value)
            piece, value = choice.taken(name, value)
            mine.append(piece)
            versions[name] += piece._version
            return value

        if edit is not None or choice.grad or choice.positions is None or site.read != "attention":
            return record
        return Reading(record, choice.positions, visit(site, choice.of_rows()))

    recorded = {site: visit(site, choice) for site in sites}
    silent_edits = {site: edit for site, edit in edits.items() if site not in recorded}
    with visiting(model, {**silent_edits, **recorded}):
        yield found
    if written := [name for name, some in pieces.items() if sum(p._version for p in some) != versions[name]]:
        raise SiteError(
            f"{written} changed in place after being recorded, by an edit or by the model itself; let edits return new "
            "tensors, or give positions=range(…), which copies what it keeps"
        )
    if choice.grad and (split := [name for name, some in pieces.items() if len(some) > 1]):
        raise SiteError(f"{split} are computed in pieces, and have no one value with a gradient; leave out grad=True")
    if choice.reduce and (split := [name for name, some in pieces.items() if len(some) > 1]):
        raise SiteError(f"{split} are computed window by window and cannot be reduced; capture them whole")
    found.update({name: _joined(name, some) for name, some in pieces.items() if some})


def _joined(name: str, pieces: list[Tensor]) -> Tensor:
    """What a site gave in one pass: windows one after the other; a pattern is 0 between windows, scores are lowest.

    A tower that is called for pictures and again for a video gives pieces too, and so do pictures of several sizes (a
    whole one and its tiles): side by side where they are alike, else in one row.
    """
    if len(pieces) == 1:
        return pieces[0]
    alike = len({piece.shape[1:] for piece in pieces}) == 1
    windows = ".attn.hook_" in name and all(len(piece) == 1 for piece in pieces)
    if (alike and not windows) or pieces[0].ndim < 3:
        return torch.cat(pieces)
    pieces = [picture for piece in pieces for picture in piece.split(1)]
    if not name.endswith(("hook_pattern", "hook_attn_scores")):
        return torch.cat(pieces, 1)
    rows, keys = (sum(p.shape[axis] for p in pieces) for axis in (-2, -1))
    empty = 0.0 if name.endswith("pattern") else torch.finfo(pieces[0].dtype).min
    whole = pieces[0].new_full((*pieces[0].shape[:-2], rows, keys), empty)
    row = key = 0
    for piece in pieces:
        whole[..., row : row + piece.shape[-2], key : key + piece.shape[-1]] = piece
        row, key = row + piece.shape[-2], key + piece.shape[-1]
    return whole
