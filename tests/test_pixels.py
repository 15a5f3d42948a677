"""Every image token knows its pixels: painted boxes change exactly the features that the map names."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageChops

from lvlm_interp.model.inputs import Box
from lvlm_interp.model.pixels import TokenMap, image_views, token_maps, video_maps
from tests.processors import CASES, PATCH, Processor, features, picture, processed, tower

SIZES = 20
PAINTED = 5
Size = tuple[int, int]


def sizes(name: str, count: int = SIZES) -> list[Size]:
    """Random sizes, odd ones too, between 37 and 199 pixels."""
    draw = np.random.default_rng(list(CASES).index(name))
    return [(int(draw.integers(37, 200)), int(draw.integers(37, 200))) for _ in range(count)]


def maps(name: str, pictures: Sequence[Image.Image]) -> tuple[TokenMap, ...]:
    case = CASES[name]
    processor = Processor(case.image_processor, case.images_kwargs)
    found = token_maps(tower(name).config, processor, [one.size for one in pictures], processed(name, list(pictures)))
    assert found is not None
    return found


def inside(box: Box, reach: float) -> tuple[int, int, int, int]:
    """The whole pixels inside a box, `reach` away from its sides."""
    left, top, right, bottom = box
    # boxes are floats: a side at 11.9999999 is at 12
    return (
        math.ceil(left + reach - 1e-6),
        math.ceil(top + reach - 1e-6),
        math.floor(right - reach + 1e-6),
        math.floor(bottom - reach + 1e-6),
    )


def overlap(box: Box, other: Box) -> tuple[float, float]:
    """Width and height of what two boxes share."""
    return min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1])


def strides(boxes: Sequence[Box | None], size: Size) -> list[tuple[float, float]]:
    """Original pixels that one processed pixel of each token stands for; the nearest-pixel filter reads one of them.

    A box at the border may have been cut there, so the largest of all boxes stands in for it.
    """
    widths = [(box[2] - box[0], box[3] - box[1]) if box else (0.0, 0.0) for box in boxes]
    largest = [max(width[k] for width in widths) for k in (0, 1)]
    cut = [[box is not None and (box[k] == 0 or box[k + 2] == size[k]) for k in (0, 1)] for box in boxes]
    real = [[largest[k] if at[k] else width[k] for k in (0, 1)] for width, at in zip(widths, cut, strict=True)]
    return [(across / PATCH, down / PATCH) for across, down in real]


def painted(image: Image.Image, area: tuple[int, int, int, int]) -> Image.Image:
    """The picture with one area inverted."""
    image = image.copy()
    image.paste(ImageChops.invert(image.crop(area)), area)
    return image


def problems(
    name: str, size: Size, seed: int, believed: Callable[[list[Box | None]], list[Box | None]] = list
) -> list[str]:
    """Paints single tokens' boxes and says where the features that change are not those that the map names."""
    case, image = CASES[name], picture(size, seed)
    boxes = believed(list(maps(name, [image] * (1 + CASES[name].nested))[0].boxes))
    reach = case.reach * max(size) / case.settings["size"].get("longest_edge", 1)
    areas = {i: inside(box, reach) for i, box in enumerate(boxes) if box is not None}
    stride = strides(boxes, size)
    wide = [i for i, a in areas.items() if all(a[k + 2] - a[k] > stride[i][k] for k in (0, 1))]
    chosen = np.random.default_rng(seed).permutation(wide)[:PAINTED].tolist()
    if not chosen:
        return ["no box has a pixel inside"]
    before, *after = features(name, [image, *(painted(image, areas[i]) for i in chosen)])
    if len(before) != len(boxes):
        return [f"{len(boxes)} boxes for {len(before)} tokens"]
    found = []
    for i, now in zip(chosen, after, strict=True):
        changed = set(((now - before).abs().amax(-1) > 1e-5).nonzero().flatten().tolist())
        shared = {j: overlap(areas[i], box) for j, box in enumerate(boxes) if box is not None}
        may = {j for j, (width, height) in shared.items() if min(width, height) > -reach}
        must = {j for j, share in shared.items() if all(share[k] > stride[j][k] + reach for k in (0, 1))}
        if not must | {i} <= changed <= may:
            found.append(f"token {i}: {sorted(changed)} changed, not {sorted(must)} to {sorted(may)}")
    return found


