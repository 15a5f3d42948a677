"""Linear probes: what can be read off every layer and head by a linear map, with honest statistics.

One call fits all sites. Everything that is learnt from data is learnt inside the training folds: coefficients, the
strength of L2 (by nested cross-validation, on the log-likelihood), centre and scale of the features. No group (the
questions about one image, say) is on both sides of a fold. Beside each score stand what the majority gets, what the
same probe gets on a control task with random labels for each type (Hewitt & Liang, "Designing and Interpreting Probes
with Control Tasks", EMNLP 2019), a bootstrap interval over groups, and a permutation p-value, adjusted over sites.

That a probe reads something off a site shows that it is there, not that the model uses it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Sized
from numbers import Integral
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.bootstrap import Samples, bootstrap_weights
from lvlm_interp.columns import Column, native
from lvlm_interp.errors import InputError
from lvlm_interp.given import explained
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.probes import statistics
from lvlm_interp.probes.design import L2, designed
from lvlm_interp.probes.estimators import need_squares, precision
from lvlm_interp.probes.fit import BINARY, TOLERANCE
from lvlm_interp.probes.result import ProbeResult, listed
from lvlm_interp.probes.task import Task, TaskKind, given_features, task_of
from lvlm_interp.probes.uncast import uncast
from lvlm_interp.probes.validate import Fitted, Plan, fit_block
from lvlm_interp.results import Provenance
from lvlm_interp.storing import scalar

CONTROLS = 3  # draws of control labels that selectivity is averaged over
BLOCK = 1 << 24  # bytes of features that are fitted together: what stays in a cache is passed over fast


# --- the call ---------------------------------------------------------------------------------------------------------


@explained
@uncast
def fit_probes(
    features: Any,
    labels: Any,
    *,
    groups: Column | None = None,
    types: Column | None = None,
    sites: Sequence[str] | None = None,
    task: TaskKind | Literal["auto"] = "auto",
    folds: int | Column = 5,
    l2: float | Sequence[float] = L2,
    standardize: bool = True,
    permutations: int = 1000,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    alpha: float = 0.05,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    metadata: pd.DataFrame | None = None,
    vlm: HookedVLM | None = None,
    progress: bool = False,
) -> ProbeResult:
    """Fit a probe at every site and say what each is worth.

    Args:
        features: `[example, site, dim]`, or `[example, layer, head, dim]`; a tensor, an array, or anything with a shape
            that gives an array when sliced, such as a zarr array: it is read in blocks of sites. Real numbers.
        labels: one for each example. Strings, integers and whole floats are classes; other floats, and rows of numbers
            such as (x, y), are values for ridge regression.
        groups: examples of the same group (image) are never on both sides of a fold.
        types: what a probe could learn by heart, such as the noun asked about; control labels are drawn for each type.
            Without types there is no selectivity.
        sites: names of the sites; their numbers by default.
        task: `classify` or `regress`, where the labels do not say.
        folds: how many, or the fold of each example.
        l2: strengths to choose from by inner cross-validation, or one to use. As in scikit-learn it is weighed against
            the *sum* of losses: C = 1 / l2.
        standardize: scale features by their standard deviation in the training folds.
        permutations: for p-values; none with 0. p is at least 1 / (permutations + 1).
        bootstrap: samples for intervals, two or more; none with 0.
        confidence: of the intervals.
        alpha: false discovery rate over sites.
        tolerance: share of their length that coefficients may be off by at the end of a fit, between 0 and 1.
        seed: decides folds, control labels, permutations and samples.
        metadata: a frame with a row for each example, kept in the result; what is no number, text or truth (a date)
            comes back from a file as its text.
        vlm: the model that features come from, for the result's provenance.
        progress: show a progress bar over blocks of sites.

    Raises:
        InputError: features, labels, groups, types or folds that do not fit together; NaN features (the site is named);
            one class only; too few examples for the folds; an l2, share or count out of its range.
    """
    features = given_features(features)
    shape, names = _checked_shape(features, sites)
    shares = {"confidence": confidence, "alpha": alpha, "tolerance": tolerance}
    _check_numbers(shares, {"permutations": permutations, "bootstrap": bootstrap}, seed)
    if not isinstance(standardize, (bool, np.bool_)):
        raise InputError(f"standardize is True or False, got {standardize!r}")
    count = shape[0]
    _check_lengths(count, labels=labels)
    wanted = task_of(labels, task)
    _check_lengths(count, labels=wanted.truth, groups=groups, types=types, folds=folds, metadata=metadata)
    kept = _columns(metadata)
    design = designed(wanted, groups, types, folds, seed, l2)
    grouped, fold = design.groups, design.fold
    generator = torch.Generator().manual_seed(int(seed))
    targets = _targets(wanted, design.types, generator)
    plan = Plan(wanted, targets, fold, design.inner, design.l2, standardize, tolerance)
    orders = statistics.exchanges(fold, grouped, permutations, generator, wanted.truth)
    blocks = list(_blocks(features, shape, names, design.l2))
    for read in blocks if isinstance(features, (Tensor, np.ndarray)) else ():
        read()  # what is broken at the last site is found before the first is fitted
    seen = xxhash.xxh3_64()
    found = Fitted.together(
        [fit_block(_noted(x(), seen), plan, orders) for x in tqdm(blocks, disable=not progress, unit="block")]
    )
    beside = _digest(wanted.truth, grouped, design.types, fold)
    weights = bootstrap_weights(grouped, bootstrap, generator)
    p, q = _tested(found.statistic)
    about = {"permutations": permutations, "bootstrap": bootstrap, "examples": count, "folds": len(plan.inner)}
    return ProbeResult(
        sites=names,
        site_shape=shape[1:-1],
        kind=wanted.kind,
        classes=wanted.classes,
        **_judged(found, plan, weights, confidence, int(grouped.max()) + 1),
        p=p,
        q=q,
        l2=found.l2,
        coef=found.coef,
        intercept=found.intercept,
        margins=found.margins[:, :, 0],
        truth=wanted.truth,
        fold=fold,
        groups=grouped,
        alpha=alpha,
        confidence=confidence,
        notes=_notes(found, names, wanted.truth[orders], alpha),
        metadata=kept,
        provenance=dataclasses.replace(_provenance(vlm, seed, plan, about), example=seen.hexdigest() + beside),
    )


# --- parts of the call ------------------------------------------------------------------------------------------------


def _checked_shape(features: Any, sites: Sequence[str] | None) -> tuple[tuple[int, ...], tuple[str, ...]]:
    shape = tuple(features.shape)
    if len(shape) not in (3, 4) or 0 in shape:
        raise InputError(f"features are [example, site, dim] or [example, layer, head, dim], none empty; got {shape}")
    if isinstance(sites, str):
        raise InputError(f"sites are names, one for each site; got one text, {sites!r}")
    names = tuple(sites) if sites is not None else tuple(".".join(map(str, i)) for i in np.ndindex(shape[1:-1]))
    if odd := [name for name in names if not isinstance(name, str)]:
        raise InputError(f"sites are names, texts, one for each site; got {odd[0]!r}")
    if len(names) != np.prod(shape[1:-1]) or len(set(names)) != len(names):
        raise InputError(f"{int(np.prod(shape[1:-1]))} sites need as many different names, got {len(set(names))}")
    return shape, names


def _check_lengths(count: int, **columns: Any) -> None:
    for what, given in columns.items():
        if isinstance(given, Sized) and not isinstance(given, (str, bytes, Mapping)) and len(given) != count:
            raise InputError(f"{count} examples but {len(given)} {what}")


def _columns(metadata: pd.DataFrame | None) -> dict[str, list[Any]]:
    told: Any = {} if metadata is None else metadata  # as a file keeps it: dates as text, what is missing as None
    columns = [(str(name), [scalar(one) for one in values]) for name, values in told.items()]
    if len(found := dict(columns)) < len(columns):
        raise InputError(f"columns of metadata have names of their own; got {[name for name, _ in columns]}")
    return found


def _check_numbers(shares: Mapping[str, float], counts: Mapping[str, int], seed: int) -> None:
    for name, share in shares.items():
        if not 0 < share < 1:
            raise InputError(f"{name} is a share between 0 and 1, got {share}")
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 0:
            raise InputError(f"{name} is how many, 0 for none, got {count}")
    if counts["bootstrap"] == 1:
        raise InputError("bootstrap=1 is a sample that tells no interval: give 0 for none, or some hundreds")
    if not 0 <= seed < 2**32 - 1:
        raise InputError(f"a seed is a number from 0 to {2**32 - 2}, got {seed}")


def _blocks(features: Any, shape: tuple[int, ...], names: tuple[str, ...], l2: Sequence[float]) -> Iterator[Any]:
    """For every block of sites a function that reads it as `[site, example, dim]`."""
    inside = int(np.prod(shape[2:-1]))  # sites for each step along the first site axis
    several = max(1, BLOCK // (4 * shape[0] * inside * shape[-1]))

    def reader(start: int) -> Any:
        def read() -> Float[Tensor, "site example dim"]:
            part = features[:, start : start + several]
            x = part.detach().cpu() if isinstance(part, Tensor) else torch.as_tensor(native(part))
            x = x.to(precision(l2, x.dtype))
            x = x.reshape(len(x), -1, shape[-1]).transpose(0, 1).contiguous()
            broken = (~x.isfinite()).any(-1)
            if broken.any():
                bad = [names[start * inside + int(i)] for i in broken.any(1).nonzero()]
                raise InputError(
                    f"features have NaN or infinite values at {listed(bad)}, first in example "
                    f"{int(broken.any(0).nonzero()[0])}"
                )
            need_squares(x, names[start * inside :])
            return x

        return read

    return (reader(start) for start in range(0, shape[1], several))


def _noted(x: Float[Tensor, "site example dim"], seen: xxhash.xxh3_64) -> Float[Tensor, "site example dim"]:
    """The features, of which a digest is made for provenance."""
    seen.update(x.numpy().tobytes())
    return x


def _digest(*columns: Tensor | None) -> str:
    """Of what the features were fitted to."""
    found = xxhash.xxh3_64()
    for column in columns:
        found.update(b"none" if column is None else column.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _targets(
    task: Task, types: Int[Tensor, " example"] | None, generator: torch.Generator
) -> Float[Tensor, "example target output"]:
    """The real targets, then `CONTROLS` in which every type has the label of an example drawn at random."""
    truths = [task.truth]
    if types is not None:
        for _ in range(CONTROLS):
            drawn = torch.randint(len(types), (int(types.max()) + 1,), generator=generator)
            truths.append(task.truth[drawn[types]])
    return torch.stack([task.targets(truth) for truth in truths], 1)


def _judged(found: Fitted, plan: Plan, weights: Samples, confidence: float, groups: int) -> dict[str, Any]:
    """Scores, intervals, baseline and control."""
    task, margins = plan.task, found.margins.float()
    scores = task.scores(margins[:, :, 0], task.truth, weights, plan.fold)
    values = statistics.stacked(scores)
    low, high = statistics.score_intervals(scores, confidence, groups, len(plan.fold))
    baseline = statistics.stacked(task.scores(_uninformed(plan), task.truth, weights[:1], plan.fold))
    first = next(iter(scores))
    control = torch.full((len(margins),), torch.nan, dtype=torch.float32)
    if margins.shape[2] > 1:
        drawn = [(i, _truth_of(task, plan.targets[:, i])) for i in range(1, margins.shape[2])]
        each = [task.scores(margins[:, :, i], truth, weights[:1], plan.fold)[first][:, 0] for i, truth in drawn]
        control = torch.stack(each).mean(0)
    return {
        "metrics": tuple(scores),
        "values": values[..., 0],
        "low": low,
        "high": high,
        "baseline": baseline[:, 0, 0],
        "control": control,
    }


def _truth_of(task: Task, targets: Float[Tensor, "example output"]) -> Tensor:
    return task.margins(targets) if task.kind == "regress" else task.predicted(targets - 0.5)


def _uninformed(plan: Plan) -> Float[Tensor, "1 example output"]:
    """Margins that say nothing of the example: those of the majority class, or of the mean."""
    means = plan.targets[:, 0].mean(0).expand(1, len(plan.fold), -1)
    if plan.task.kind == "regress":
        return plan.task.margins(means)
    return means.logit() if plan.task.likelihood is BINARY else means.log()


def _tested(statistic: Float[Tensor, "site order"]) -> tuple[Float[Tensor, " site"], Float[Tensor, " site"]]:
    """p and q; NaN without permutations."""
    if statistic.shape[1] < 2:
        nothing = torch.full((len(statistic),), torch.nan, dtype=torch.float32)
        return nothing, nothing
    p = statistics.permutation_p(statistic).float()
    return p, statistics.false_discovery_q(p)


def _notes(found: Fitted, names: tuple[str, ...], labels: Tensor, alpha: float) -> tuple[str, ...]:
    """What a reader should know; `labels` are those of the examples in every permutation."""
    notes: list[str] = []
    if found.constant.any():
        where = [f"{names[int(i)]} ({int(found.constant[i])})" for i in found.constant.nonzero()]
        notes.append(f"constant features, which get coefficient 0, at {listed(where)}")
    if found.separable.any():
        where = [names[int(i)] for i in found.separable.nonzero()]
        notes.append(
            f"the classes are perfectly separable at {listed(where)}: the length of those coefficients, and so how "
            "sure probabilities are, is set by l2 alone"
        )
    if len(labels) > 1:
        notes += _limits(len(names), len(labels), len(labels.flatten(1).unique(dim=0)), alpha)
    return tuple(notes)


def _limits(sites: int, drawn: int, different: int, alpha: float) -> list[str]:
    """What permutations cannot find, where they are few or come out alike."""
    needed = int(np.ceil(sites / (alpha * different)))
    if needed < 2:
        return []
    if 2 * different > drawn:
        return [
            f"with {drawn - 1} permutations over {sites} sites, fewer than {needed} sites can never be significant; "
            "give more permutations to find single sites"
        ]
    return [
        f"the labels can change places in about {different} ways only, as folds and groups keep together what belongs "
        f"together: p is hardly below {1 / different:.2g}, and fewer than {needed} of {sites} sites can never be "
        "significant; more groups, or fewer folds, would help"
    ]


def _provenance(vlm: HookedVLM | None, seed: int, plan: Plan, about: Mapping[str, int]) -> Provenance:
    fitting = {"l2": plan.l2, "standardize": plan.standardize, "tolerance": plan.tolerance}
    parameters: dict[str, Any] = {"task": plan.task.kind, **fitting, **about}
    if vlm is not None:
        return vlm.provenance("probe", seed=seed, **parameters)
    return Provenance("not given", "not given", "probe", parameters, seed=seed)
