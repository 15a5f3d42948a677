"""MiniCPM-V and MiniCPM-OCR."""

from __future__ import annotations

from transformers import PretrainedConfig

from lvlm_interp.compat import known_to
from lvlm_interp.families.shared.cuts import even, with_thumbnail
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.grids import Layout, Processed, spans


def _sliced(image: Processed) -> Layout:
    """The whole picture, and if it is large, slices of it, both at sizes of their own (MiniCPM-V 4.6)."""
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    if image.settings("scale_resolution") is None:
        rows, columns = (int(n) // image.merge for n in image.inputs["target_sizes"][image.index])
        return Layout((even(rows, columns, image.size),))
    cutter, size = MiniCPMV4_6ImageProcessorPil(), image.size[::-1]
    told = {name: image.settings(name) for name in ("scale_resolution", "patch_size", "downsample_mode")}
    most = image.settings("max_slice_nums") if image.settings("slice_mode") else 1
    grid = cutter.get_sliced_grid(size, most, told["scale_resolution"])
    told = known_to(cutter.find_best_resize, told)
    rows, columns = (n // image.step for n in cutter.find_best_resize(size, **told, allow_upscale=grid is None))
    whole = even(rows, columns, image.size)
    if grid is None:
        return Layout((whole,))
    counts = (n // image.step for n in cutter.get_refine_size(size, grid, **told, allow_upscale=True))
    tall, wide = (
        [spans(count // n, 1, length / count, k * length / n) for k in range(n)]
        for count, n, length in zip(counts, grid, size, strict=True)
    )
    return with_thumbnail(tall, wide, whole, first=True)


def _twice_merged(config: PretrainedConfig) -> int:
    windows = 1 if config.downsample_mode == "4x" else 2  # merged once inside the vision tower
    return windows * config.merge_kernel_size[0] ** config.merger_times


IN_ONE_ROW = {"pixel_values": -1, "pixel_values_videos": -1}
FAMILIES = {
    **dict.fromkeys(("minicpmv4_6", "minicpmv4_7"), Family(layout=_sliced, merge=_twice_merged, packed=IN_ONE_ROW)),
    "minicpm_ocr": Family(packed=IN_ONE_ROW),
}
