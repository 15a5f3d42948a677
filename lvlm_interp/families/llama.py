"""Llama 3.2 Vision (Mllama) and Llama 4."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import mosaic, whole, with_thumbnail
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Block, Layout, Processed, tiles
from lvlm_interp.families.shared.names import Names


def _canvas(image: Processed) -> Layout:
    """Tiles of a canvas on which the picture lies top left (Mllama), each with a class token; unused tiles are padding.

    These are the cross-attention states, not positions of the text.
    """
    from transformers.models.mllama.image_processing_pil_mllama import get_image_size_fit_to_canvas

    vision, (width, height), tile = image.config.vision_config, image.size, image.tile[0]
    number = int(image.inputs["aspect_ratio_ids"][0, image.index]) - 1
    down, across = vision.supported_aspect_ratios[number]
    now = get_image_size_fit_to_canvas(height, width, down * tile, across * tile, tile)
    rows, columns = (
        tiles(n, tile, image.step, float(length / new))
        for n, length, new in zip((down, across), (height, width), now, strict=True)
    )
    blocks = [Block(row, column, before=1) for row in rows for column in columns]
    empty = Block(before=1 + (tile // image.step) ** 2)
    detail = tuple(tuple(range(r * across, (r + 1) * across)) for r in range(down))
    return Layout((*blocks, *[empty] * (vision.max_num_tiles - len(blocks))), detail)


def _undistorted(image: Processed) -> Layout:
    """Tiles of a canvas on which the picture lies top left, and a thumbnail behind them (Llama 4)."""
    if image.settings("max_patches") is None:
        return mosaic(image, 1, 1)
    from transformers.image_utils import SizeDict
    from transformers.models.llama4 import image_processing_llama4 as llama4

    tile, most = image.tile[::-1], bool(image.settings("resize_to_max_canvas"))
    known = llama4.find_supported_resolutions(image.settings("max_patches"), SizeDict(height=tile[0], width=tile[1]))
    size = image.size[::-1]
    canvas = [int(n) for n in llama4.get_best_fit(size, torch.as_tensor(known), most)]
    room = canvas if most else [min(max(n, tile[0]), side) for n, side in zip(size, canvas, strict=True)]
    now = llama4.get_max_res_without_distortion(size, room)
    rows, columns = (
        tiles(side // one, one, image.step, length / max(int(new), 1))
        for side, one, length, new in zip(canvas, tile, size, now, strict=True)
    )
    return with_thumbnail(rows, columns, whole(image))


def _shuffled(config: PretrainedConfig) -> int:
    return round(1 / config.vision_config.pixel_shuffle_ratio)


def _tempered(attention: nn.Module, rows: Int[Tensor, "*batch row"]) -> Float[Tensor, "*batch row"] | None:
    """Layers without a rotary embedding multiply the query of a row by its number (arXiv 2501.19399)."""
    if not getattr(attention, "attn_temperature_tuning", False) or attention.use_rope:
        return None
    every, size = attention.floor_scale, attention.attn_scale
    assert isinstance(every, (int, float)) and isinstance(size, (int, float))
    return torch.log1p(torch.floor((rows.float() + 1.0) / every)) * size + 1.0


FAMILIES = {
    # A masked image leaks: transformers lets a row whose whole image is masked attend to all of it.
    "mllama": Family(
        vision="vision_model.transformer",
        carriers=("cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask"),
        image_inputs=("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask"),
        fills={"cross_attention_mask": None},
        tiled=True,
        layout=_canvas,
        whole=True,  # read by cross-attention
    ),
    "llama4": Family(tiled=True, layout=_undistorted, merge=_shuffled, tempered=_tempered),
}
NAMES = Names(row_axis={"cross_attention_mask": 2, "full_text_row_masked_out_mask": 2})
