"""How far the colours of a map reach: maps of one answer share a scale, or what does little would look as loud."""

from __future__ import annotations

from lvlm_interp.attribution.occlusion import PatchMap
from lvlm_interp.report.palette import FAINT


def own_limit(patches: PatchMap, index: int) -> float:
    """The largest absolute value of one word's map, in the unit of the map; at least `FAINT`."""
    return max(FAINT, float(patches.values[index].abs().max()))


def shared_limit(patches: PatchMap, index: int | None = None) -> float:
    """The largest of any word's, punctuation left out; of this one too, if there is one that is drawn."""
    words = [i for i, text in enumerate(patches.tokens) if any(c.isalnum() for c in text)]
    return max((own_limit(patches, i) for i in [*words, *([] if index is None else [index])]), default=FAINT)
