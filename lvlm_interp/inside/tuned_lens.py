"""Tuned lens: an affine translator for each layer, trained so that the lens says what the model will say.

Belrose et al. 2023 (eq. 7, 8): layer l decodes h + W_l h + b_l instead of h, with W and b trained by KL(final ‖ lens).
Image positions hold something else than text positions, so each kind has translators of its own.

`fit_tuned_lens` is the fitter; `TunedLens` is frozen, knows the model that it was fitted on, and reads no other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import ClassVar, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from lvlm_interp.bootstrap import bootstrap_weights, interval
from lvlm_interp.checkpoints import need_place, read_checkpoint, write_checkpoint
from lvlm_interp.errors import InputError
from lvlm_interp.fields import POSITIVE, Range
from lvlm_interp.given import explained, whole
from lvlm_interp.inputs.called import digest
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inside.ending import need_plain_end
from lvlm_interp.model.finite import need_finite
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result
from lvlm_interp.shown import table_html

Modality = Literal["text", "image"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
F32 = torch.float32
CHECKPOINT_EVERY = 25
RESAMPLES = 1000
FASTEST = 1e30  # that Adam can reckon with in single precision
MOST = 2**32 - 1  # steps, positions, and what a generator takes as a seed


@dataclass(frozen=True)
class TunedLens(Result):
    """Translators of every layer but the last, for text and for image positions.

    Attributes:
        weight, bias: what is added to the residual stream after n blocks is `h @ weight.T + bias`; zero where nothing
            was learnt, `[kind, layer, width, width]` and `[kind, layer, width]`. Kinds are `text`, `image`.
        tuned_kl, plain_kl: mean KL(final ‖ lens) over held-out positions, with and without translators, nats,
            `[kind, layer]`.
        gain_low, gain_high: 95% interval of the mean of their difference plain − tuned, a bootstrap over examples; NaN
            where only one was held out.
        steps: how many steps were taken.
    """

    ranges: ClassVar[Mapping[str, Range]] = dict.fromkeys(("tuned_kl", "plain_kl", "steps"), POSITIVE)
    blank = frozenset({"tuned_kl", "plain_kl", "gain_low", "gain_high"})
    weight: Float[Tensor, "kind layer width width"]
    bias: Float[Tensor, "kind layer width"]
    tuned_kl: Float[Tensor, "kind layer"]
    plain_kl: Float[Tensor, "kind layer"]
    gain_low: Float[Tensor, "kind layer"]
    gain_high: Float[Tensor, "kind layer"]
    steps: int

    def need_model(self, vlm: HookedVLM) -> None:
        """Raise unless this lens was fitted on the model.

        Raises:
            InputError: its weights differ.
        """
        if vlm.fingerprint != self.provenance.weights:
            raise InputError(
                f"this lens was fitted on {self.provenance.model} (weights {self.provenance.weights}), not on "
                f"{vlm.name} (weights {vlm.fingerprint}); fit one with fit_tuned_lens"
            )

    def translated(
        self, layer: int, states: Float[Tensor, "position width"], image: Bool[Tensor, " position"]
    ) -> Float[Tensor, "position width"]:
        """The residual stream after `layer` blocks as the final norm should read it; the last layer is left alone."""
        if layer == self.weight.shape[1]:
            return states
        out = states.clone()
        for kind, where in enumerate((~image, image)):
            where = where.to(states.device)
            weight, bias = (t[kind, layer].to(states) for t in (self.weight, self.bias))
            out[where] += states[where] @ weight.T + bias
        return out

    def to_frame(self) -> pd.DataFrame:
        """One row for each kind and layer: `kind`, `layer`, `plain_kl`, `tuned_kl`, and the interval of the gain."""
        names = ("plain_kl", "tuned_kl", "gain_low", "gain_high")
        index = pd.MultiIndex.from_product([MODALITIES, range(self.weight.shape[1])], names=["kind", "layer"])
        numbers = {name: getattr(self, name).flatten().tolist() for name in names}
        return index.to_frame(index=False).assign(**numbers)

    def _repr_html_(self) -> str:
        note = "KL(final ‖ lens) on held-out positions, nats"
        return table_html(self.to_frame(), caption=note)


def _need_finite(*learnt: Tensor) -> None:
    """Raise for translators that no lens can read through."""
    if not all(bool(part.isfinite().all()) for part in learnt):
        raise InputError(
            "the translators of this tuned lens hold NaN or infinity: fit it with a lower rate, Fitting(rate=…)"
        )


@dataclass(frozen=True)
class Fitting:
    """How a tuned lens is fitted; every number ends up in its provenance.

    Raises:
        InputError: a number out of its range.
    """

    steps: int = 250
    positions: int = 16
    rate: float = 1e-3
    seed: int = 0
    held_out: float = 0.2
    from_each: int = 16

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("positions", 1), ("from_each", 1), ("seed", 0)):
            self._need(name, Integral, f"a whole number from {least} to {MOST}", least, MOST)
            object.__setattr__(self, name, whole(getattr(self, name)))
        self._need("rate", Real, f"a number above 0, up to {FASTEST}", math.nextafter(0, 1), FASTEST)
        self._need("held_out", Real, "a share between 0 and 1", math.nextafter(0, 1), math.nextafter(1, 0))

    def _need(self, name: str, kind: type, wanted: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:  # type: ignore[operator]
            raise InputError(f"Fitting({name}=…) is {wanted}; got {value!r}")


@explained
@in_one_go
def fit_tuned_lens(
    vlm: HookedVLM,
    examples: Iterable[Inputs],
    fitting: Fitting | None = None,
    *,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> TunedLens:
    """Fit translators of every layer on examples, and measure them on those held out.

    Args:
        vlm: the model.
        examples: prompts of the kind that the lens will read; the last share (`fitting.held_out`) is only measured.
        fitting: steps, positions in a step, learning rate (Adam, decaying linearly), seed, positions of each kind drawn
            from each example.
        checkpoint: a file that keeps what is learnt; the same call goes on from it.
        progress: show a progress bar.

    Raises:
        InputError: fewer than two examples, weights that change meanwhile, or a checkpoint of another model, fitting or
            examples; a rate so high that nothing finite is learnt.
        OutputError: the checkpoint cannot be written, which is found before anything is computed.
        ModelError: an edit, or a hook of yours, behind the last block; the model gives NaN or infinity.
    """
    need_plain_end(vlm, "a lens")
    how, examples = fitting or Fitting(), list(examples)
    split = len(examples) - max(1, round(how.held_out * len(examples)))
    if split < 1:
        raise InputError(f"a tuned lens needs examples to fit and to hold out; got {len(examples)}")
    path = None if checkpoint is None else need_place(Path(checkpoint))
    with torch.inference_mode(False):
        described = {"weights": vlm.fingerprint, "examples": digest(*examples[:split])}
        described["edits"] = ", ".join(vlm.active_edits)
        train = _gathered(vlm, examples[:split], how, progress)
        described |= {k: str(v) for k, v in dataclasses.asdict(how).items()}
        weight, bias = _fitted(vlm, train, how, path, described, progress)
        held = _gathered(vlm, examples[split:], how, progress)
        _need_weights(vlm, described["weights"])
        measured = [_measured(vlm, held[kind], weight[n], bias[n], how) for n, kind in enumerate(MODALITIES)]
    columns = {name: torch.stack([m[name] for m in measured]) for name in measured[0]}
    parameters = {**dataclasses.asdict(how), "examples": split, "held_out_examples": len(examples) - split}
    provenance = vlm.provenance("tuned lens", *examples, seed=parameters.pop("seed"), **parameters)
    return TunedLens(weight.cpu(), bias.cpu(), **columns, steps=how.steps, provenance=provenance)


def _need_weights(vlm: HookedVLM, weights: str) -> None:
    """Raise where the model is no longer what it was."""
    if (found := vlm.fingerprint) != weights:
        raise InputError(
            f"the weights or settings of {vlm.name} changed while its lens was fitted (from {weights} to {found}): put "
            "the model back as it was, or fit anew"
        )


@dataclass(frozen=True, eq=False)
class _Gathered:
    """Residual streams of one kind of position, after each number of blocks, and which example each is from."""

    states: Float[Tensor, "layer position width"]
    example: Float[Tensor, " position"]


def _gathered(vlm: HookedVLM, examples: Sequence[Inputs], how: Fitting, progress: bool) -> dict[Modality, _Gathered]:
    """Positions drawn from each example, with what every layer holds there, the last layer included."""
    generator = torch.Generator().manual_seed(int(how.seed))
    found: dict[Modality, list[tuple[Tensor, int]]] = {kind: [] for kind in MODALITIES}
    sites = ["blocks.0.hook_resid_pre", "blocks.*.hook_resid_post"]
    for number, x in enumerate(tqdm(examples, desc="activations", disable=not progress, leave=False)):
        every = vlm.capture(x, sites)
        need_finite(vlm, x, *every.values())
        captured = torch.stack([value[0] for name, value in every.items() if name != "logits"])
        image = x.where("image")
        for kind, where in (("text", ~image), ("image", image)):
            at = where.nonzero().flatten()
            at = at[torch.randperm(len(at), generator=generator)[: how.from_each]]
            found[kind].append((captured[:, at], number))  # type: ignore[index]
    return {kind: _together(parts) for kind, parts in found.items()}


def _together(parts: Sequence[tuple[Tensor, int]]) -> _Gathered:
    numbers = [torch.full((states.shape[1],), float(number), dtype=F32) for states, number in parts]
    return _Gathered(torch.cat([states for states, _ in parts], 1), torch.cat(numbers))


# --- fitting --------------------------------------------------------------------------------------


def _fitted(
    vlm: HookedVLM,
    data: Mapping[Modality, _Gathered],
    how: Fitting,
    path: Path | None,
    described: Mapping[str, str],
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Weights and biases after all steps; `described` is what a checkpoint must be of."""
    layers, width = data["text"].states.shape[0] - 1, data["text"].states.shape[2]
    device = data["text"].states.device
    weight = nn.Parameter(torch.zeros(len(MODALITIES), layers, width, width, dtype=F32, device=device))
    bias = nn.Parameter(torch.zeros(len(MODALITIES), layers, width, dtype=F32, device=device))
    learnt, optimizer = {"weight": weight, "bias": bias}, torch.optim.Adam([weight, bias], lr=how.rate)
    done = 0 if path is None else read_checkpoint(path, learnt, optimizer, described)
    with tqdm(total=how.steps, initial=done, desc="tuned lens", disable=not progress, leave=False) as bar:
        for step in range(done, how.steps):
            optimizer.param_groups[0]["lr"] = how.rate * (1 - step / how.steps)
            losses = [_loss(vlm, data[kind].states, weight[n], bias[n], how, step) for n, kind in enumerate(MODALITIES)]
            optimizer.zero_grad()
            with torch.enable_grad():
                total = sum(loss for loss in losses if loss is not None)
                total.backward(inputs=[weight, bias])  # type: ignore[union-attr]  # the model's own are its user's
            optimizer.step()
            bar.update()
            if path is not None and ((step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == how.steps):
                _need_weights(vlm, described["weights"])
                _need_finite(weight, bias)
                write_checkpoint(path, learnt, optimizer, step + 1, described)
    _need_finite(weight, bias)
    return weight.detach(), bias.detach()


def _loss(vlm: HookedVLM, states: Tensor, weight: Tensor, bias: Tensor, how: Fitting, step: int) -> Tensor | None:
    """Mean KL(final ‖ lens) over layers, on positions that the step's own seed draws; None where there are none."""
    if not states.shape[1]:
        return None
    generator = torch.Generator().manual_seed(int(how.seed) * 1_000_003 + step)
    at = torch.randint(states.shape[1], (how.positions,), generator=generator)
    with torch.enable_grad():
        return _kl(vlm, states[:, at], weight, bias).mean()


def _kl(
    vlm: HookedVLM, states: Float[Tensor, "layers position width"], weight: Tensor, bias: Tensor
) -> Float[Tensor, "layer position"]:
    """KL(final ‖ lens) of every layer but the last, nats."""
    early = states[:-1].float()
    moved = early + torch.einsum("lpw,lvw->lpv", early, weight) + bias[:, None]
    with torch.no_grad():
        final = vlm.readout(states[-1]).float().log_softmax(-1)
    lens = vlm.readout(moved.to(states.dtype)).float().log_softmax(-1)
    return (final.exp() * (final - lens)).sum(-1)


# --- measuring ------------------------------------------------------------------------------------


@torch.no_grad()
def _measured(vlm: HookedVLM, held: _Gathered, weight: Tensor, bias: Tensor, how: Fitting) -> dict[str, Tensor]:
    """Held-out KL with and without translators, and the interval of what is gained."""
    none = torch.full((len(weight),), torch.nan, dtype=F32)
    if not held.states.shape[1]:
        return dict.fromkeys(("tuned_kl", "plain_kl", "gain_low", "gain_high"), none)
    tuned, plain = (
        torch.cat([_kl(vlm, some, w, b).cpu() for some in held.states.split(how.positions, 1)], 1)
        for w, b in ((weight, bias), (torch.zeros_like(weight), torch.zeros_like(bias)))
    )
    _need_finite(tuned)
    low, high = _interval(plain - tuned, held.example, how.seed)
    return {"tuned_kl": tuned.mean(1), "plain_kl": plain.mean(1), "gain_low": low, "gain_high": high}


def _interval(
    gain: Float[Tensor, "layer position"], example: Float[Tensor, " position"], seed: int
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """95% interval of the mean; whole examples are drawn, since positions of one tell the same.

    NaN of one example, which cannot differ from itself.
    """
    groups = example.unique(return_inverse=True)[1]
    count = RESAMPLES if int(groups.max()) else 0
    weights = bootstrap_weights(groups, count, torch.Generator().manual_seed(seed)).to(gain)
    return interval(gain @ weights.T / weights.sum(1), 0.95, int(groups.max()) + 1)
