"""The slow way to hide: one masked pass of the plain model over all rows. The engine is held against it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.families.shared.family import Family
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.hooks import masking, skipping
from lvlm_interp.model.vlm import HookedVLM


def masked_pass(vlm: HookedVLM, x: Inputs, visible: Bool[Tensor, " position"]) -> Float[Tensor, "answer vocabulary"]:
    """The slow way: the plain model computes every row, at its own positions, under its own masks less what is hidden.

    An image that no token carries is hidden by leaving out its inputs, or by shutting its gates. Layers that hand a
    state from position to position, or are told of padding only, pass over what is hidden.
    """
    return masked(vlm, x, visible)()


def masked(vlm: HookedVLM, x: Inputs, visible: Bool[Tensor, " position"]) -> Callable[[], Tensor]:
    """The slow way, ready to be run: the masks are those of the model's own kernel, under whichever one it runs."""
    sight, own = run_to_decoder(vlm, x, room=0).sight, torch.eye(x.length, dtype=torch.bool)
    lowest = torch.finfo(vlm.dtype).min
    masks = {}
    for kind in sight.kinds:
        see = kind.see & visible | own
        mask = torch.zeros(1, 1, *see.shape, dtype=vlm.dtype).masked_fill_(~see, lowest).to(vlm.device)
        masks.update(dict.fromkeys(kind.modules, mask))
    family = vlm.family if not (visible & x.where("image")).any() else Family()
    left = {k: v for k, v in x.model_inputs.items() if k not in family.image_inputs}
    given = {k: torch.zeros_like(v) if k in family.gates else v for k, v in left.items()}

    @torch.no_grad()
    def run() -> Tensor:
        with masking(masks), skipping((*vlm.recurrent, *sight.unmasked), visible):
            return vlm.call(given)[0, x.answer_positions - 1]

    return run
