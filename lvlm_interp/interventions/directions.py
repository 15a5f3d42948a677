"""Directions along which states are pushed, and where they come from.

Differences of means; what separates pairs most (VTI: Liu et al. 2024, arXiv 2410.15778); what the image adds (VISTA:
Li et al. 2025, arXiv 2502.03628); what probes read (ITI: Li et al. 2023, arXiv 2306.03341). Each gives a direction for
each site, and `steer` the pushes. Whether a push does what its direction says is told beside random ones
(`dose_response`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.counterfactuals.counterfactual import Counterfactual, applied, named
from lvlm_interp.engine.score import score_answers
from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.fields import POSITIVE, Range
from lvlm_interp.given import explained, need_seed
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.interventions.intervention import Intervention
from lvlm_interp.interventions.places import Places
from lvlm_interp.interventions.states import Steer
from lvlm_interp.model.choice import axes_of, has_heads, off_the_prompt
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.sites import match
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.probes.features import Features
from lvlm_interp.probes.result import ProbeResult
from lvlm_interp.results import Provenance, Result

OF_HEAD = re.compile(r"(blocks\.(\d+)\..+)\.(\d+)")
MLPS = "blocks.*.hook_mlp_out"
MEANS, PAIRS, IMAGE, PROBES = "mean difference", "principal direction", "image difference", "probes"


@dataclass(frozen=True)
class Directions(Result):
    """A direction for each of some sites.

    Attributes:
        sites: their names; those of heads with their number, `blocks.3.attn.hook_z.5`, as features have them.
        direction: `[site, width]`, as long as what it comes from says: `steer(alpha=1)` pushes by this much.
        spread: the standard deviation of examples along it, in the units of the states.
        examples: how many it comes from.
        source: where it comes from.
    """

    along: ClassVar[Mapping[str, str]] = {"sites": "site"}
    ranges: ClassVar[Mapping[str, Range]] = {"spread": POSITIVE, "examples": POSITIVE}
    sites: tuple[str, ...]
    direction: Float[Tensor, "site width"]
    spread: Float[Tensor, " site"]
    examples: int
    source: str

    @property
    def note(self) -> str:
        return f"{self.source} of {self.examples} examples; lengths in the units of the states"

    def to_frame(self) -> pd.DataFrame:
        """One row for each site: how long its direction is, and how far examples spread along it."""
        told = {"site": self.sites, "length": self.direction.norm(dim=-1).tolist(), "spread": self.spread.tolist()}
        return self.identified(pd.DataFrame(told))

    def steer(
        self,
        alpha: float = 1.0,
        *,
        sites: Collection[str] | None = None,
        positions: Places | None = None,
        norm: Literal["add", "keep"] = "add",
    ) -> Intervention:
        """Pushes along all of them, or those of some sites.

        Args:
            alpha: how far, as `Steer` has it: in lengths of the direction, or with `norm="keep"` as in VTI.
            sites: of which sites; all by default.
            positions: which; None means all.
            norm: whether the length of a state may change.

        Raises:
            InputError: no such site, or a direction of zeros.
        """
        wanted = list(self.sites) if sites is None else list(sites)
        if not wanted or not {*wanted} <= {*self.sites}:
            raise InputError(f"there are directions of {self.sites[0]!r} … {self.sites[-1]!r}; got {wanted[:2]}")
        pushes = [self._push(name, alpha, positions, norm) for name in wanted]
        return functools.reduce(lambda one, other: one + other, pushes)

    def _push(self, name: str, alpha: float, positions: Places | None, norm: Literal["add", "keep"]) -> Intervention:
        direction, head = self.direction[self.sites.index(name)], OF_HEAD.fullmatch(name)
        about: dict[str, Any] = {"direction": direction, "alpha": alpha, "positions": positions, "norm": norm}
        if head is None:
            return Steer(name, **about)
        return Steer(head[1], heads=[(int(head[2]), int(head[3]))], **about)


@explained
def mean_difference(found: Features, labels: Sequence[bool]) -> Directions:
    """What states of some examples are on average more than those of the others.

    Args:
        found: one of what `collect_features` gives.
        labels: whether an example is one of the first kind, for each row.

    Raises:
        InputError: another number of labels, or all alike.
    """
    values, chosen = _values(found), torch.tensor([bool(one) for one in labels])
    if len(chosen) != len(values) or not chosen.any() or chosen.all():
        raise InputError(f"give {len(values)} labels, some true, some not; got {len(chosen)}, {int(chosen.sum())} true")
    direction = values[chosen].mean(0) - values[~chosen].mean(0)
    return _made(found, direction, values, MEANS, labels=chosen.tolist())


@explained
def principal_direction(good: Features, bad: Features) -> Directions:
    """What separates pairs of examples, over all sites at once (VTI).

    The first principal component of good − bad, all sites side by side in one vector, plus their mean, as in the
    published code; the component points to where the mean does.

    Args:
        good, bad: of the same sites; row n of one is what row n of the other is compared with.

    Raises:
        InputError: other sites, another number of rows, or fewer than two pairs.
    """
    if good.sites != bad.sites or len(good.rows) != len(bad.rows) or len(good.rows) < 2:
        raise InputError(
            f"good and bad are of the same sites, and pairs, two or more; got {len(good.rows)} and {len(bad.rows)} rows"
        )
    values = _values(good) - _values(bad)
    apart = values.flatten(1)
    mean = apart.mean(0)
    component = torch.linalg.svd(apart - mean, full_matrices=False)[2][0]
    turned = component * (1.0 if float(component @ mean) >= 0 else -1.0)
    return _made(good, (turned + mean).view(values.shape[1:]), values, PAIRS, bad=bad.provenance.example)


@explained
def probed_directions(
    probes: ProbeResult, found: Features, count: int, *, by: Literal["probe", "means"] = "probe"
) -> Directions:
    """The directions of the best probes, each as long as examples spread along it (ITI).

    Args:
        probes: `fit_probes(found.values, labels)`.
        found: the features that they were fitted to.
        count: of how many sites, those of the best first metric.
        by: the probe's own direction, or the difference of the means of both classes.

    Raises:
        InputError: other features, probes of more than two classes, or no such number of sites.
    """
    values = _values(found)
    fitted = (len(probes.sites), len(probes.truth), probes.coef.shape[1])
    if fitted != (values.shape[1], values.shape[0], values.shape[2]) or probes.coef.shape[2] != 1:
        raise InputError(
            f"probes of two classes, fitted to these features, are wanted; got {fitted} for {values.shape}"
        )
    if not probes.fitted_to(found.values[:]):
        raise InputError("these probes were fitted to other features, or to the same with their rows in another order")
    if not 0 < count <= values.shape[1]:
        raise InputError(f"count is 1 to {values.shape[1]} sites; got {count}")
    best = probes.values[0].nan_to_num(-torch.inf).argsort(descending=True, stable=True)[:count].sort().values
    if by == "probe":
        ways = torch.stack([probes.direction(int(n)) for n in best]).double()
    else:
        second = probes.truth.bool()
        ways = (values[second].mean(0) - values[~second].mean(0))[best]
    ways = ways / ways.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    spread = torch.einsum("esw,sw->es", values[:, best], ways).std(0)
    names = [found.sites[n] for n in best.tolist()]
    return _made(found, spread[:, None] * ways, values[:, best], PROBES, names, count=count, by=by)


@explained
@in_one_go
@torch.no_grad()
def image_difference(
    vlm: HookedVLM,
    examples: Sequence[Inputs],
    without: str | Counterfactual = "hidden",
    *,
    sites: str | Sequence[str] = MLPS,
    seed: int = 0,
) -> Directions:
    """What the image adds to states at the position that predicts the first token (VISTA).

    The paper takes one example, adds it to what MLPs give, and pushes by .1 to .17 of it.

    Args:
        vlm: the model.
        examples: with an image; means are taken over them.
        without: what they are compared with.
        sites: names or globs.
        seed: of what is drawn in a counterfactual.

    Raises:
        InputError: no examples, or no image.
        SiteError: no such sites, or sites of several widths, of heads, or without positions of the prompt.
    """
    need_seed(seed)
    if not examples:
        raise InputError("give an example or more")
    names = [site.name for site in match(vlm.sites, sites, vlm.missing)]
    if wrong := [name for name in names if off_the_prompt(name) or has_heads(name)]:
        raise SiteError(
            f"{wrong[0]!r} has heads, or positions of its own; take blocks.*.hook_mlp_out, hook_resid_post, …"
        )
    one, apart = named(without), list[Tensor]()
    for x in examples:
        x.need_image()
        prompt = x.prompt
        other = prompt if one.change is None else applied(one, vlm, prompt, seed)
        visible = prompt.hidden("image") if one.change is None else other.everything
        apart.append(_last(vlm, prompt, prompt.everything, names) - _last(vlm, other, visible, names))
    values = torch.stack(apart)
    about = vlm.provenance("image_difference", *examples, seed=seed, without=one.name, sites=names)
    direction = values.mean(0)
    return Directions(tuple(names), direction.float(), _spread(values, direction), len(values), IMAGE, provenance=about)


def _last(vlm: HookedVLM, x: Inputs, visible: Tensor, names: Sequence[str]) -> Float[Tensor, "site width"]:
    """What stands at the last position of a prompt of which this is seen."""
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> Tensor:
        found[name] = value.select(axes_of(name)[0], x.answer_start - 1)[0].double().cpu()
        return value

    with vlm.visiting({name: functools.partial(keep, name) for name in names}):
        score_answers(vlm, x, visible[None, : x.answer_start], [torch.tensor(vlm.stops()[:1])])
    if len({len(found[name]) for name in names}) > 1:
        raise SiteError(f"sites of several widths: {names[0]!r} … {names[-1]!r}")
    return torch.stack([found[name] for name in names])


def _values(found: Features) -> Float[Tensor, "example site width"]:
    return torch.as_tensor(found.values[:]).double()


def _spread(values: Float[Tensor, "example site width"], direction: Float[Tensor, "site width"]) -> Tensor:
    ways = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    along = torch.einsum("esw,sw->es", values.double(), ways.double())
    return (along.std(0) if len(values) > 1 else torch.zeros(len(direction))).float()


def _made(
    found: Features,
    direction: Float[Tensor, "site width"],
    values: Float[Tensor, "example site width"],
    source: str,
    names: Sequence[str] | None = None,
    **told: Any,
) -> Directions:
    own = found.provenance
    parameters = {**own.parameters, **told}
    about = Provenance(own.model, own.weights, source, parameters, own.revision, own.seed, own.dtype, own.example)
    sites = tuple(found.sites if names is None else names)
    return Directions(sites, direction.float(), _spread(values, direction), len(values), source, provenance=about)
