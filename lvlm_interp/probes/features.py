"""Features for probes: what the model holds at many sites, one vector an example and site."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from einops import pack
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.errors import InputError
from lvlm_interp.fields import FINITE, Range
from lvlm_interp.given import explained
from lvlm_interp.inputs.called import DIGITS, named_by
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.choice import Positions, indices
from lvlm_interp.model.finite import need_finite
from lvlm_interp.model.holding import written_by_others
from lvlm_interp.model.sites import match
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.probes.store import Digests, InMemory, Stacked, Store, on_disk, row_digests
from lvlm_interp.results import Result, heading, table, text

COLUMNS = ("example", "example_id", "position", "token", "role")
F32 = torch.float32


@dataclass(frozen=True, repr=False)
class Features(Result):
    """What the model holds, for `fit_probes`.

    Attributes:
        values: `[row, site, dim]`, float32; a zarr array where they are kept on disk (`save` reads all of it, and a
            file gives a tensor).
        sites: names of the sites, those of heads with their number: `blocks.3.attn.hook_z.5`.
        rows: what each row is of, to go on with as `metadata` and `groups`: the number of its `example`, what names
            that in provenance (`example_id`), its `position`, the `token` there and its `role`.
    """

    too_large: ClassVar[frozenset[str]] = frozenset({"values"})
    ranges: ClassVar[Mapping[str, Range]] = {"values": FINITE}
    values: Any
    sites: tuple[str, ...]
    rows: pd.DataFrame

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = tuple(self.values.shape)
        if len(shape) != 3 or shape[:2] != (len(self.rows), len(self.sites)):
            raise InputError(f"features of {len(self.rows)} rows and {len(self.sites)} sites have the shape {shape}")

    @property
    def note(self) -> str:
        rows, sites, width = self.values.shape
        return f"{rows} rows × {sites} sites × {width} numbers"

    def to_frame(self) -> pd.DataFrame:
        """`rows`: what each row of the features is of."""
        return self.rows

    @property
    def by_head(self) -> Any:
        """The same `[example, layer, head, dim]`; one head each where sites have none. Read in parts, if on disk."""
        stems = Counter(name.rpartition(".")[0] if name.rpartition(".")[2].isdigit() else name for name in self.sites)
        heads = next(iter(stems.values())) if len(set(stems.values())) == 1 else 1
        return self.values.unflatten(1, (-1, heads)) if isinstance(self.values, Tensor) else ByHead(self.values, heads)


@text.register
def _(result: Features) -> str:
    return f"{heading(result)}\n{table(result.rows)}"


class ByHead:
    """An array on disk, `[example, site, dim]`, that is sliced as `[example, layer, head, dim]` is."""

    def __init__(self, values: Any, heads: int) -> None:
        examples, sites, width = values.shape
        self.values, self.heads, self.shape = values, heads, (examples, sites // heads, heads, width)

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        rows, layers = key
        first, last, _ = layers.indices(self.shape[1])
        part = self.values[rows, first * self.heads : last * self.heads]
        return part.reshape(len(part), last - first, *self.shape[2:])


@explained
def collect_features(
    vlm: HookedVLM,
    examples: Iterable[Inputs],
    sites: Mapping[str, str],
    batch: int = 8,
    progress: bool = False,
    store: str | os.PathLike[str] | None = None,
    positions: Positions | Callable[[Inputs], Positions] | None = None,
) -> dict[str, Features]:
    """Features of every example: at its last position (that of the prompt, if there is no answer), or at those chosen.

    Args:
        vlm: the model.
        examples: read one batch at a time, so a generator will do.
        sites: name → glob, such as `{"heads": "blocks.*.attn.hook_z"}`; all are read in the same passes. The sites of
            one name stand in one array, and so must be of one width.
        batch: examples of one forward pass. Where positions are chosen, their states at all positions are in memory.
        progress: show a progress bar.
        store: a directory for a zarr group: features that outgrow memory are kept there, and a call that was cut off
            goes on where it was when it is made again. Edits and hooks that the model is under are known by where they
            are: give another edit of the same site another directory.
        positions: of each example: roles (`"image"`), indices (negative: from the end), a bool mask; or a function that
            says for an example. Each becomes a row: give `rows["example"]` as groups, since rows of one example are not
            independent. The last position by default.

    Returns:
        The features by name.

    Raises:
        InputError: no examples, or sites of different widths under one name; an example without any of the positions,
            or with one of them twice; weights, edits or hooks that change meanwhile; a store of another model, of other
            edits, sites, positions or examples, or one that another process is writing to; a batch below 1.
        OutputError: a store that cannot be written to, or is damaged.
        SiteError: a glob that matches nothing.
        ModelError: the model gives NaN or infinity.
    """
    chosen = {name: [site.name for site in match(vlm.sites, glob, vlm.missing)] for name, glob in sites.items()}
    if batch < 1:
        raise InputError(f"batch is how many examples run together, 1 or more; got {batch}")
    rows, run = _Rows(positions), _run(vlm)
    about = {**run, "sites": chosen, "positions": rows.named}
    opened = contextlib.nullcontext(InMemory()) if store is None else on_disk(store, about)
    with opened as kept, tqdm(total=_length(examples), desc="features", unit="example", disable=not progress) as bar:
        for some in _several(rows.missing(kept, examples, bar), batch):
            found = _captured(vlm, some, sites, positions is None)
            if _run(vlm) != run:
                raise InputError(
                    "the model's weights or settings changed while features were collected, or what edits it: those of "
                    "this batch were not kept; put the model back as it was to go on, or collect all of them again"
                )
            stacked = {name: stack_features([{s: found[s] for s in chosen[name]}]) for name in sites}
            kept.add(np.concatenate([one.digests for one in some]), stacked)
        kept.close(rows.count)
    if not rows.count:
        raise InputError("no examples to take features from")
    found_of = {name: kept[name] for name in sites}
    of = dataclasses.replace(vlm.provenance("features", sites=chosen, positions=rows.named), example=rows.digest())
    return {name: Features(values, names, rows.frame(), provenance=of) for name, (values, names) in found_of.items()}


def _run(vlm: HookedVLM) -> dict[str, Any]:
    """What runs: the model, and the edits and hooks of others that it runs under."""
    return {"model": vlm.name, "weights": vlm.fingerprint, "edits": list(vlm.active_edits)}


def _captured(vlm: HookedVLM, some: Sequence[_Asked], sites: Mapping[str, str], last: bool) -> dict[str, Tensor]:
    """Of each site, the chosen positions of all examples one below the other.

    One by one where rows are not alike, and where something may go by position, which padding would shift: an edit, a
    hook, a layer of a user's own.
    """
    lengths = [one.x.length for one in some]
    shifted = len(set(lengths)) > 1 and _by_position(vlm)
    apart = len(some) > 1 and (shifted or vlm.not_side_by_side(lengths))
    parts = [_together(vlm, group, sites, last) for group in ([[one] for one in some] if apart else [some])]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _by_position(vlm: HookedVLM) -> bool:
    """Whether something that is not the model's own may go by position."""
    return bool(vlm.active_edits or written_by_others(vlm.model, vlm.decoder.named_modules()))


