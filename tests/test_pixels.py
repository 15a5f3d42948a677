"""Every image token knows its pixels: painted boxes change exactly the features that the map names."""

import itertools
import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageChops

from lvlm_interp.families.shared.grids import TokenMap
from lvlm_interp.families.shared.maps import image_views, token_maps, video_maps
from lvlm_interp.families.shared.registry import FAMILIES
from lvlm_interp.inputs.view import Box, Shown
from tests.families.shared.cases import PATCH
from tests.processors import (
    CASES,
    TORCHVISION,
    WITH_TORCHVISION,
    Processor,
    features,
    picture,
    processed,
    tower,
)
from tests.videos import FILMS, filmed

SIZES = 20
PAINTED = 5
Size = tuple[int, int]


def sizes(name: str, count: int = SIZES) -> list[Size]:
    """Random sizes, odd ones too, between 37 and 199 pixels."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
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
    reach = case.reach * max(size) / case.settings.get("size", {}).get("longest_edge", 1)
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


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].nested])
def test_each_of_several_pictures_has_the_boxes_that_it_has_alone(name: str) -> None:
    pictures = [picture((61, 133), 1), picture((150, 70), 2)]
    found = maps(name, pictures)
    assert [one.boxes for one in found] == [maps(name, [one])[0].boxes for one in pictures]
    assert sum(len(one.boxes) for one in found) == sum(len(one) for one in features(name, pictures))


FRAMES = 5  # an odd number: of pairs, the last is a frame twice


def in_a_film(name: str, size: Size, seed: int, off: int = 0) -> list[str]:
    """As `problems`, for each frame of a video; `off` moves what the map says that many frames on."""
    clip = [picture(size, FRAMES * seed + k) for k in range(FRAMES)]
    before, inputs = filmed(name, clip)
    found = video_maps(tower(name).config, [size], inputs, [FRAMES])
    assert found is not None and found[0].frames is not None
    if len(before) != len(found[0].boxes):
        return [f"{len(found[0].boxes)} boxes for {len(before)} tokens"]
    reach = FILMS[name].reach * max(size) / CASES[name].settings["size"].get("longest_edge", 1)
    stride, draw, wrong = strides(found[0].boxes, size), np.random.default_rng(seed), []
    for frame in range(FRAMES):
        start = max(f for f in found[0].frames if f is not None and f <= max(frame - off, 0))
        boxes = {i: found[0].boxes[i] for i, f in enumerate(found[0].frames) if f == start}
        token = list(boxes)[int(draw.integers(len(boxes)))]
        area = inside(boxes[token], reach)
        after, _ = filmed(name, [painted(one, area) if k == frame else one for k, one in enumerate(clip)])
        changed = set(((after - before).abs().amax(-1) > 1e-5).nonzero().flatten().tolist())
        shared = {j: overlap(area, box) for j, box in boxes.items()}
        may = {j for j, share in shared.items() if min(share) > -reach}
        must = {j for j, share in shared.items() if all(share[k] > stride[j][k] + reach for k in (0, 1))} | {token}
        if not must <= changed <= may:
            wrong.append(f"frame {frame}: {sorted(changed)} changed, not {sorted(must)} to {sorted(may)}")
    return wrong


@pytest.mark.parametrize("name", FILMS)
def test_tokens_of_a_video_know_their_frames_and_boxes(name: str) -> None:
    """One box of one frame is painted, and the tokens that change are that frame's at that place."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    for seed in range(4):
        size = (int(draw.integers(60, 150)), int(draw.integers(60, 150)))
        assert not in_a_film(name, size, seed)
        assert in_a_film(name, size, seed, off=1)  # the control: a map that is a frame off


def test_views_split_the_tokens_of_several_images() -> None:
    """Two images of different size; without the pictures the grid is still known, with a token too few nothing is."""
    name, pictures = "llava_next", [picture((61, 133), 1), picture((150, 70), 2)]
    model, case, made = tower(name).config, CASES[name], processed("llava_next", pictures)
    counts = [len(one) for one in features(name, pictures)]
    positions = torch.arange(10, 10 + sum(counts))
    processor = Processor(case.image_processor, case.images_kwargs)
    shown, unknown = [Shown((one,)) for one in pictures], [Shown()] * 2
    seen = image_views(model, processor, shown, made, positions)
    assert seen is not None and [len(view.positions) for view in seen] == counts
    assert all(view.patches is not None and len(view.patches) == len(view.positions) for view in seen)
    blind = image_views(model, None, unknown, made, positions)
    assert blind is not None and [view.grid for view in blind] == [view.grid for view in seen]
    assert all(view.patches is None for view in blind)
    assert image_views(model, processor, shown, made, positions[1:]) is None


def test_every_row_is_painted() -> None:
    configs = [tower(name).config for name in CASES]
    visions = [getattr(getattr(one, "vision_config", None), "model_type", None) for one in configs]
    kinds = [(one.model_type, f"{one.model_type}/{vision}") for one, vision in zip(configs, visions, strict=True)]
    cut = {kind for kind, family in FAMILIES.items() if family.layout}
    towers = {f"{kind}/{tower}" for kind, family in FAMILIES.items() for tower in family.towers}
    unseen = set() if TORCHVISION else WITH_TORCHVISION
    assert {row if row in towers else kind for kind, row in kinds} == (cut | towers) - unseen
    assert {tower(name).config.model_type for name in FILMS} == {kind for kind, row in FAMILIES.items() if row.film}


def test_resampled_tokens_have_no_map() -> None:
    config = transformers.InstructBlipConfig()
    assert token_maps(config, None, [(10, 10)], {"pixel_values": torch.zeros(1, 3, 28, 28)}) is None
