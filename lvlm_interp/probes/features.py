"""Features for probes: what the model holds at many sites, one vector an example and site."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import pack
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.errors import InputError
from lvlm_interp.files import told
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.sites import match
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.probes.store import InMemory, OnDisk, Stacked


@dataclass(frozen=True)
class Features:
    """What the model holds, for `fit_probes`.

    Attributes:
        values: `[example, site, dim]`, float32; a zarr array where they are kept on disk.
        sites: names of the sites, those of heads with their number: `blocks.3.attn.hook_z.5`.
    """

    values: Any
    sites: tuple[str, ...]

    @property
    def by_head(self) -> Any:
        """The same `[example, layer, head, dim]`; one head each where sites have none. Read in parts, if on disk."""
        stems = Counter(name.rpartition(".")[0] if name.rpartition(".")[2].isdigit() else name for name in self.sites)
        heads = next(iter(stems.values())) if len(set(stems.values())) == 1 else 1
        return self.values.unflatten(1, (-1, heads)) if isinstance(self.values, Tensor) else ByHead(self.values, heads)


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
) -> dict[str, Features]:
    """Features at the last position of every example (that of the prompt, if there is no answer).

    Args:
        vlm: the model.
        examples: read one batch at a time, so a generator will do.
        sites: name → glob, such as `{"heads": "blocks.*.attn.hook_z"}`; all are read in the same passes. The sites of
            one name stand in one array, and so must be of one width.
        batch: examples of one forward pass.
        progress: show a progress bar.
        store: a directory for a zarr group: features that outgrow memory are kept there, and a call that was cut off
            goes on where it was when it is made again.

    Returns:
        The features by name.

    Raises:
        InputError: no examples, or sites of different widths under one name; a store of another model, of other sites
            or examples.
        SiteError: a glob that matches nothing.
        ModelError: the model gives NaN or infinity.
    """
    chosen = {name: [site.name for site in match(vlm.sites, glob, vlm.missing)] for name, glob in sites.items()}
    if store is None:
        kept: InMemory | OnDisk = InMemory()
    else:
        with told("keep features in", store):
            kept = OnDisk(store, vlm, chosen)
    with tqdm(total=_length(examples), desc="features", unit="example", disable=not progress) as bar:
        bar.update(kept.done)
        for some in _several(kept.remaining(examples), batch):
            found = _last(vlm, some, [*sites.values()])
            kept.add(
                some, {name: stack_features([{s: one[s] for s in chosen[name]} for one in found]) for name in sites}
            )
            bar.update(len(some))
    if not kept.done:
        raise InputError("no examples to take features from")
    return {name: Features(*kept[name]) for name in sites}


def _last(vlm: HookedVLM, examples: list[Inputs], sites: list[str]) -> list[dict[str, Tensor]]:
    """What the sites hold at the last position: of all examples at once, or one by one where rows are not alike."""
    apart = len(examples) > 1 and vlm.not_side_by_side([x.length for x in examples])
    passes = [[x] for x in examples] if apart else [examples]
    found = (vlm.capture(vlm.batch(some), sites, reduce="last", dtype=torch.float32) for some in passes)
    return [{name: value.cpu() for name, value in one.items()} for one in found]


def _several(examples: Iterable[Inputs], count: int) -> Iterator[list[Inputs]]:
    rest = iter(examples)
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
