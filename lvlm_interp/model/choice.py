"""What of each site a capture keeps: layers, positions, heads, a mean, a number type. Pure: nothing is hooked here.

Whatever is not kept is let go as soon as the model has moved on, so memory holds only what was chosen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.inputs.batch import Batch
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.place import floating, need_device
from lvlm_interp.model.sites import Site

Reduction = Literal["mean", "last"]
Positions = str | Iterable[str] | Iterable[int] | Tensor
"""Roles (`"answer"`, `["image", "question"]`), indices (negative: from the end), or a bool mask `[position]`."""

# Axes of (positions, heads), counted from the last: a vision tower may have no batch axis in front.
_PER_HEAD = {f"hook_{name}": (-3, -2) for name in ("q", "k", "v", "z", "rot_q", "rot_k")}
_AXES = {**_PER_HEAD, "hook_pattern": (-2, -3), "hook_attn_scores": (-2, -3)}
_OTHERS = (-2, 0)
_OF_THE_PROMPT = ("blocks.", "ln_final.", "hook_embed")
_KEYS = ("hook_k", "hook_v", "hook_rot_k")


@dataclass(frozen=True, eq=False)
class Choice:
    """What is kept of every site's value.

    Attributes:
        length: positions of the prompt that the indices refer to.
        positions: the chosen ones, in the order in which they are kept; None keeps all.
        heads: the chosen ones, along the site's own axis of heads; None keeps all.
        reduce: the mean over the chosen positions, or the last of them; the axis goes away.
        dtype: what is kept is converted to this; a mean is computed in it.
        device: what is kept is moved there.
        grad: keep the graph, see `taken`.
        attended: which of the kept positions attention sees, in each row of a batch: a reduction is over these; None
            where all are.
    """

    length: int
    positions: Int[Tensor, " position"] | None = None
    heads: Int[Tensor, " head"] | None = None
    reduce: Reduction | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    grad: bool = False
    attended: Bool[Tensor, "batch kept"] | None = None

    def of_rows(self) -> Choice:
        """The same of a value that has the chosen positions alone."""
        return dataclasses.replace(self, positions=None)

    def of_logits(self, logits: Float[Tensor, "batch position vocabulary"]) -> Float[Tensor, "batch kept vocabulary"]:
        """What is kept of the logits: the same positions, unreduced."""
        axes = [] if self.positions is None else [(1, self.positions.to(logits.device))]
        return _selected(logits, axes).to(device=self.device, dtype=self.dtype)

    def taken(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept of a site's value, and the value that the model goes on with.

        With `grad`, the model goes on with a value that *contains* the kept part, so that the logits can be
        differentiated with respect to it, also where no weight requires a gradient. The gradient is of what an edit
        there would do: what the model has computed of the same value before is no part of it (Gemma 4 makes inputs of
        each layer of the embeddings). A reduction or conversion comes after that: it can be differentiated, but the
        logits do not depend on it.
        """
        if self._whole:
            return _owned(value.detach() if value.requires_grad else value), value
        axes = self._axes(name, value)
        if not self.grad:
            return _owned(self._finished(name, _selected(value.detach(), axes))), value
        value = value if value.requires_grad else value.detach().requires_grad_()
        part = _selected(value.view_as(value), axes)  # of its own: the model may have used the value elsewhere as well
        part.retain_grad()
        return self._finished(name, part), _put_back(value, axes, part)

    @property
    def _whole(self) -> bool:
        """Whether all is kept, as it is."""
        chosen = (self.positions, self.heads, self.reduce, self.dtype, self.device)
        return not self.grad and all(one is None for one in chosen)

    def _axes(self, name: str, value: Tensor) -> list[tuple[int, Tensor]]:
        positions, heads = axes_of(name)
        if self.positions is not None and value.shape[positions] != self.length:
            raise SiteError(
                f"{name!r} has {value.shape[positions]} positions where the prompt has {self.length}: "
                "positions= cannot choose among them; capture it without"
            )
        if self.heads is not None and int(self.heads.max()) >= value.shape[heads]:
            raise SiteError(
                f"head {int(self.heads.max())} was asked for, but {name!r} has {value.shape[heads]} heads "
                f"(0 to {value.shape[heads] - 1}); keys and values of grouped-query attention have fewer than queries"
            )
        both = ((positions, self.positions), (heads, self.heads))
        return [(axis, index.to(value.device)) for axis, index in both if index is not None]

    def _finished(self, name: str, part: Tensor) -> Tensor:
        axis = axes_of(name)[0]
        if self.reduce:
            part = self._reduced(part, axis) if off_the_prompt(name) else self._reduced_by_row(name, part, axis)
        return part.to(device=self.device, dtype=self.dtype)

    def _reduced(self, part: Tensor, axis: int) -> Tensor:
        return part.mean(axis, dtype=self.dtype) if self.reduce == "mean" else part.select(axis, -1)

    def _reduced_by_row(self, name: str, part: Tensor, axis: int) -> Tensor:
        """Each row over its own positions: what stands in the padding may be no number, so it is left out, not zeroed.

        Raises:
            SiteError: a value in which rows and positions of the batch cannot be found.
        """
        if self.attended is None:
            return self._reduced(part, axis)
        if (len(part), part.shape[axis]) != self.attended.shape:
            raise SiteError(
                f"{name!r} is {tuple(part.shape)} here, and not of {len(self.attended)} examples with "
                f"{self.attended.shape[1]} positions each: its padding cannot be left out. Capture it without reduce=, "
                "or the examples one by one"
            )
        rows = zip(part.split(1), self.attended.to(part.device), strict=True)
        return torch.cat([self._reduced(row.index_select(axis, seen.nonzero()[:, 0]), axis) for row, seen in rows])


