"""How families cut their pictures: each a function that says which blocks an image becomes, in the order of its tokens.

Sizes that transformers' processors decide on are asked of transformers' own functions, or read off the model inputs,
where there are such; the rest is tested against the processors and models themselves, by painting single boxes.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PretrainedConfig

from lvlm_interp.compat import known_to
from lvlm_interp.model.blocks import Block, Film, Layout, Size, Source, Span, interpolated, spans, tiles
from lvlm_interp.model.inputs import VIDEO_PIXELS

# --- what image processors do -----------------------------------------------------------------------------------------


def _fixed(source: Source) -> Layout:
    """One picture (CLIP, SigLIP, …): padded to a square or not, resized, and its centre cut out or not."""
    processed, before = source.processed, _class_tokens(source.config)
    side = (max(source.size),) * 2 if source.settings("do_pad") else source.size
    scaled = _scaled(side, source)
    columns, rows = (
        spans(
            processed[axis] // source.step,
            source.step,
            side[axis] / scaled[axis],
            # a picture is laid on a square, and a window is cut out, at whole pixels
            (scaled[axis] - processed[axis]) // 2 * side[axis] / scaled[axis] - (side[axis] - source.size[axis]) // 2,
        )
        for axis in (0, 1)
    )
    return Layout((Block(rows, columns, before),))


def _boxed(source: Source) -> Layout:
    """One picture, resized to fit into a square and laid in its middle (Janus)."""
    delta, least = max(source.processed) / max(source.size), source.settings("min_size") or 0
    now = [max(round(length * delta), least) for length in source.size]
    columns, rows = (
        spans(side // source.step, source.step, length / new, -((side - new) // 2) * length / new)
        for side, new, length in zip(source.processed, now, source.size, strict=True)
    )
    return Layout((Block(rows, columns),))


def _stretched(rows: Span, columns: Span, source: Source) -> Block:
    """A part of the picture, stretched over one tile."""
    across, down = (
        spans(tile // source.step, source.step, (stop - start) / tile, start)
        for tile, (start, stop) in zip(source.processed, (columns, rows), strict=True)
    )
    return Block(down, across)


def _whole(source: Source) -> Block:
    """The whole picture, stretched over one tile."""
    return _stretched((0, source.size[1]), (0, source.size[0]), source)


def _scaled(size: Size, source: Source) -> Size:
    """Width and height after the resize and before the crop."""
    from transformers.image_transforms import get_size_with_aspect_ratio

    wanted = source.settings("size") or {}
    if source.settings("do_resize") is False:
        return size
    if shortest := wanted.get("shortest_edge"):
        height, width = get_size_with_aspect_ratio((size[1], size[0]), shortest, wanted.get("longest_edge"))
        return width, height
    return wanted.get("width") or source.processed[0], wanted.get("height") or source.processed[1]


def _class_tokens(config: PretrainedConfig) -> int:
    """1 if the class token of the vision tower is among the image tokens."""
    full = getattr(config, "vision_feature_select_strategy", None) == "full"
    return int(full and config.vision_config.model_type == "clip_vision_model")


def _crops(source: Source) -> Layout:
    """The picture, then crops of it, each resized to the same square (Gemma 3's pan and scan)."""
    columns, rows = _crop_spans(source)
    crops = [_stretched(row, column, source) for row in rows for column in columns]
    detail = [[1 + r * len(columns) + c for c in range(len(columns))] for r in range(len(rows))]
    return Layout((_whole(source), *crops), tuple(map(tuple, detail)) or ((0,),))


def _crop_spans(source: Source) -> tuple[list[Span], list[Span]]:
    """Columns and rows of pan-and-scan crops: the crops that transformers makes of pictures of coordinates."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    if not source.settings("do_pan_and_scan"):
        return [], []
    names = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")
    told = {f"pan_and_scan_{name}": source.settings(f"pan_and_scan_{name}") for name in names}
    spans: list[list[Span]] = []
    width, height = source.size
    for places in (np.arange(width)[None, None, :], np.arange(height)[None, :, None]):
        places = np.broadcast_to(places, (1, height, width))
        crops = Gemma3ImageProcessorPil.pan_and_scan(None, places, **told)
        spans.append(sorted({(float(crop[0, 0, 0]), float(crop[0, -1, -1] + 1)) for crop in crops}))
    return spans[0], spans[1]


def _anyres(source: Source) -> Layout:
    """A thumbnail, then tiles of the picture laid together, without the padding, a newline after each row (LLaVA-NeXT).

    Of several images that were nested by sample, LLaVA-OneVision pads each to a square instead.
    """
    several = source.inputs.get("batch_num_images")
    if several is not None and [int(n) for n in several for _ in range(int(n))][source.index] > 1:
        return _padded(source)
    columns, rows = _anyres_spans(source)
    return Layout((_whole(source), Block(rows, columns, row_end=1)), ((1,),))


def _padded(source: Source) -> Layout:
    """One picture in the middle of a square, and a newline."""
    tile, side = source.processed[0], max(source.size)
    columns, rows = (
        spans(tile // source.step, source.step, side / tile, -((side - length) // 2)) for length in source.size
    )
    return Layout((Block(rows, columns, after=1),))


def _anyres_spans(source: Source) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Columns and rows of the tiles laid together."""
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    tile, (width, height) = source.processed[0], source.size
    canvas = select_best_resolution((height, width), source.config.image_grid_pinpoints)
    laid = get_patch_output_size(np.broadcast_to(0, (1, height, width)), canvas, "channels_first")
    rows, columns = (
        tuple(
            itertools.chain(
                *tiles(whole // tile, tile, source.step, length / now, -((whole - now) // 2) * length / now)
            )
        )
        for whole, now, length in zip(canvas, laid, (height, width), strict=True)
    )
    # transformers takes the padding off the grid of features, in whole tokens
    numbered = torch.arange(len(rows) * len(columns)).view(1, len(rows), len(columns))
    kept = unpad_image(numbered, (height, width))[0]
    rows = tuple(rows[int(i) // len(columns)] for i in kept[:, 0])
    columns = tuple(columns[int(i) % len(columns)] for i in kept[0])
    return _shrunk(rows, columns, source)[::-1]


def _shrunk(
    rows: tuple[Span, ...], columns: tuple[Span, ...], source: Source
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Rows and columns after LLaVA-OneVision has interpolated a large grid of features to one of at most n tiles."""
    limit = str(getattr(source.config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    if not limit.isdigit():
        return rows, columns
    side = source.processed[0] // source.step
    ratio = math.sqrt(len(rows) * len(columns) / (int(limit) * side**2))
    if ratio <= 1.1:
        return rows, columns
    return interpolated(rows, int(len(rows) // ratio)), interpolated(columns, int(len(columns) // ratio))


def _split(source: Source) -> Layout:
    """Tiles row by row, then a thumbnail (Idefics 3). The resize fits the tiles, so that there is no padding."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

    if not source.settings("do_image_splitting"):
        return _mosaic(source, 1, 1)
    (width, height), tile = source.size, source.settings("max_image_size")["longest_edge"]
    if source.settings("do_resize"):
        longest = source.settings("size")["longest_edge"]
        height, width = get_resize_output_image_size(np.broadcast_to(0, (1, height, width)), longest)
    # the long side is rounded up to whole tiles, the short side follows it and is then rounded up too
    aspect = width / height
    if width >= height:
        across = math.ceil(width / tile)
        return _mosaic(source, math.ceil(int(across * tile / aspect) / tile), across)
    down = math.ceil(height / tile)
    return _mosaic(source, down, math.ceil(int(down * tile * aspect) / tile))


def _fitted(source: Source) -> Layout:
    """Tiles in as many rows and columns as come closest to the picture's shape, then a thumbnail (InternVL)."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    most = source.settings("max_patches")
    if not source.settings("crop_to_patches") or most <= 1:
        return _mosaic(source, 1, 1)
    (width, height), tile = source.size, source.processed
    across, down = get_optimal_tiled_canvas((height, width), tile[::-1], source.settings("min_patches"), most)
    return _mosaic(source, down, across)


def _least_stretched(source: Source) -> Layout:
    """As InternVL, with the tiles that need the least stretching (Cohere 2 Vision)."""
    if not source.settings("crop_to_patches"):
        return _mosaic(source, 1, 1)
    from transformers.models.cohere2_vision.image_processing_cohere2_vision import get_optimal_tiled_canvas

    bounds = source.settings("min_patches"), source.settings("max_patches")
    across, down = get_optimal_tiled_canvas(source.size[::-1], source.processed[::-1], *bounds)
    return _mosaic(source, down, across)


def _undistorted(source: Source) -> Layout:
    """Tiles of a canvas on which the picture lies top left, and a thumbnail behind them (Llama 4)."""
    if source.settings("max_patches") is None:
        return _mosaic(source, 1, 1)
    from transformers.image_utils import SizeDict
    from transformers.models.llama4 import image_processing_llama4 as llama4

    tile, most = source.processed[::-1], bool(source.settings("resize_to_max_canvas"))
    known = llama4.find_supported_resolutions(source.settings("max_patches"), SizeDict(height=tile[0], width=tile[1]))
    size = source.size[::-1]
    canvas = [int(n) for n in llama4.get_best_fit(size, torch.as_tensor(known), most)]
    room = canvas if most else [min(max(n, tile[0]), side) for n, side in zip(size, canvas, strict=True)]
    now = llama4.get_max_res_without_distortion(size, room)
    rows, columns = (
        tiles(side // one, one, source.step, length / max(int(new), 1))
        for side, one, length, new in zip(canvas, tile, size, now, strict=True)
    )
    return _with_thumbnail(rows, columns, _whole(source))


def _covering(source: Source) -> Layout:
    """A thumbnail, then as few tiles as show nine tenths of the picture's area, or in its shape (Ovis 2)."""
    from transformers.models.ovis2 import image_processing_pil_ovis2 as ovis2

    most = source.settings("max_patches")
    if not source.settings("crop_to_patches") or most <= 1:
        return _mosaic(source, 1, 1)
    size, tile = source.size[::-1], source.processed[::-1]
    if source.settings("use_covering_area_grid"):
        across, down = ovis2.get_min_tile_covering_grid(size, tile[0], most)
    else:
        across, down = ovis2.get_optimal_tiled_canvas(size, tile, source.settings("min_patches"), most)
    return _mosaic(source, down, across, thumbnail_first=True)


def _overlapping(source: Source) -> Layout:
    """A thumbnail, then crops that overlap, of which the patches in the middle are laid together (Molmo 2)."""
    most = source.settings("max_crops")
    if most is None:
        return Layout((Block(),))  # the model inputs tell tokens, not patches, and the last may be half padding
    from transformers.models.molmo2.image_processing_molmo2 import compute_crop_geometry

    side, patch, pool = source.settings("size")["height"], source.patch, source.settings("pooling_size")
    told = most, source.settings("overlap_margins"), side, patch
    canvas = compute_crop_geometry(source.size[1], source.size[0], *told)[2:]
    blocks = []
    for sides in ((side, side), canvas):
        of_axes = zip(sides, pool, source.size[::-1], strict=True)
        rows, columns = (_pooled_spans(pixels // patch, one, length) for pixels, one, length in of_axes)
        blocks.append(Block(rows, columns))
    return Layout(tuple(blocks), ((1,),))


def _pooled_spans(patches: int, pool: int, length: float) -> tuple[Span, ...]:
    """Spans of several patches each, with padding on both sides where they do not come out even."""
    count, scale = math.ceil(patches / pool), length / patches
    return spans(count, pool, scale, -((count * pool - patches) // 2) * scale)


def _large_split(source: Source) -> Layout:
    """The picture at a size of its own, behind tiles of it if it is large (LFM2-VL)."""
    if source.settings("tile_size") is None:
        rows, columns = (int(n) // source.merge for n in source.inputs["spatial_shapes"][source.index])
        return Layout((_even(rows, columns, source.size),))
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

    cutter, (width, height), settings = Lfm2VlImageProcessor(), source.size, source.settings
    budget = {n: settings(n) for n in ("downsample_factor", "max_image_tokens", "encoder_patch_size")}
    across, down = cutter.smart_resize(height, width, min_image_tokens=settings("min_image_tokens"), **budget)
    whole = _even(down // source.step, across // source.step, source.size)
    large = cutter._is_image_too_large(height, width, max_pixels_tolerance=settings("max_pixels_tolerance"), **budget)
    bounds, side = (settings("min_tiles"), settings("max_tiles")), settings("tile_size")
    if not large or not settings("do_image_splitting") or bounds == (1, 1):
        return Layout((whole,))
    across, down = cutter._get_grid_layout(height, width, *bounds, side)[:2]
    tall = tiles(down, side, source.step, height / (down * side))
    wide = tiles(across, side, source.step, width / (across * side))
    laid = _with_thumbnail(tall, wide, whole)
    return laid if settings("use_thumbnail") else Layout(laid.blocks[: down * across], laid.detail)


def _paged(source: Source) -> Layout:
    """As InternVL, with bounds of its own, and four times the tokens on the fine of two ways (Granite Docling)."""
    from transformers.models.granite_docling.image_processing_pil_granite_docling import get_page_tile_grid

    if "tile_fine_mask" in source.inputs:
        source = dataclasses.replace(source, merge=source.merge // 2)
    if source.settings("max_patches") is None:
        return _mosaic(source, 1, 1)
    names = [n for n in inspect.signature(get_page_tile_grid).parameters if n not in ("height", "width")]
    told = {name: source.settings(name) for name in names}
    return _mosaic(source, *get_page_tile_grid(source.size[1], source.size[0], **told))


def _mosaic(source: Source, down: int, across: int, thumbnail_first: bool = False) -> Layout:
    """The picture stretched over tiles, row by row, and a thumbnail behind them; one tile is the picture itself."""
    tile, step, (width, height) = source.processed, source.step, source.size
    rows = tiles(down, tile[1], step, height / (down * tile[1]))
    columns = tiles(across, tile[0], step, width / (across * tile[0]))
    return _with_thumbnail(rows, columns, _whole(source), thumbnail_first)


def _with_thumbnail(
    rows: Sequence[tuple[Span, ...]], columns: Sequence[tuple[Span, ...]], thumbnail: Block, first: bool = False
) -> Layout:
    """Tiles, row by row, and a thumbnail before or behind them if there are several."""
    blocks = [Block(row, column) for row in rows for column in columns]
    numbers = np.arange(len(blocks)).reshape(len(rows), len(columns))
    if len(blocks) > 1:
        blocks.insert(0 if first else len(blocks), thumbnail)
        numbers += first
    return Layout(tuple(blocks), tuple(map(tuple, numbers.tolist())))


def _sliced(source: Source) -> Layout:
    """The whole picture, and if it is large, slices of it, both at sizes of their own (MiniCPM-V 4.6)."""
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    if source.settings("scale_resolution") is None:
        rows, columns = (int(n) // source.merge for n in source.inputs["target_sizes"][source.index])
        return Layout((_even(rows, columns, source.size),))
    cutter, size = MiniCPMV4_6ImageProcessorPil(), source.size[::-1]
    told = {name: source.settings(name) for name in ("scale_resolution", "patch_size", "downsample_mode")}
    most = source.settings("max_slice_nums") if source.settings("slice_mode") else 1
    grid = cutter.get_sliced_grid(size, most, told["scale_resolution"])
    told = known_to(cutter.find_best_resize, told)
    rows, columns = (n // source.step for n in cutter.find_best_resize(size, **told, allow_upscale=grid is None))
    whole = _even(rows, columns, source.size)
    if grid is None:
        return Layout((whole,))
    counts = (n // source.step for n in cutter.get_refine_size(size, grid, **told, allow_upscale=True))
    tall, wide = (
        [spans(count // n, 1, length / count, k * length / n) for k in range(n)]
        for count, n, length in zip(counts, grid, size, strict=True)
    )
    return _with_thumbnail(tall, wide, whole, first=True)


def _resized(source: Source) -> Layout:
    """The whole picture at a size of its own (Qwen-VL)."""
    return Layout((_even(*_grid(source), source.size),))


def _grid(source: Source) -> tuple[int, int]:
    """Rows and columns of tokens, as the model inputs tell them; VideoLLaMA 3's tell how patches are merged, too."""
    told = source.inputs.get("image_merge_sizes")
    merge = source.merge if told is None else int(told[source.index])
    grids = next(source.inputs[name] for name in ("image_grid_thw", "image_grid_hw") if name in source.inputs)
    rows, columns = (int(n) // merge for n in grids[source.index, -2:])
    return rows, columns


def _lined(source: Source) -> Layout:
    """The same with a token at the end of each row, one before and one behind (HunYuan-VL)."""
    return Layout((dataclasses.replace(_even(*_grid(source), source.size), before=1, row_end=1, after=1),))


def _numbered(source: Source) -> Layout:
    """The whole picture at a size of its own, told by the column and row of its last patch (Gemma 4)."""
    columns, rows = (int(n + 1) // source.merge for n in source.inputs["image_position_ids"][source.index].amax(0))
    return Layout((_even(rows, columns, source.size),))


def _cornered(source: Source) -> Layout:
    """The whole picture at a size of its own, padded to whole tokens to the right and below (GLM-5 Next)."""
    from transformers.models.glm5_next.image_processing_pil_glm5_next import Glm5NextImageProcessorPil

    if not source.settings("do_resize"):
        return _resized(source)
    names = ("min_image_tokens", "max_image_tokens")
    ones = np.ones((1, source.size[1], source.size[0]), np.uint8)
    padded = Glm5NextImageProcessorPil().resize(
        ones,
        resample=0,
        factor=source.step,
        temporal_factor=source.settings("temporal_patch_size"),
        **{name: source.settings(name) for name in names},
    )[0]
    return Layout((_laid(source, (int(padded.any(0).sum()), int(padded.any(1).sum())), padded.shape[::-1]),))


def _packed(source: Source) -> Layout:
    """The same, never made larger (Kimi K2.5)."""
    most = source.settings("size")
    if most is None or not source.settings("do_resize"):
        return _resized(source)
    from transformers.models.kimi_k25.image_processing_kimi_k25 import navit_resize

    told = source.patch, source.merge, source.settings("max_patches"), most["max_height"]
    now, canvas = navit_resize(source.size[1], source.size[0], *told)
    return Layout((_laid(source, now[::-1], canvas[::-1]),))


def _fitting(source: Source) -> Layout:
    """The picture as it is, or made smaller to fit, padded to whole tokens to the right and below (Fuyu)."""
    most = source.settings("size")
    if most is None:
        return Layout((Block(),))  # patches alone do not tell how many stand in a row
    scale = min(1.0, most["width"] / source.size[0], most["height"] / source.size[1])
    now = (int(source.size[0] * scale), int(source.size[1] * scale))
    return Layout((_laid(source, now, now),))


def _laid(source: Source, now: Size, canvas: Size) -> Block:
    """The whole picture at some size, top left on a canvas that is filled up to whole tokens."""
    columns, rows = (
        spans(math.ceil(side / source.step), source.step, length / new)
        for side, new, length in zip(canvas, now, source.size, strict=True)
    )
    return Block(rows, columns)


def _even(rows: int, columns: int, size: Size) -> Block:
    """The whole picture in rows and columns of one size."""
    return Block(spans(rows, 1, size[1] / rows), spans(columns, 1, size[0] / columns))


def _rows(source: Source) -> Layout:
    """The whole picture at a size of its own, told in `image_sizes` (Pixtral); its row breaks are no image tokens."""
    lengths = [int(n) for n in source.inputs["image_sizes"][source.index]]
    rows, columns = (
        spans(now // source.step, source.step, length / now)
        for now, length in zip(lengths, source.size[::-1], strict=True)
    )
    return Layout((Block(rows, columns),))


def _canvas(source: Source) -> Layout:
    """Tiles of a canvas on which the picture lies top left (Mllama), each with a class token; unused tiles are padding.

    These are the cross-attention states, not positions of the text.
    """
    from transformers.models.mllama.image_processing_pil_mllama import get_image_size_fit_to_canvas

    vision, (width, height), tile = source.config.vision_config, source.size, source.processed[0]
    number = int(source.inputs["aspect_ratio_ids"][0, source.index]) - 1
    down, across = vision.supported_aspect_ratios[number]
    now = get_image_size_fit_to_canvas(height, width, down * tile, across * tile, tile)
    rows, columns = (
        tiles(n, tile, source.step, float(length / new))
        for n, length, new in zip((down, across), (height, width), now, strict=True)
    )
    blocks = [Block(row, column, before=1) for row in rows for column in columns]
    empty = Block(before=1 + (tile // source.step) ** 2)
    detail = tuple(tuple(range(r * across, (r + 1) * across)) for r in range(down))
    return Layout((*blocks, *[empty] * (vision.max_num_tiles - len(blocks))), detail)


# --- what video processors do -----------------------------------------------------------------------------------------


def _paired(source: Source) -> Film | None:
    """Frames at a size of their own, several of which make one token (Qwen-VL); the last is repeated to fill up."""
    times, *sides = (int(n) for n in source.inputs["video_grid_thw"][source.index])
    block = _even(sides[0] // source.merge, sides[1] // source.merge, source.size)
    return Film(Layout((block,)), times, source.config.vision_config.temporal_patch_size)


def _squares(source: Source) -> Film | None:
    """Every frame stretched over one tile (InternVL, SmolVLM): an image to the model, which knows of no videos."""
    return None if source.frames is None else Film(Layout((_whole(source),)), source.frames)


def _halved(source: Source) -> Film | None:
    """Every frame stretched over one tile and its grid halved by interpolation, a newline at the end (OneVision)."""
    pixels, vision = source.inputs[VIDEO_PIXELS], source.config.vision_config
    side = vision.image_size // vision.patch_size
    columns, rows = (
        interpolated(spans(side, source.step, length / now), math.ceil(side / 2))
        for length, now in zip(source.size, (pixels.shape[-1], pixels.shape[-2]), strict=True)
    )
    return Film(Layout((Block(rows, columns),)), pixels.shape[1], after=1)


# --- families ---------------------------------------------------------------------------------------------------------


def _pooled(config: PretrainedConfig) -> int:
    vision = config.vision_config
    return vision.image_size // vision.patch_size // math.isqrt(config.mm_tokens_per_image)


def _one(config: PretrainedConfig) -> int:
    return 1


def _merged(config: PretrainedConfig) -> int:
    return config.vision_config.spatial_merge_size


def _twice_merged(config: PretrainedConfig) -> int:
    windows = 1 if config.downsample_mode == "4x" else 2  # merged once inside the vision tower
    return windows * config.merge_kernel_size[0] ** config.merger_times


QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
AS_QWEN = (
    *("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "qwen4_exp", "cosmos3_omni", "cosmos3_edge", "exaone4_5"),
    *("glm4v", "glm4v_moe", "glm46v", "glm_ocr", "glmga", "ernie4_5_vl_moe", "paddleocr_vl", "hyperclovax_vision_v2"),
    *("cohere_compass", "dots3_note", "lfm3_vl"),
)
FAMILIES: dict[str, tuple[Callable[[Source], Layout], Callable[[PretrainedConfig], int]]] = {
    "llava": (_fixed, _one),
    "llava/pixtral": (_rows, _one),
    "vipllava": (_fixed, _one),
    "video_llava": (_fixed, _one),
    "paligemma": (_fixed, _one),
    "gemma3": (_crops, _pooled),
    "shieldgemma2": (_crops, _pooled),
    "gemma4": (_numbered, lambda config: config.vision_config.pooling_kernel_size),
    "gemma4_unified": (_numbered, _one),
    "llava_next": (_anyres, _one),
    "llava_next_video": (_anyres, _one),
    "llava_onevision": (_anyres, _one),
    "idefics3": (_split, lambda config: config.scale_factor),
    "smolvlm": (_split, lambda config: config.scale_factor),
    **dict.fromkeys(("internvl", "qianfan_ocr"), (_fitted, lambda config: round(1 / config.downsample_ratio))),
    "molmo2": (_overlapping, _one),
    "lfm2_vl": (_large_split, lambda config: config.downsample_factor),
    "cohere2_vision": (_least_stretched, lambda config: config.downsample_factor),
    "llama4": (_undistorted, lambda config: round(1 / config.vision_config.pixel_shuffle_ratio)),
    "aya_vision": (_fitted, lambda config: config.downsample_factor),
    "granite_docling": (_paged, lambda config: config.vision_config.scale_factor),
    "ovis2": (_covering, lambda config: config.vision_config.hidden_stride),
    **dict.fromkeys(("minicpmv4_6", "minicpmv4_7"), (_sliced, _twice_merged)),
    **dict.fromkeys((*QWEN, *AS_QWEN), (_resized, _merged)),
    "video_llama_3": (_resized, _one),
    "kimi_k25": (_packed, lambda config: config.vision_config.merge_kernel_size[0]),
    "nemotron_h_omni": (_resized, lambda config: round(1 / config.downsample_ratio)),
    **dict.fromkeys(("muse_glimmer", "muse_spark"), (_resized, lambda config: config.vision_config.merge_size)),
    "hunyuan_vl": (_lined, _merged),
    "glm5_next": (_cornered, _merged),
    **dict.fromkeys(("mistral3", "mistral_large4", "lighton_ocr"), (_rows, lambda config: config.spatial_merge_size)),
    **dict.fromkeys(("janus", "deepseek_vl"), (_boxed, _one)),
    "fuyu": (_fitting, _one),
    "mllama": (_canvas, _one),
}
"""Model type (or model type/vision type) → how its pictures are cut, and patches along the side of a token.

Every row is tested by painting, some of them where torchvision is installed. What has no row is one of `WHOLE`, or not
known: convolutions make its tokens of more than a box (Chameleon, Emu 3, GOT-OCR 2, Step 3.7).
"""

WHOLE = frozenset(
    (
        *("aria", "blip-2", "deepseek_ocr2", "idefics2", "instructblip", "instructblipvideo"),  # resampled
        *("kosmos-2", "kosmos-2.5"),  # as well
        *("idefics", "mllama"),  # read by cross-attention
    )
)
"""Models whose image tokens have no place in the picture: each answers a query (a Q-Former, a Perceiver), or stands for
all that is read by cross-attention."""

VIDEOS: dict[str, Callable[[Source], Film | None]] = {
    **dict.fromkeys(QWEN, _paired),
    "llava_onevision": _halved,
    "internvl": _squares,
    "smolvlm": _squares,
}
"""Model type → how its videos are cut; None where that cannot be told."""
