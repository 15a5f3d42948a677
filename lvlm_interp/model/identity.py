"""What tells one model from another."""

from __future__ import annotations

import hashlib

from transformers import PreTrainedModel

from lvlm_interp.model.weights import all_fetched

SAMPLED = 1024  # elements of each weight tensor that are looked at


def fingerprint(model: PreTrainedModel) -> str:
    """A hash over names, shapes and evenly spaced elements of all weights; cheap at any size."""
    digest = hashlib.sha256()
    for name, weight in all_fetched(model, sorted(model.state_dict())):
        flat = weight.detach().flatten()
        some = flat[:: max(1, flat.numel() // SAMPLED)].float().cpu()
        digest.update(f"{name}{tuple(weight.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]
