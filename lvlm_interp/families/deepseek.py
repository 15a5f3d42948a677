"""DeepSeek's VL and OCR models, and what shares their processors or towers: Janus, Unlimited-OCR."""

from __future__ import annotations

from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Block, Layout, Processed, spans
from lvlm_interp.families.shared.names import Names

FORGETS = "while it writes, a word sees the prompt and a window of the words before it; scored at once, it sees all"


def _boxed(image: Processed) -> Layout:
    """One picture, resized to fit into a square and laid in its middle (Janus)."""
    delta, least = max(image.tile) / max(image.size), image.settings("min_size") or 0
    now = [max(round(length * delta), least) for length in image.size]
    columns, rows = (
        spans(side // image.step, image.step, length / new, -((side - new) // 2) * length / new)
        for side, new, length in zip(image.tile, now, image.size, strict=True)
    )
    return Layout((Block(rows, columns),))


FAMILIES = {
    "deepseek_vl": Family(layout=_boxed),
    "deepseek_vl_hybrid": Family(),
    "janus": Family(layout=_boxed),
    "deepseek_ocr2": Family(vision="vision_tower.vision_encoder", whole=True),  # resampled
    "unlimited_ocr": Family(vision="vision_tower.vision_encoder", note=FORGETS),
}
NAMES = Names(projector=("aligner",), output_projection=("projection_layer",))
