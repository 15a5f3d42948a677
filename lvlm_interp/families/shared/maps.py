"""Which pixels of the original picture every image token was made from, and which of its frames, of a video."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import PretrainedConfig

from lvlm_interp.compat import images_kwargs
from lvlm_interp.families.shared.grids import Processed, Size, TokenMap
from lvlm_interp.families.shared.registry import family_of
from lvlm_interp.inputs.called import pixels_of
from lvlm_interp.inputs.view import ImageView, Shown


def token_maps(
    config: PretrainedConfig, processor: Any, sizes: Sequence[Size], model_inputs: Mapping[str, Tensor]
) -> tuple[TokenMap, ...] | None:
    """Where the tokens of every image of a prompt were taken from.

    Args:
        config: the model's.
        processor: the model's processor, or its image processor alone.
        sizes: width and height of each original picture.
        model_inputs: what the processor made of them.

    Returns:
        one map for each image, or None if the tokens of this family have no place in the picture, or it is not known.
        For Mllama the maps are of its cross-attention states.
    """
    family, vision = family_of(config), getattr(getattr(config, "vision_config", None), "model_type", None)
    if (layout := family.towers.get(str(vision)) or family.layout) is None:
        return None
    told = _settings(processor), config, model_inputs, _patch(config), family.merge(config)
    images = (Processed(size, i, *told) for i, size in enumerate(sizes))
    return tuple(layout(image).token_map(image.size) for image in images)


def _patch(config: PretrainedConfig) -> int:
    patch = getattr(config, "vision_config", config).patch_size
    return patch if isinstance(patch, int) else patch[0]


def video_maps(
    config: PretrainedConfig,
    sizes: Sequence[Size],
    model_inputs: Mapping[str, Tensor],
    frames: Sequence[int | None] | None = None,
) -> tuple[TokenMap, ...] | None:
    """Where, and from which frames, the tokens of every video of a prompt were taken.

    Args:
        config: the model's.
        sizes: width and height of the original frames of each video.
        model_inputs: what the processor made of them.
        frames: the number of frames of each video, where it is known.

    Returns:
        one map for each video, or None where the family or its model inputs do not tell.
    """
    family = family_of(config)
    if (film := family.film) is None:
        return None
    told = _settings(None), config, model_inputs, _patch(config), family.merge(config)
    counts = frames or [None] * len(sizes)
    made = [film(Processed(size, i, *told, count)) for i, (size, count) in enumerate(zip(sizes, counts, strict=True))]
    found = [one.token_map(size) for one, size in zip(made, sizes, strict=True) if one is not None]
    return tuple(found) if len(found) == len(made) else None


def image_views(
    config: PretrainedConfig,
    processor: Any,
    shown: Sequence[Shown],
    model_inputs: Mapping[str, Tensor],
    positions: Int[Tensor, " token"],
) -> tuple[ImageView, ...] | None:
    """Pictures and videos of a prompt, each with its share of the positions of their tokens and their boxes.

    Without the original pictures, there are cells but no boxes, as far as the model inputs tell how pictures were cut.

    Returns:
        None where tokens have no place in the picture, or none that is known, or where the prompt has another number of
        image tokens than the maps: an unknown place is better than a wrong one.
    """
    maps = _maps(config, processor, shown, model_inputs)
    if maps is None or sum(counts := [len(one.boxes) for one in maps]) != len(positions):
        return None
    return tuple(
        ImageView(
            rows,
            one.boxes if what.pictures else None,
            one.cells,
            next(iter(what.pictures), None),
            one.frames,
            what.pictures if what.video else (),
        )
        for rows, one, what in zip(positions.split(counts), maps, shown, strict=True)
    )


def _maps(
    config: PretrainedConfig, processor: Any, shown: Sequence[Shown], model_inputs: Mapping[str, Tensor]
) -> list[TokenMap] | None:
    """The maps of pictures and videos, in the order of the prompt."""
    made: dict[bool, Iterable[TokenMap] | None] = {}
    for video in {one.video for one in shown}:
        some = [one for one in shown if one.video == video]
        known = all(one.pictures for one in some)
        sizes = [one.pictures[0].size if known else _given_size(model_inputs, i, video) for i, one in enumerate(some)]
        counts = [len(one.pictures) or None for one in some]
        made[video] = (
            video_maps(config, sizes, model_inputs, counts)
            if video
            else token_maps(config, processor if known else None, sizes, model_inputs)
        )
    if None in made.values():
        return None
    of = {video: iter(maps) for video, maps in made.items() if maps is not None}
    return [next(of[one.video]) for one in shown]


def _given_size(model_inputs: Mapping[str, Tensor], index: int, video: bool = False) -> Size:
    """Width and height as far as the model inputs tell: some have the original's, others what it was resized to."""
    grids = "video_grid_thw" if video else "image_grid_thw"
    if "image_sizes" in model_inputs and not video:
        height, width = model_inputs["image_sizes"][index].tolist()
    elif grids in model_inputs:
        height, width = model_inputs[grids][index, 1:].tolist()
    else:
        pixels = pixels_of(model_inputs, video) or pixels_of(model_inputs)
        height, width = next(iter(pixels.values())).shape[-2:]
    return width, height


def _settings(processor: Any) -> Callable[[str], Any]:
    """What images are processed with: a processor's own defaults go before those of its image processor."""
    first = images_kwargs(processor)
    second = getattr(processor, "image_processor", processor)

    def setting(name: str) -> Any:
        found = first.get(name)
        return getattr(second, name, None) if found is None else found

    return setting
