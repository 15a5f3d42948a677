"""Features for probes: what the model holds at many sites, one vector an example and site."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.errors import InputError
from lvlm_interp.model.inputs import Inputs
from lvlm_interp.model.sites import match
from lvlm_interp.model.vlm import HookedVLM


@dataclass(frozen=True)
class Features:
    """What the model holds, for `fit_probes`.

    Attributes:
        values: `[example, site, dim]`, float32.
        sites: names of the sites, those of heads with their number: `blocks.3.attn.hook_z.5`.
    """

    values: Float[Tensor, "example site dim"]
    sites: tuple[str, ...]

    @property
    def by_head(self) -> Float[Tensor, "example layer head dim"]:
        """The same with an axis of layers and one of heads; one head each where sites have none."""
        stems = Counter(name.rpartition(".")[0] if name.rpartition(".")[2].isdigit() else name for name in self.sites)
        heads = next(iter(stems.values())) if len(set(stems.values())) == 1 else 1
        return self.values.unflatten(1, (-1, heads))


def collect_features(
    vlm: HookedVLM, examples: Iterable[Inputs], sites: Mapping[str, str], batch: int = 8, progress: bool = False
) -> dict[str, Features]:
    """Features at the last position of every example (that of the prompt, if there is no answer).

    Args:
        vlm: the model.
        examples: read one batch at a time, so a generator will do.
        sites: name → glob, such as `{"heads": "blocks.*.attn.hook_z"}`; all are read in the same passes. The sites of
            one name stand in one array, and so must be of one width.
        batch: examples of one forward pass.
        progress: show a progress bar.

    Returns:
        The features by name.

    Raises:
        InputError: no examples, or sites of different widths under one name.
        SiteError: a glob that matches nothing.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in sites}
    names: dict[str, tuple[str, ...]] = {}
    chosen = {name: [site.name for site in match(vlm.sites, glob, vlm.missing)] for name, glob in sites.items()}
    with tqdm(total=_length(examples), desc="features", unit="example", disable=not progress) as bar:
        for some in _several(examples, batch):
            found = vlm.capture(vlm.batch(some), [*sites.values()], reduce="last", dtype=torch.float32)
            for name in sites:
                rows, names[name] = stack_features([{site: found[site].cpu() for site in chosen[name]}])
                kept[name].append(rows)
            bar.update(len(some))
    if not names:
        raise InputError("no examples to take features from")
    return {name: Features(torch.cat(kept[name]), names[name]) for name in sites}


def _several(examples: Iterable[Inputs], count: int) -> Iterator[list[Inputs]]:
    rest = iter(examples)
    while some := list(itertools.islice(rest, count)):
        yield some


def _length(examples: Iterable[Inputs]) -> int | None:
    return len(examples) if isinstance(examples, Sized) else None


def stack_features(
    captures: Iterable[Mapping[str, Tensor]],
) -> tuple[Float[Tensor, "example site dim"], tuple[str, ...]]:
    """Features and site names for `fit_probes`, from captures that keep one vector for each site (`reduce="last"`).

    Sites with heads (`…attn.hook_z`) become a site for each head: `blocks.3.attn.hook_z.5` is head 5. Logits are left
    out.

    Raises:
        InputError: no captures, or a site that keeps more than one position.
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
        if value.ndim != (3 if ".attn.hook_" in name else 2):
            raise InputError(
                f"{name} keeps {tuple(value.shape)}, not one vector: capture it with reduce='last' or 'mean'"
            )
    widths = {value.shape[-1] for value in values.values()}
    if len(widths) != 1:
        raise InputError(f"sites of different widths {sorted(widths)} cannot stand in one array: stack them apart")
    return torch.cat([value.reshape(len(value), -1, value.shape[-1]) for value in values.values()], 1)


def _head_names(name: str, value: Tensor) -> list[str]:
    return [f"{name}.{head}" for head in range(value.shape[1])] if value.ndim == 3 else [name]
