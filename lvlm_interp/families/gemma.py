"""Google's Gemma and PaliGemma."""

from __future__ import annotations

import math

import numpy as np
from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import even, fixed, stretched, whole
from lvlm_interp.families.shared.family import STAGES, Family
from lvlm_interp.families.shared.grids import Layout, Processed, Span
from lvlm_interp.families.shared.names import Names


def _crops(image: Processed) -> Layout:
    """The picture, then crops of it, each resized to the same square (Gemma 3's pan and scan)."""
    columns, rows = _crop_spans(image)
    crops = [stretched(row, column, image) for row in rows for column in columns]
    detail = [[1 + r * len(columns) + c for c in range(len(columns))] for r in range(len(rows))]
    return Layout((whole(image), *crops), tuple(map(tuple, detail)) or ((0,),))


def _crop_spans(image: Processed) -> tuple[list[Span], list[Span]]:
    """Columns and rows of pan-and-scan crops: the crops that transformers makes of pictures of coordinates."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    if not image.settings("do_pan_and_scan"):
        return [], []
    names = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")
    told = {f"pan_and_scan_{name}": image.settings(f"pan_and_scan_{name}") for name in names}
    spans: list[list[Span]] = []
    width, height = image.size
    for places in (np.arange(width)[None, None, :], np.arange(height)[None, :, None]):
        places = np.broadcast_to(places, (1, height, width))
        crops = Gemma3ImageProcessorPil.pan_and_scan(None, places, **told)
        spans.append(sorted({(float(crop[0, 0, 0]), float(crop[0, -1, -1] + 1)) for crop in crops}))
    return spans[0], spans[1]


def _numbered(image: Processed) -> Layout:
    """The whole picture at a size of its own, told by the column and row of its last patch (Gemma 4)."""
    columns, rows = (int(n + 1) // image.merge for n in image.inputs["image_position_ids"][image.index].amax(0))
    return Layout((even(rows, columns, image.size),))


def _pooled(config: PretrainedConfig) -> int:
    vision = config.vision_config
    return vision.image_size // vision.patch_size // math.isqrt(config.mm_tokens_per_image)


def _kernel(config: PretrainedConfig) -> int:
    return int(config.vision_config.pooling_kernel_size)


FAMILIES = {
    # The prompt sees itself in both directions, the answer does not: type 1.
    "paligemma": Family(prompt="{image}{question}", fills={"token_type_ids": 1}, layout=fixed),
    "gemma3": Family(layout=_crops, merge=_pooled),
    "shieldgemma2": Family(layout=_crops, merge=_pooled),
    "gemma3n": Family(note=STAGES),
    "gemma4": Family(layout=_numbered, merge=_kernel),
    "gemma4_unified": Family(projector="embed_vision.multimodal_embedder", layout=_numbered),
}
NAMES = Names(
    others={"post_per_layer_input_norm": "ple"},
    rescaled=("layer_scalar",),
    streams={"altup": 0},
    value_norms=("v_norm",),
    projector=("embed_vision",),
    of_tokens={"per_layer_inputs": "get_per_layer_inputs"},
)