def _together(vlm: HookedVLM, some: Sequence[_Asked], sites: Mapping[str, str], last: bool) -> dict[str, Tensor]:
    """The same in one pass."""
    together = vlm.batch([one.x for one in some])
    found = vlm.capture(together, [*sites.values()], reduce="last" if last else None, dtype=F32)
    need_finite(vlm, together, *found.values())
    if last:
        return {name: value.cpu() for name, value in found.items() if name != "logits"}
    return {
        name: torch.cat([together.of(row, value)[0, list(one.positions)] for row, one in enumerate(some)]).cpu()
        for name, value in found.items()
        if name != "logits"
    }


@dataclass(frozen=True)
class _Asked:
    """An example whose features are missing, the positions that are to be read, and what tells its rows from others."""

    x: Inputs
    positions: tuple[int, ...]
    digests: Digests


class _Rows:
    """What each row is of, written down as examples come by."""

    def __init__(self, positions: Positions | Callable[[Inputs], Positions] | None) -> None:
        self.positions = positions
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.examples = 0

    @property
    def count(self) -> int:
        return len(self.columns["example"])

    @property
    def named(self) -> Any:
        """The positions, in words that can be kept."""
        if self.positions is None or isinstance(self.positions, str):
            return self.positions or "last"
        return "as a function says" if callable(self.positions) else list(map(str, self.positions))

    def missing(self, kept: Store, examples: Iterable[Inputs], bar: Any) -> Iterator[_Asked]:
        """The examples whose features are not there yet."""
        for x in examples:
            at, start = self._of(x), self.count
            digests = row_digests(x, None if self.positions is None else at)
            self._note(x, at)
            if not kept.holds(digests, start):
                yield _Asked(x, at, digests)
            bar.update()

    def _of(self, x: Inputs) -> tuple[int, ...]:
        if self.positions is None:
            return (x.length - 1,)
        asked = self.positions(x) if callable(self.positions) else self.positions
        if not isinstance(asked, Iterable):
            raise InputError(
                f"positions=… says which positions of an example are read, as roles, indices or a mask: of example "
                f"{self.examples}, counted from 0, it says {asked!r}"
            )
        found = tuple(indices(x, asked).tolist())
        if len(set(found)) < len(found):
            twice = next(place for place in found if found.count(place) > 1)
            raise InputError(
                f"positions={asked!r} name position {twice} of example {self.examples} twice: once will do"
            )
        return found

    def _note(self, x: Inputs, at: tuple[int, ...]) -> None:
        tokens, named = x.tokens or [""] * x.length, named_by(x)
        for position in at:
            values = (self.examples, named, position, tokens[position], x.roles[position])
            for name, value in zip(COLUMNS, values, strict=True):
                self.columns[name].append(value)
        self.examples += 1

    def digest(self) -> str:
        """Of all examples together."""
        return hashlib.sha256("".join(self.columns["example_id"]).encode()).hexdigest()[:DIGITS]

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.columns)