def next_tokens(boxes: list[Box | None]) -> list[Box | None]:
    """Every box is taken for the next token's."""
    return boxes[1:] + boxes[:1]


def half_a_token(boxes: list[Box | None]) -> list[Box | None]:
    """Every box is moved up by half of its height."""
    moved = [box and (box[0], box[1] - (box[3] - box[1]) / 2, box[2], (box[1] + box[3]) / 2) for box in boxes]
    return [box and (box[0], max(box[1], 0), box[2], box[3]) for box in moved]


@pytest.mark.parametrize("name", CASES)
def test_painted_boxes_change_the_tokens_that_the_map_names(name: str) -> None:
    assert not {size: found for k, size in enumerate(sizes(name)) if (found := problems(name, size, k))}


@pytest.mark.parametrize("believed", [next_tokens, half_a_token])
@pytest.mark.parametrize("name", CASES)
def test_the_paint_test_sees_a_shifted_map(name: str, believed: Callable[[list[Box | None]], list[Box | None]]) -> None:
    assert all(problems(name, size, k, believed) for k, size in enumerate(sizes(name, 2)))


@pytest.mark.parametrize("name", CASES)
def test_cells_are_a_grid_in_the_picture(name: str) -> None:
    """To the right, boxes lie further right and at one height; downwards the same."""
    for k, size in enumerate(sizes(name, 3)):
        found = maps(name, [picture(size, k)])[0]
        assert found.cells.unique().numel() == found.cells.numel()
        grid = [[found.boxes[int(i)] for i in row] for row in found.cells]
        for here, there in itertools.chain(*(itertools.pairwise(row) for row in grid)):
            assert here is not None and there is not None and here[0] < there[0] and here[1] == there[1]
        for here, there in itertools.chain(*(itertools.pairwise(column) for column in zip(*grid, strict=True))):
            assert here is not None and there is not None and here[1] < there[1] and here[0] == there[0]


def test_tokens_of_a_video_know_their_frames() -> None:
    """Three frames, each shown twice, as Qwen-VL takes frames in pairs; one box of one of them is painted."""
    name, size = "qwen2_5_vl", (101, 67)
    clip = [picture(size, k) for k in range(3)]
    made = processed(name, clip)
    grid = torch.tensor([[3, *made["image_grid_thw"][0, 1:]]])
    found = video_maps(tower(name).config, [size], {"video_grid_thw": grid})
    assert found is not None and found[0].frames is not None
    token = found[0].frames.index(2) + 5
    box = found[0].boxes[token]
    assert box is not None
    before, after = (
        tower(name).get_video_features(processed(name, shown)["pixel_values"], grid).pooler_output[0]
        for shown in (clip, [clip[0], painted(clip[1], inside(box, 0)), clip[2]])
    )
    assert len(before) == len(found[0].boxes)
    assert ((after - before).abs().amax(-1) > 1e-5).nonzero().flatten().tolist() == [token]
    assert set(found[0].frames) == {0, 2, 4}


def test_views_split_the_tokens_of_several_images() -> None:
    """Two images of different size; without the pictures the grid is still known, with a token too few nothing is."""
    name, pictures = "llava_next", [picture((61, 133), 1), picture((150, 70), 2)]
    model, case, made = tower(name).config, CASES[name], processed("llava_next", pictures)
    counts = [len(one) for one in features(name, pictures)]
    positions = torch.arange(10, 10 + sum(counts))
    processor = Processor(case.image_processor, case.images_kwargs)
    seen = image_views(model, processor, pictures, made, positions)
    assert seen is not None and [len(view.positions) for view in seen] == counts
    assert all(view.patches is not None and len(view.patches) == len(view.positions) for view in seen)
    blind = image_views(model, None, [None, None], made, positions)
    assert blind is not None and [view.grid for view in blind] == [view.grid for view in seen]
    assert all(view.patches is None for view in blind)
    assert image_views(model, processor, pictures, made, positions[1:]) is None


def test_resampled_tokens_have_no_map() -> None:
    config = transformers.InstructBlipConfig()
    assert token_maps(config, None, [(10, 10)], {"pixel_values": torch.zeros(1, 3, 28, 28)}) is None
