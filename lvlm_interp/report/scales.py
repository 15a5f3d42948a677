"""How far the colours of a map reach: maps of one answer share a scale, or what does little would look as loud."""

from __future__ import annotations

from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.report.palette import FAINT


def own_limit(patches: PatchMap, index: int) -> float:
    """The largest absolute value of one word's map, in the unit of the map; at least what is faint in it."""
    return max(_faint(patches), float(patches.values[index].abs().max()))


def shared_limit(patches: PatchMap, index: int | None = None) -> float:
    """The largest of any word's, punctuation left out; of this one too, if there is one that is drawn."""
    words = [i for i, text in enumerate(patches.tokens) if any(c.isalnum() for c in text)]
    return max((own_limit(patches, i) for i in [*words, *([] if index is None else [index])]), default=_faint(patches))


def _faint(patches: PatchMap) -> float:
    """`FAINT` is of nats and logits; shares and probabilities of a patch are small, and any of them is something."""
    return FAINT if patches.unit in ("nats", "logits") else float(patches.values.abs().max()) or FAINT
