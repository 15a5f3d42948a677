"""NaN and infinity are no findings: whatever reads numbers of a model refuses them, and says where they began."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from lvlm_interp.errors import ModelError, SiteError
from lvlm_interp.inputs.batch import Batch
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.beside import BLIND, blind
from lvlm_interp.model.hooks import visiting
from lvlm_interp.model.taps import Visit
from lvlm_interp.model.vlm import HookedVLM

HALF = "float16 holds no number above 65504: open the model with dtype='bfloat16' or dtype='float32'"
WHOLE = "are its weights, or an edit of them, what they should be?"


def need_finite(vlm: HookedVLM, x: Inputs | Batch, *values: Tensor) -> None:
    """Raise where numbers of a model are NaN or infinite.

    Raises:
        ModelError: names the first place where they are, and what to do.
    """
    if all(bool(value.isfinite().all()) for value in values):
        return
    bad = next(value for value in values if not value.isfinite().all())
    kind = "NaN" if bad.isnan().any() else "infinity"
    if given := next((n for n, v in x.model_inputs.items() if _is_bad(v)), None):
        raise ModelError(f"{vlm.name!r} gives {kind} for this example, whose {given} hold NaN or infinity already")
    raise ModelError(f"{vlm.name!r} gives {kind} for this example, {_where(vlm, x)}; {_advice(vlm)}")


def _advice(vlm: HookedVLM) -> str:
    if blind(vlm.model):
        return BLIND
    return HALF if torch.float16 in {weight.dtype for weight in vlm.model.parameters()} else WHOLE


def _is_bad(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all())


def _where(vlm: HookedVLM, x: Inputs | Batch) -> str:
    first = first_bad(vlm, x)
    return f"first at {first!r}" if first else "though at no site where nothing is hidden"


@torch.no_grad()
def first_bad(vlm: HookedVLM, x: Inputs | Batch) -> str | None:
    """The first site of a plain pass that holds NaN or infinity; inside of attention nothing is looked at."""
    found: list[str] = []

    def watching(name: str) -> Visit:
        def watch(value: Tensor) -> Tensor:
            if not value.isfinite().all():
                found.append(name)
            return value

        return watch

    sites = [site for site in vlm.sites.values() if site.read != "attention"]
    with contextlib.suppress(SiteError), visiting(vlm.model, {site: watching(site.name) for site in sites}):
        vlm.call(x.model_inputs)
    return found[0] if found else None