def _selected(value: Tensor, axes: Sequence[tuple[int, Tensor]]) -> Tensor:
    for axis, index in axes:
        value = value.index_select(axis, index)
    return value


def _put_back(value: Tensor, axes: Sequence[tuple[int, Tensor]], part: Tensor) -> Tensor:
    """The value with its selected part replaced by `part`."""
    if not axes:
        return part
    (axis, index), rest = axes[0], axes[1:]
    return value.index_copy(axis, index, _put_back(value.index_select(axis, index), rest, part))


def _owned(part: Tensor) -> Tensor:
    """A copy where the tensor is a view that would keep a larger one in memory."""
    return part.clone() if part.untyped_storage().nbytes() > part.nbytes else part


def choose(
    x: Inputs | Batch,
    sites: Sequence[Site],
    positions: Positions | None = None,
    heads: int | Iterable[int] | None = None,
    reduce: Reduction | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    grad: bool = False,
) -> Choice:
    """The options of a capture, checked against the example and the sites.

    Raises:
        InputError: an unknown reduction, type of numbers or device, a position out of range, or no position at all.
        VisibilityError: an unknown role.
        SiteError: a site that has no heads, or whose positions are not those of the prompt.
    """
    if reduce not in (None, *get_args(Reduction)):
        raise InputError(
            f"reduce={reduce!r} is not known; these are: None, {', '.join(map(repr, get_args(Reduction)))}"
        )
    need_device(device)
    converted = None if dtype is None else floating(dtype, "None, which keeps the model's own")
    if positions is not None:
        _refuse(sites, off_the_prompt, "have positions of their own, so positions= cannot choose among them")
    if heads is not None:
        globs = [f"*.{name}" for name in sorted(_AXES)]
        _refuse(sites, _headless, f"have no heads, so heads= cannot choose among them; {globs} do")
    chosen = None if positions is None else indices(x, positions)
    return Choice(
        x.length,
        chosen,
        None if heads is None else _head_indices(listed(heads)),
        reduce,
        converted,
        None if device is None else torch.device(device),
        grad,
        _attended(x, chosen) if reduce else None,
    )


def _attended(x: Inputs | Batch, chosen: Int[Tensor, " position"] | None) -> Bool[Tensor, "batch kept"] | None:
    """Which of the chosen positions of each example are not padding; None where all are.

    Raises:
        InputError: none of them.
    """
    ids, mask = x.model_inputs["input_ids"], x.model_inputs.get("attention_mask")
    seen = x.real if isinstance(x, Batch) else torch.ones(ids.shape, dtype=torch.bool)
    if mask is not None and mask.shape == ids.shape:
        seen = seen & mask.cpu().bool()
    seen = seen if chosen is None else seen[:, chosen]
    if seen.all():
        return None
    if empty := (~seen.any(1)).nonzero().flatten().tolist():
        which = f"example {empty[0]} of this batch" if isinstance(x, Batch) else "this example"
        raise InputError(f"the attention_mask of {which} is 0 at all of the chosen positions: none is left")
    return seen


def axes_of(name: str) -> tuple[int, int]:
    """The axes of a site's positions and of its heads, counted from the last; one without heads has none there."""
    return _AXES.get(name.rpartition(".")[2], _OTHERS)


def has_heads(name: str) -> bool:
    return name.rpartition(".")[2] in _AXES


def off_the_prompt(name: str) -> bool:
    return not name.startswith(_OF_THE_PROMPT) or ("cross_attn" in name and name.endswith(_KEYS))


def _headless(name: str) -> bool:
    return not has_heads(name)


def _refuse(sites: Sequence[Site], wrong: Callable[[str], bool], why: str) -> None:
    if found := [site.name for site in sites if wrong(site.name)]:
        some = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise SiteError(f"{some} {why}; capture these sites in a call of their own")


