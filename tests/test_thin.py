"""Thin and tiny pictures: each is read as the model reads it, or refused by a message that names it."""

import re

import pytest
import torch
from PIL import ImageOps

import lvlm_interp as li
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.inputs.refused import need_pictures_taken
from tests.families import tiny_model
from tests.processors import CASES, TORCHVISION, features, picture
from tests.saved import ROWS, UNOPENED, processor
from tests.test_pixels import maps

SIZES = [(500, 40), (40, 500), (300, 1), (1, 300), (1, 1), (2, 2), (3000, 5)]
TILED = [name for name in CASES if name.startswith(("llava_next", "llava_onevision"))]


def opened(name):
    if name in UNOPENED or (ROWS[name].frames and not TORCHVISION):
        pytest.skip("its processor runs with torchvision only")
    return li.wrap(tiny_model(name), processor(name))


def read_or_as_told(vlm, one):
    """An example of a picture, padded as the refusal says if it is refused."""
    try:
        return vlm.prepare("What?", one)
    except ImageError as error:
        said = str(error)
    told = re.search(r"image 0 of 1, counted from 0, is of (\d+)×(\d+) pixels.*ImageOps.pad\(image, \((\d+), ", said)
    width, height, side = map(int, told.groups())
    assert (width, height) == one.size
    return vlm.prepare("What?", ImageOps.pad(one, (side, side)))


@pytest.mark.parametrize("name", ROWS)
def test_pictures_are_read_or_named(name):
    vlm = opened(name)
    for size in SIZES:
        one = picture(size, 0)
        x = read_or_as_told(vlm, one)
        (view,) = x.images
        assert len(view.patches) == len(view.positions) and view.cells.numel(), size
        assert vlm.run(x).isfinite().all()


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize("size", SIZES)
def test_tiles_of_which_only_padding_is_left(name, size):
    """What the model takes off as padding may be all of them, or leave the ends of rows: the thumbnail is the grid."""
    pictures = [picture(size, 0)] * (1 + CASES[name].nested)
    for one, found in zip(maps(name, pictures), features(name, pictures), strict=True):
        assert len(one.boxes) == len(found) and one.cells.numel()
        assert all(one.boxes[i] is not None for i in one.cells.flatten())


def test_which_of_several_pictures_is_refused():
    vlm = opened("qwen2_vl")
    usual, thin = picture((60, 40), 0), picture((300, 1), 1)
    with pytest.raises(ImageError, match=r"image 1 of 3, counted from 0, is of 300×1 pixels .*Qwen2VLProcessor.* 200"):
        vlm.prepare("What?", [usual, thin, usual])
    with pytest.raises(ImageError, match=r"image 0 of 1, .* 300×1 pixels"):
        vlm.prepare_chat(
            [{"role": "user", "content": [{"type": "image", "image": thin}, {"type": "text", "text": "?"}]}]
        )


def test_which_video_is_refused():
    def make(messages):
        if any(frame.height < 2 for part in messages[0]["content"] for frame in part.get("video", ())):
            raise ValueError("too thin")

    content = [{"type": "image", "image": picture((300, 1), 0)}, {"type": "video", "video": [picture((300, 1), 1)] * 4}]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "?"}]}]
    with pytest.raises(ImageError, match=r"video 1 of 2, .* 300×1 pixels .*, and it takes none .* too thin"):
        need_pictures_taken(messages, make, "it", ValueError("too thin"))


def test_a_processor_without_a_template_names_the_picture_too():
    if not TORCHVISION:
        pytest.skip("its processor runs with torchvision only")
    one = processor("qwen2_vl")
    one.chat_template = None
    vlm = li.wrap(tiny_model("qwen2_vl"), one)
    vlm.prompter.template = "{image}{question}"
    with pytest.raises(ImageError, match=r"image 0 of 1, .* 300×1 pixels"):
        vlm.prepare("What?", picture((300, 1), 0))


def test_what_is_refused_whatever_the_picture_is_of_the_template():
    """The control: no picture is blamed."""
    vlm = opened("llava")
    vlm.processor.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(InputError, match="chat template refused the conversation: no"):
        vlm.prepare("What?", picture((300, 1), 0))


def test_a_thin_picture_has_a_heatmap():
    vlm = opened("llava_next")
    found = li.attribute(vlm, vlm.prepare("What?", picture((500, 40), 0), answer="A cat."))
    assert isinstance(found.values, torch.Tensor) and found.values.numel()
