"""How far rounding alone may move logits: float error, or where that is passed, what this model's own rounding is.

Sums of floats depend on their order, and the order on the processor, the kernel and the shapes. How much of that
arrives at the logits is a matter of the model: a deep one, one with large numbers inside, or one that is nearly
undecided somewhere makes much of it. So it is measured, where it matters, for this model and example: how far the
logits move if what every layer reads, and the queries and keys of every attention, are each moved by one unit in the
last place, up or down at random, which is the least that another order of their sums does (Monte Carlo arithmetic:
Parker 1997). What transformers' own attention kernels differ by is told beside it and excuses nothing: where it is
rounding, it is of that size, and where their masks differ, it is not.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm_interp.errors import SiteError
from lvlm_interp.model.attention import implementation
from lvlm_interp.model.quantised import stored_otherwise
from lvlm_interp.model.vlm import HookedVLM

HALF = (torch.bfloat16, torch.float16)
SINGLE = 1e-5  # of the largest logit: error in float32 that needs no explanation
# Of the largest logit: what may pass for rounding, however much of it the model makes. A mask that is left out, or a
# position that is off by one, moves logits by a twelfth of the largest or more in every test of ours.
MOST, MOST_IN_HALF = 1e-3, 0.1
# What is measured is the largest of a few draws, and the gap that it is held against is another draw; where a model is
# nearly undecided, draws differ by ten times.
DRAWS, SLACK = 3, 4
MOVED = ("hook_resid_pre", "hook_rot_q", "hook_rot_k")  # in vision towers too


@dataclass(frozen=True)
class Allowed:
    """What rounding may make of a gap between logits.

    Attributes:
        limit: in logits.
        explained: what rounding explains, in logits; the limit is never more than a part of the largest logit.
        note: what was measured; empty if nothing had to be.
    """

    limit: float
    explained: float
    note: str = ""


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, in float32, or in float64 where one is; none where a token is never said in both.

    Models give such tokens the lowest number of the type that they compute in, which another type has not.
    """
    wide = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    gap = (a.to(wide) - b.to(wide)).abs()
    return float(gap.masked_fill(_never_said(a) & _never_said(b), 0).max())


def _never_said(logits: Tensor) -> Tensor:
    """Where the lowest number of some type stands, in whichever type it is kept."""
    lowest = (torch.finfo(dtype).min for dtype in (torch.float64, torch.float32, *HALF))
    return functools.reduce(torch.logical_or, (logits == least for least in lowest))


def size(logits: Tensor) -> float:
    """The largest logit, less those of tokens that are never said; 1 at least."""
    said = logits[~_never_said(logits)]
    return max(1.0, float(said.float().abs().max()))


def coarse(vlm: HookedVLM) -> bool:
    """Whether much may be rounding: numbers of half precision, or layers that may round what they read to 8 bits."""
    return bool(halves(vlm)) or any(stored_otherwise(vlm.model))


def halves(vlm: HookedVLM) -> list[torch.dtype]:
    """The half precisions of the language model and of what is in front of it: either may be in another."""
    return [dtype for dtype in (vlm.dtype, vlm.model.dtype) if dtype in HALF]


def float_error(vlm: HookedVLM, logits: Tensor) -> float:
    """Float error that is to be expected of logits of this size, in the type that the model computes in."""
    # Some turn their logits into float32 at last.
    return max((8 * torch.finfo(dtype).eps for dtype in halves(vlm)), default=SINGLE) * size(logits)


def allowed(vlm: HookedVLM, run: Callable[[], Tensor], logits: Tensor, found: float) -> Allowed:
    """What rounding may make of a gap that was found beside these logits, which the plain model gave in `run`."""
    expected = float_error(vlm, logits)
    if found <= expected:
        return Allowed(expected, expected)
    unmoved = visited(vlm, run, kept, MOVED)
    moved = max(apart(visited(vlm, run, _moving(draw), MOVED), unmoved) for draw in range(DRAWS))
    explained = max(expected, SLACK * moved)  # in this order: what is not a number explains nothing
    most = (MOST_IN_HALF if coarse(vlm) else MOST) * size(logits)
    with implementation(vlm.model, "eager"):
        kernels = apart(run(), logits)
    note = f"; one unit in the last place, layer by layer, makes {moved:.1e}, transformers' eager kernel {kernels:.1e}"
    return Allowed(max(expected, min(explained, most)), explained, note)


def visited(
    vlm: HookedVLM, run: Callable[[], Tensor], visit: Callable[[Tensor], Tensor], ends: tuple[str, ...] = ("",)
) -> Tensor:
    """What `run` gives where sites whose names end so are visited, those of them that fire."""
    found = []
    sites = [site for name, site in vlm.sites.items() if name.endswith(ends)]
    with contextlib.suppress(SiteError), vlm.visiting(dict.fromkeys(sites, visit)):
        found.append(run())
    return found[0]


def kept(value: Tensor) -> Tensor:
    """The visit that changes nothing."""
    return value


def _moving(draw: int) -> Callable[[Tensor], Tensor]:
    """Gives each number one unit in its last place more or less, as a coin falls; of a draw the same in every run."""
    generator = torch.Generator().manual_seed(draw)

    def moved(value: Tensor) -> Tensor:
        coins = torch.randint(0, 2, value.shape, generator=generator).to(value)
        return value * (1 + (2 * coins - 1) * torch.finfo(value.dtype).eps)

    return moved
