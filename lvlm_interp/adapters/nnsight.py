"""The same weights under nnsight, for interventions that this package does not foresee."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from transformers import PreTrainedModel

from lvlm_interp.given import explained
from lvlm_interp.model.vlm import HookedVLM


@explained
def traced(vlm: HookedVLM) -> Any:
    """The model under nnsight, as `vlm.nnsight` gives it.

        with vlm.nnsight.trace(**x.model_inputs):
            vlm.nnsight.model.language_model.layers[3].mlp.output[:] = 0
            logits = vlm.nnsight.output.logits.save()

    nnsight replaces the `forward` of every module that it wraps, and leaves it so. It therefore gets modules of its
    own, which hold the same parameters and buffers: no weight is copied, a weight that changes changes in both, and
    `vlm.model` stays as it is. Move a model to its device, and choose its attention, before using this.
    """
    from nnsight import NNsight  # slow to import

    return NNsight(_twin(vlm.model))


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """Other modules around the same tensors."""
    return copy.deepcopy(model, {id(t): t for t in itertools.chain(model.parameters(), model.buffers())})
