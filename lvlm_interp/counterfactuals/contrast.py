"""CAL's contrast: what the answer's logits owe to the image.

Xiao et al., "Seeing the Image: Prioritizing Visual Correlation by Contrastive Alignment", NeurIPS 2024
(arXiv 2405.17871). Δ_j = o_j(y_j | image, x, y_<j) − o_j(y_j | no image, x, y_<j), in raw logits of the label token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, overload

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvlm_interp.counterfactuals.counterfactual import Counterfactual, applied, named
from lvlm_interp.engine.decoder import DecoderInputs
from lvlm_interp.engine.score import Scores, score
from lvlm_interp.errors import InputError, MissingError
from lvlm_interp.fields import LOGPROB, ROUNDING, SHARE, Range, shown
from lvlm_interp.given import explained, need_seed
from lvlm_interp.inputs.called import named_by
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.pairs import Comparable
from lvlm_interp.results import Provenance, Result, heading, shown_frame, table, text
from lvlm_interp.shown import table_html

TokenClass = Literal["correlated", "irrelevant", "contradictory"]
Edge = Literal["answer", "row"]


@dataclass(frozen=True)
class Contrast(Comparable):
    """The answer with and without the image, token by token (all tensors `[answer]`).

    Attributes:
        tokens: the answer tokens as text.
        with_logit, without_logit: raw logits of the label token.
        delta: CAL's Δ = with − without, raw logits.
        with_logprob, without_logprob: log-probabilities, nats.
        delta_nats: their difference, nats: how many times more likely the image makes the token is e^delta_nats.
        hellinger: Hellinger distance of the two whole distributions, 0 (same) … 1 (disjoint).
        weights: CAL's training weights: Δ clamped to [1, 5], then averaged over 3 neighbours (`edge` of `contrast`).
        classes: `correlated` if delta_nats ≥ threshold, `contradictory` if ≤ −threshold, else `irrelevant`.
        without: the counterfactual's name.
    """

    along: ClassVar[Mapping[str, str]] = {"tokens": "answer", "classes": "answer"}
    ranges: ClassVar[Mapping[str, Range]] = {
        "with_logprob": LOGPROB,
        "without_logprob": LOGPROB,
        "hellinger": SHARE,
    }
    keys = ("token",)
    agreeing = ("tokens",)
    tokens: tuple[str, ...]
    with_logit: Float[Tensor, " answer"]
    without_logit: Float[Tensor, " answer"]
    delta: Float[Tensor, " answer"]
    with_logprob: Float[Tensor, " answer"]
    without_logprob: Float[Tensor, " answer"]
    delta_nats: Float[Tensor, " answer"]
    hellinger: Float[Tensor, " answer"]
    weights: Float[Tensor, " answer"]
    classes: tuple[TokenClass, ...]
    without: str = "hidden"

    def __post_init__(self) -> None:
        """Raise for a file whose differences are none of its numbers."""
        super().__post_init__()
        for name, here, there in (
            ("delta", self.with_logit, self.without_logit),
            ("delta_nats", self.with_logprob, self.without_logprob),
        ):
            if not torch.allclose(getattr(self, name), here - there, rtol=ROUNDING, atol=ROUNDING):
                raise InputError(f"{type(self).__name__}.{name} is not what is with the image less what is without it")

    @property
    def note(self) -> str:
        return f"image: {self.without}; with_logit, without_logit and delta in logits"

    def to_frame(self) -> pd.DataFrame:
        """One row a token: the numbers above, `classes`, and `example`."""
        numbers = ("with_logit", "without_logit", "delta", "delta_nats", "hellinger", "weights")
        columns = {name: getattr(self, name).tolist() for name in numbers}
        return self.identified(pd.DataFrame({"token": self.tokens, **columns, "classes": self.classes}))

    def _repr_html_(self) -> str:
        return table_html(shown_frame(self))


@dataclass(frozen=True)
class Contrasts(Result, Mapping[str, Contrast]):
    """Several counterfactuals side by side: name → `Contrast`."""

    each: Mapping[str, Contrast] = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.each or len({one.tokens for one in self.each.values()}) > 1:
            raise InputError("contrasts side by side are of one answer, and there is at least one")

    def __getitem__(self, name: str) -> Contrast:
        if name not in self.each:
            raise MissingError(f"no contrast {name!r}: there are {list(self.each)}")
        return self.each[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.each)

    def __len__(self) -> int:
        return len(self.each)

    @property
    def note(self) -> str:
        return "Δ in nats"

    def to_frame(self) -> pd.DataFrame:
        """One row for each counterfactual and token."""
        return pd.concat([c.to_frame().assign(without=name) for name, c in self.items()], ignore_index=True)

    def table(self, column: str = "delta_nats") -> pd.DataFrame:
        """Tokens down, counterfactuals across.

        Raises:
            InputError: no such number of a contrast.
        """
        known = list(next(iter(self.values())).to_frame())
        if column not in known:
            raise InputError(f"a contrast has no column {column!r}; it has {known}")
        frames = {name: c.to_frame()[column] for name, c in self.items()}
        return pd.DataFrame(frames).set_axis(next(iter(self.values())).tokens)

    def _repr_html_(self) -> str:
        return self.table().to_html(float_format="{:.3f}".format)


@text.register
def _side_by_side(result: Contrasts) -> str:
    return f"{heading(result)}\n{table(result.table(), index=True)}"


@explained
def cal_weights(
    delta: Float[Tensor, "*batch answer"],
    low: float = 1.0,
    high: float = 5.0,
    window: int = 3,
    *,
    before: Float[Tensor, "*batch _"] | None = None,
    after: Float[Tensor, "*batch _"] | None = None,
) -> Float[Tensor, "*batch answer"]:
    """CAL's training weights of one answer: clamp Δ to [α, β], average over W neighbours (section 3.2, code).

    Alone, the answer is averaged over its own tokens (`count_include_pad=False`), as the paper writes it. CAL's code
    averages over whole rows of a batch: what stands beside the answer counts at its edges, supervised or not.

    Args:
        delta: Δ of the answer tokens.
        low, high: α and β.
        window: W.
        before, after: Δ of the tokens that stand before the answer and behind it, for what CAL's code gives.

    Raises:
        InputError: no tokens, α beyond β, or a window that has no token in its middle.
    """
    if not delta.shape[-1] or not low <= high or window < 1 or window % 2 == 0:
        raise InputError(
            f"weights are of one token or more, from low to high, over an odd number of neighbours; got "
            f"{delta.shape[-1]} tokens, from {low} to {high}, window={window}"
        )
    pool = nn.AvgPool1d(window, stride=1, padding=window // 2, count_include_pad=False)
    sides = [delta[..., :0] if side is None else side for side in (before, after)]
    row = torch.cat([sides[0], delta, sides[1]], -1).clamp(low, high)
    pooled = pool(row.reshape(-1, 1, row.shape[-1])).reshape(row.shape)
    start = sides[0].shape[-1]
    return pooled[..., start : start + delta.shape[-1]]


@explained
def token_classes(delta_nats: Float[Tensor, " answer"], threshold: float = 1.0) -> tuple[TokenClass, ...]:
    """The paper's three kinds of token. Its text gives no thresholds; ours is one nat either way, adjustable.

    Nats rather than logits decide, since an offset that all logits share changes no probability.

    Raises:
        InputError: a number that is NaN, which is of no kind, or a threshold below 0.
    """
    _need_threshold(threshold)
    if delta_nats.isnan().any():
        raise InputError(f"a number of nats is NaN, which is no kind of token: {shown(delta_nats.tolist())}")
    return tuple(
        "correlated" if d >= threshold else "contradictory" if d <= -threshold else "irrelevant"
        for d in delta_nats.tolist()
    )


def _need_threshold(threshold: float) -> None:
    if not 0 <= threshold < math.inf:
        raise InputError(f"threshold= is a number of nats, 0 or more; got {threshold}")


@overload
def contrast(
    vlm: HookedVLM,
    x: Inputs,
    without: str | Counterfactual = ...,
    *,
    threshold: float = ...,
    seed: int = ...,
    edge: Edge = ...,
    decoder_inputs: DecoderInputs | None = ...,
) -> Contrast: ...
@overload
def contrast(
    vlm: HookedVLM,
    x: Inputs,
    without: list[str] | list[Counterfactual] | tuple[str | Counterfactual, ...],
    *,
    threshold: float = ...,
    seed: int = ...,
    edge: Edge = ...,
    decoder_inputs: DecoderInputs | None = ...,
) -> Contrasts: ...
@explained
@in_one_go
def contrast(
    vlm: HookedVLM,
    x: Inputs,
    without: Any = "hidden",
    *,
    threshold: float = 1.0,
    seed: int = 0,
    edge: Edge = "answer",
    decoder_inputs: DecoderInputs | None = None,
) -> Any:
    """Compare the answer with and without the image.

    Args:
        vlm: the model.
        x: an example with an image and an answer.
        without: one of `lvlm_interp.counterfactuals`, or its name if it needs no argument (`hidden`, CAL's, by
            default), or a list of them.
        threshold: nats from which a token counts as correlated or contradictory.
        seed: decides what is random in a counterfactual.
        edge: what CAL's weights are averaged over at the edges of the answer: its own tokens (`answer`, the paper), or
            also the token before it and the end of the turn behind it (`row`, CAL's code).
        decoder_inputs: of the example (`run_to_decoder`), if it is scored by several methods.

    Returns:
        `Contrast`; for a list, `Contrasts`.

    Raises:
        InputError: there is no image or no answer, a name that is not known or that stands twice, or an empty list.
    """
    _need_threshold(threshold)
    need_seed(seed)
    x.need_image()
    x.need_answer()
    chosen = [named(one) for one in (without if isinstance(without, (list, tuple)) else [without])]
    names = [c.name for c in chosen]
    if edge not in ("answer", "row"):
        raise InputError(f"edge is 'answer' or 'row', got {edge!r}")
    if not chosen:
        raise InputError("without=[] names no counterfactual; 'hidden' is CAL's")
    if len(set(names)) < len(names):
        raise InputError(
            f"the counterfactuals side by side need different names, got {names}; dataclasses.replace(one, name=…) "
            "gives another"
        )
    about = vlm.provenance("contrast", x, seed=seed, threshold=threshold)
    both = score(vlm, x, torch.stack([x.everything, x.hidden("image")]), decoder_inputs=decoder_inputs)
    found = {c.name: _compared(x, c, both, *_other(vlm, x, c, both, seed), about) for c in chosen}
    if edge == "row":
        found = {c.name: _in_its_row(vlm, x, c, found[c.name], seed) for c in chosen}
    if not isinstance(without, (list, tuple)):
        return found[chosen[0].name]
    return Contrasts(found, provenance=_with(about, without=names))


def _other(
    vlm: HookedVLM, x: Inputs, counterfactual: Counterfactual, both: Scores, seed: int
) -> tuple[Scores, int, dict[str, str]]:
    """Where the scores under a counterfactual are, scores and a row of them, and of which example they are."""
    if counterfactual.change is None:
        return both, 1, {}
    changed = applied(counterfactual, vlm, x, seed)
    return score(vlm, changed, changed.everything[None]), 0, {"other_example": named_by(changed)}


def _with(about: Provenance, **parameters: Any) -> Provenance:
    return dataclasses.replace(about, parameters={**about.parameters, **parameters})


def _compared(
    x: Inputs, counterfactual: Counterfactual, a: Scores, b: Scores, j: int, other: Mapping[str, str], about: Provenance
) -> Contrast:
    i = 0  # everything seen
    delta, delta_nats = a.logit[i] - b.logit[j], a.logprob[i] - b.logprob[j]
    parameters = {"without": counterfactual.name, **counterfactual.parameters, **other}
    return Contrast(
        tokens=x.answer_tokens,
        with_logit=a.logit[i],
        without_logit=b.logit[j],
        delta=delta,
        with_logprob=a.logprob[i],
        without_logprob=b.logprob[j],
        delta_nats=delta_nats,
        hellinger=_hellinger(a.logits(i), b.logits(j)).cpu(),
        weights=cal_weights(delta),
        classes=token_classes(delta_nats, about.parameters["threshold"]),
        without=counterfactual.name,
        provenance=_with(about, **parameters),
    )


def _in_its_row(vlm: HookedVLM, x: Inputs, counterfactual: Counterfactual, found: Contrast, seed: int) -> Contrast:
    """The same with the weights of CAL's code, for which the tokens beside the answer are scored too.

    Raises:
        VisibilityError: the token before the answer is read from an image token, which is hidden.
    """
    last = x.answer_start - 1
    ids = [*x.input_ids[0, last:].tolist(), vlm.stops()[0]]
    longer = dataclasses.replace(x, answer_start=last).with_answer(ids, vlm.token_strings(ids), x.answer)
    both = score(vlm, longer, torch.stack([longer.everything, longer.hidden("image")]))
    other, j, _ = _other(vlm, longer, counterfactual, both, seed)
    row = both.logit[0] - other.logit[j]
    weights = cal_weights(found.delta, before=row[:1], after=row[-1:])
    return dataclasses.replace(found, weights=weights, provenance=_with(found.provenance, edge="row"))


@torch.no_grad()
def _hellinger(
    a: Float[Tensor, "answer vocabulary"], b: Float[Tensor, "answer vocabulary"]
) -> Float[Tensor, " answer"]:
    """√(½ Σ (√p − √q)²), from logits: 1 − Σ √(p·q) would lose what is small to rounding."""
    roots = [(logits.log_softmax(-1) / 2).exp() for logits in (a, b)]
    return ((roots[0] - roots[1]).square().sum(-1) / 2).sqrt()
