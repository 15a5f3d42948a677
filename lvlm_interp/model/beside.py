"""Whether examples may stand side by side in one batch: whether each row then computes what its example does alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.lengths import counts_rows
from lvlm_interp.model.attention import implementations
from lvlm_interp.model.quantised import ADVICE, mixing

BLIND = (
    "in float64, transformers' eager attention makes rows that see nothing NaN: its softmax is in float32, where the "
    "mask is infinite. model.set_attn_implementation('sdpa'), if the model has it, or float32"
)


def blind(model: PreTrainedModel) -> bool:
    """Whether rows that see nothing, those of padding, are NaN."""
    wide = any(weight.dtype == torch.float64 for weight in model.parameters())
    return wide and any(kernel.endswith("eager") for _, kernel in implementations(model).values())


def why_apart(model: PreTrainedModel, family: Family, dtype: torch.dtype, lengths: Sequence[int]) -> str:
    """Why examples of these lengths cannot stand in one batch; empty if they can."""
    if family.alone:
        return family.alone
    if mixed := mixing(model, dtype):
        return f"{mixed} computes a row by what stands beside it. {ADVICE}"
    most, least = max(lengths, default=0), min(lengths, default=0)
    if least == most:
        return ""
    if (limit := counts_rows(model.config.get_text_config())) < most:
        return (
            f"beyond {limit} positions it computes by the length of the longest row ({most}), and the shortest has "
            f"{least}; examples of one length can"
        )
    return BLIND if blind(model) else ""
