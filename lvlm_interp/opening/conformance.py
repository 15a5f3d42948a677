"""Whether a model is read truly: the checks of `opening.checks`, run on any model that a user brings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lvlm_interp.errors import InputError, LvlmInterpError, MisfitError, ModelError
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs, Role
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.identity import parts_of
from lvlm_interp.model.quantised import settle
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.model.weights import all_fetched
from lvlm_interp.opening.checks import CHECKS, Checked, difference, with_some_answer
from lvlm_interp.opening.rounding import apart
from lvlm_interp.results import Result
from lvlm_interp.shown import table_html

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Conformance(Result):
    """The checks of one model, one row each."""

    model_type: str
    checks: tuple[Checked, ...]

    @property
    def ok(self) -> bool:
        """Whether all checks hold."""
        return all(row.ok for row in self.checks)

    def __getitem__(self, name: str) -> Checked:
        found = next((row for row in self.checks if row.check == name), None)
        if found is None:
            raise KeyError(f"no check {name!r}; there are {[row.check for row in self.checks]}")
        return found

    def to_frame(self) -> pd.DataFrame:
        """One row a check."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(row) for row in self.checks])

    def _repr_html_(self) -> str:
        return table_html(self.to_frame(), formats={"measured": "{:.1e}", "limit": "{:.1e}"})

    def need(self) -> None:
        """Raise unless all checks hold.

        Raises:
            ModelError: names the first check that failed, what was measured and what to do.
        """
        failed = [row for row in self.checks if not row.ok]
        if failed:
            first = failed[0]
            raise ModelError(
                f"a model of type {self.model_type!r} cannot be read truly: the {first.check} check measured "
                f"{first.measured:.1e} (limit {first.limit:.1e}; {first.detail}). {first.advice} "
                f"Failed: {[row.check for row in failed]}; check(vlm, x) prints them all."
            )


@explained
@in_one_go
@torch.no_grad()
def check(vlm: HookedVLM, x: Inputs | None = None) -> Conformance:
    """Run all checks.

    Args:
        vlm: the model.
        x: an example with an image; made with the processor if there is one.

    Raises:
        InputError: no example was given and none can be made, or the model itself refuses it.
    """
    x = _example(vlm) if x is None else x
    x.need_image()
    x = x if x.answer_start < x.length else with_some_answer(vlm, x)
    rows = tuple(_carried_out(name, function, vlm, x) for name, function in CHECKS.items())
    return Conformance(vlm.model.config.model_type, rows, provenance=vlm.provenance("conformance", x))


def _example(vlm: HookedVLM) -> Inputs:
    if vlm.processor is None:
        raise InputError(
            "an example is needed, and without a processor none can be made: wrap(model, processor), or "
            "check(vlm, vlm.inputs(input_ids=…, answer_start=…, pixel_values=…))"
        )
    from PIL import Image

    colors = torch.randint(0, 256, (96, 128, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return vlm.prepare("What is in the image?", Image.fromarray(colors.numpy()), answer="A cat.")


def _carried_out(name: str, function: Callable[..., Checked], vlm: HookedVLM, x: Inputs) -> Checked:
    """A check that breaks off has failed, with what broke it as its detail."""
    try:
        return function(vlm, x)
    except (LvlmInterpError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        if isinstance(error, InputError) and not isinstance(error, MisfitError):
            raise  # the example's fault, and no check's: image tokens that do not match the image
        text = " ".join(str(error).split())[:300]
        advice = "The check could not be carried out: this kind of model needs a row in lvlm_interp/families."
        return Checked(name, False, float("nan"), 0.0, f"{type(error).__name__}: {text}", advice)


# --- at load --------------------------------------------------------------------------------------


@in_one_go
@torch.no_grad()
def check_at_load(vlm: HookedVLM) -> None:
    """What is cheap: weights are finite, the parts are found, a capture of a few words gives the plain logits.

    Raises:
        ModelError: what does not hold.
    """
    weights = all_fetched(vlm.model, [name for name, _ in vlm.model.named_parameters()])
    nowhere, bad = [], []
    for name, weight in weights:
        if weight.is_meta:
            nowhere.append(name)
        elif not all(map(_is_finite, parts_of(weight))):
            bad.append(name)
    if nowhere:
        raise ModelError(
            f"{len(nowhere)} weights of {vlm.name!r} are on no device, {nowhere[0]!r} among them: it was made without "
            "numbers, or transformers before 5.13 put all of it on disk. Load it; leave a part of it off the disk"
        )
    if bad:
        raise ModelError(
            f"{len(bad)} weights of {vlm.name!r} hold NaN or infinity, {bad[0]!r} among them: load it anew"
        )
    if not any(name.startswith("blocks.") for name in vlm.sites):
        raise ModelError(f"no site was found in the decoder of {vlm.name!r} ({type(vlm.decoder).__name__})")
    vlm.readout  # noqa: B018  a part of a model, without an unembedding, is refused at once
    settle(vlm.model, vlm.model.dtype)
    words = _words(vlm)
    try:
        plain = vlm.run(words)
    except Exception:  # some models answer no prompt without an image (InstructBLIP): they are checked with one
        return
    gap, rounding = difference(vlm, words, plain)
    if math.isnan(gap):
        raise ModelError(
            f"{vlm.name!r} gives NaN or infinity for a few words, and all its weights are numbers: numbers of its "
            f"config.json are not theirs, or {vlm.model.dtype} is too narrow for it; load(…, dtype=torch.float32)"
        )
    if not gap <= rounding.limit:
        again = apart(plain, vlm.run(words))
        raise ModelError(
            f"{vlm.name!r} does not give the same logits twice: they differ by {again:.1e} in two plain runs. "
            "Models that draw something at random cannot be read."
            if again
            else f"capturing changes what {vlm.name!r} computes: its logits differ by {gap:.1e} "
            f"(limit {rounding.limit:.1e}{rounding.note}). "
            "Its attention does not go by transformers' AttentionInterface in the way that is read here."
        )


def _is_finite(weight: torch.Tensor) -> bool:
    """A finite sum has finite terms, and is quick; the rest is looked at term by term."""
    if not weight.is_floating_point():
        return True
    weight = weight.float() if weight.dtype.itemsize == 1 else weight  # torch sums no floats of 8 bits
    return bool(weight.sum().isfinite() or weight.isfinite().all())


def _words(vlm: HookedVLM) -> Inputs:
    """A few words without an image."""
    ids = [i for i in range(3, 12) if i not in vlm.visual_token_ids][:4]
    tensor = torch.tensor([ids], device=vlm.device)
    roles: list[Role] = ["question"] * len(ids)
    return Inputs({"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}, tuple(roles), len(ids))