def _several(asked: Iterable[_Asked], count: int) -> Iterator[list[_Asked]]:
    rest = iter(asked)
    while some := list(itertools.islice(rest, count)):
        yield some


def _length(examples: Iterable[Inputs]) -> int | None:
    return len(examples) if isinstance(examples, Sized) else None


@explained
def stack_features(captures: Iterable[Mapping[str, Tensor]]) -> Stacked:
    """Features and site names for `fit_probes`, from captures that keep one vector for each site (`reduce="last"`).

    Sites with heads (`…attn.hook_z`) become a site for each head: `blocks.3.attn.hook_z.5` is head 5. Logits are left
    out.

    Raises:
        InputError: no captures, a site that keeps more than one position, or attention patterns.
    """
    rows: list[Tensor] = []
    names: tuple[str, ...] = ()
    for capture in captures:
        kept = {name: value for name, value in capture.items() if name != "logits"}
        rows.append(_row(kept))
        names = tuple(n for name, value in kept.items() for n in _head_names(name, value))
    if not rows:
        raise InputError("no captures to take features from")
    return torch.cat(rows), names


def _row(values: Mapping[str, Tensor]) -> Float[Tensor, "example site dim"]:
    """`[batch, dim]` or `[batch, head, dim]` of each site, side by side."""
    for name, value in values.items():
        if name.endswith(("hook_pattern", "hook_attn_scores")):
            raise InputError(
                f"{name} has a number for each key, of which examples have more or fewer: no vector to probe"
            )
        if value.ndim != (3 if ".attn.hook_" in name or ".cross_attn.hook_" in name else 2):
            raise InputError(
                f"{name} keeps {tuple(value.shape)}, not one vector: capture it with reduce='last' or 'mean'"
            )
    widths = {value.shape[-1] for value in values.values()}
    if len(widths) != 1:
        raise InputError(f"sites of different widths {sorted(widths)} cannot stand in one array: stack them apart")
    return pack([*values.values()], "example * dim")[0]


def _head_names(name: str, value: Tensor) -> list[str]:
    return [f"{name}.{head}" for head in range(value.shape[1])] if value.ndim == 3 else [name]