def indices(x: Inputs | Batch, positions: Positions) -> Int[Tensor, " position"]:
    """Positions of an example as indices: those of roles in the prompt's order, indices in the order given.

    Raises:
        InputError: out of range, a mask of another length, or none at all.
        VisibilityError: an unknown role.
    """
    asked = [positions] if isinstance(positions, str) else positions
    several = asked.flatten() if isinstance(asked, Tensor) else list(asked)
    if not len(several):
        raise InputError("no position was asked for; positions=None keeps all")
    if isinstance(several, list):
        several = x.where(*several) if isinstance(several[0], str) else _as_tensor(several)
    found = several.cpu()
    if found.dtype == torch.bool:
        if len(found) != x.length:
            raise InputError(f"a mask over {len(found)} positions does not fit an example of {x.length}")
        found = found.nonzero().flatten()
    no_places = found.is_floating_point() or found.is_complex() or found.dtype == torch.uint8
    if no_places or _is_mask(x, found := found.long()):  # torch compares no others of its unsigned numbers
        raise InputError(f"positions are roles, indices or a mask of True and False; got {asked!r}")
    if not len(found):
        raise InputError(f"no position of this example is in {asked!r}; it has the roles {list(x.present)}")
    if int(found.min()) < -x.length or int(found.max()) >= x.length:
        raise InputError(f"positions {found.tolist()} do not all lie in an example of {x.length} (0 to {x.length - 1})")
    found = found % x.length
    if isinstance(x, Batch) and not x.real[:, found].all():
        raise InputError(
            f"some of the positions {found.tolist()} are padding in some examples of this batch (they are counted from "
            "its left end): choose them by negative index, from the end, or capture the examples one by one"
        )
    return found


def _is_mask(x: Inputs | Batch, found: Tensor) -> bool:
    """Whether numbers stand for truths: one for each position, all 0 or 1, and more than those two positions."""
    return len(found) == x.length > 2 and bool(((found == 0) | (found == 1)).all())


def listed(numbers: Any) -> list[int]:
    """One whole number, of whatever kind, or several.

    Raises:
        TypeError: something else; truths are no numbers here.
    """
    try:
        return [_whole(numbers)]
    except TypeError:
        return [_whole(number) for number in numbers]


def _whole(number: Any) -> int:
    if isinstance(number, bool) or getattr(number, "dtype", None) == torch.bool:
        raise TypeError(f"a whole number is needed, and no truth; got {number!r}")
    return operator.index(number)


def _as_tensor(several: list[Any]) -> Tensor:
    """Whole numbers of whatever kind, or what torch makes of others."""
    with contextlib.suppress(TypeError):
        return torch.tensor(listed(several))
    return torch.as_tensor(several)


def _head_indices(heads: Iterable[int]) -> Int[Tensor, " head"]:
    found = torch.as_tensor(list(heads))
    if not len(found) or int(found.min()) < 0:
        raise InputError(f"heads={found.tolist()}: give at least one head, counted from 0; heads=None keeps all")
    if len(found.unique()) < len(found):
        raise InputError(f"heads={found.tolist()}: a head is asked for twice; give each once")
    return found


def in_layers(sites: Sequence[Site], depths: dict[str, int], layers: int | Iterable[int]) -> list[Site]:
    """The sites in these blocks; those outside of blocks are left out.

    Args:
        sites: what to choose from.
        depths: number of blocks by tower, from `depths_of`.
        layers: numbers of blocks; negative ones count from the end of their tower.

    Raises:
        SiteError: a layer that no tower of these sites has, or no site left.
    """
    asked = listed(layers)
    towers = {tower: depths[tower] for tower, _ in map(_place, sites) if tower in depths}
    for layer in asked:
        if not any(-depth <= layer < depth for depth in towers.values()):
            found = ", ".join(f"{tower}blocks 0 to {depth - 1}" for tower, depth in towers.items())
            raise SiteError(f"there is no layer {layer}; these sites have {found or 'no layers'}")
    if not asked:
        raise SiteError("no layer was asked for; layers=None keeps all")
    chosen = {(tower, layer % depth) for tower, depth in towers.items() for layer in asked if -depth <= layer < depth}
    kept = [site for site in sites if _place(site) in chosen]
    if not kept:
        raise SiteError(f"none of these sites is in layers {asked}: {[site.name for site in sites][:3]}")
    return kept


def depths_of(sites: Iterable[Site]) -> dict[str, int]:
    """How many blocks each tower has: `{"": 24, "vision.": 12}`."""
    depths: dict[str, int] = {}
    for tower, layer in map(_place, sites):
        if layer is not None:
            depths[tower] = max(depths.get(tower, 0), layer + 1)
    return depths


def _place(site: Site) -> tuple[str, int | None]:
    """The tower that a site is in, as its name's beginning, and the number of its block."""
    tower, found, rest = site.name.rpartition("blocks.")
    return (tower, int(rest.split(".")[0])) if found else (site.name, None)
