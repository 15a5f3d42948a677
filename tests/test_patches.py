"""Occlusion maps: each patch hidden in turn, drawn where it is."""

import dataclasses
import inspect

import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.attribution.asked import hidden_together
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.inputs.view import ImageView
from lvlm_interp.inputs.words import Word, split_words
from tests.test_score import naive
from tests.tiny import tiny_inputs, tiny_llava


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.mark.parametrize("hide_from", ["all", "text"])
@pytest.mark.parametrize("image", [0, 1])
def test_values_are_what_hiding_one_patch_costs(vlm, hide_from, image):
    x = tiny_inputs(vlm, images=2)
    found = li.attribute(vlm, x, hide_from=hide_from, image=image)
    for n, position in enumerate(x.images[image].positions):
        without = x.everything
        without[position] = False
        both = naive(vlm, x, torch.stack([x.everything, without]), hide_from).double().softmax(-1)
        p = both.gather(-1, x.answer_ids.expand(2, -1)[..., None])[..., 0]
        odds = (p / (1 - p)).log()
        assert torch.allclose(found.values[:, n // 2, n % 2].double(), odds[0] - odds[1], atol=1e-4)
    assert found.values.abs().max() > 1e-3
    whole = x.everything
    whole[x.images[image].positions] = False  # this image, and not the other
    both = naive(vlm, x, torch.stack([x.everything, whole]), hide_from).double().softmax(-1)
    p = both.gather(-1, x.answer_ids.expand(2, -1)[..., None])[..., 0]
    odds = (p / (1 - p)).log()
    assert torch.allclose(found.image_total.double(), odds[0] - odds[1], atol=1e-4)


def test_peak_and_frame(vlm):
    x = tiny_inputs(vlm)
    found = li.attribute(vlm, x)
    row, column = found.peak(1)
    assert found.values[1, row, column] == found.values[1].max()
    assert found.peak_box(1) == (column, row, column + 1, row + 1)
    frame = found.to_frame()
    assert len(frame) == 3 * 4 and frame["value"].tolist() == pytest.approx(found.values.flatten().tolist())
    assert frame.loc[3, ["row", "column", "left", "bottom"]].tolist() == [1, 1, 1, 2]


def test_words_add_up(vlm):
    found = li.attribute(vlm, tiny_inputs(vlm))
    grouped = found.words((Word("a", 0, 2), Word("b", 2, 3)))
    assert torch.allclose(grouped.values[0], found.values[:2].sum(0)) and grouped.tokens == ("a", "b")


def test_the_map_points_at_the_object(reference, purple_banana):
    """The banana is at the top; the cat below says nothing about its colour."""
    found = li.attribute(reference, purple_banana).words(split_words(purple_banana.answer_tokens))
    left, top, right, bottom = found.peak_box(0)
    assert 50 - 14 < (left + right) / 2 < 91 + 14 and (top + bottom) / 2 < 51 + 14
    assert found.size == (112, 112)


def test_what_cannot_be_mapped(vlm):
    x = tiny_inputs(vlm)
    with pytest.raises(InputError, match="no attribution method 'gradients': did you mean 'gradient'"):
        inspect.unwrap(li.attribute)(vlm, x, "gradients")  # without the tests' own type checks
    with pytest.raises(InputError, match="no image 1"):
        li.attribute(vlm, x, image=1)


def test_tokens_without_a_place(vlm):
    """Where no token has a certain patch, no map is drawn."""
    x = tiny_inputs(vlm)
    x = dataclasses.replace(x, images=(ImageView(x.images[0].positions),))
    assert not x.images[0].has_grid
    with pytest.raises(ImageError, match="not known for this model"):
        li.attribute(vlm, x)
    x = dataclasses.replace(x, images=(ImageView(x.images[0].positions, whole=True),))
    with pytest.raises(ImageError, match=r"no place in the picture.*resampled"):
        li.attribute(vlm, x)


def test_a_thumbnail_is_hidden_with_the_cell_that_it_shows(vlm):
    """Two tokens are tiles, left and right; the third is a thumbnail of the left half, the fourth ends a row."""
    x = tiny_inputs(vlm)
    positions, picture = x.images[0].positions, Image.new("RGB", (20, 10))
    boxes = ((0.0, 0.0, 10.0, 10.0), (10.0, 0.0, 20.0, 10.0), (0.0, 0.0, 10.0, 10.0), None)
    view = ImageView(positions, boxes, torch.tensor([[0, 1]]), picture)
    assert hidden_together(view, view.cells) == [[0, 2], [1]]
    found = li.attribute(vlm, dataclasses.replace(x, images=(view,)))
    assert found.boxes.tolist() == [[list(boxes[0]), list(boxes[1])]] and found.size == (20, 10)
    visible = x.everything.repeat(3, 1)
    visible[1, positions[[0, 2]]] = False
    visible[2, positions[0]] = False
    p = naive(vlm, x, visible, "text").double().softmax(-1).gather(-1, x.answer_ids.expand(3, -1)[..., None])[..., 0]
    odds = (p / (1 - p)).log()
    assert torch.allclose(found.values[:, 0, 0].double(), odds[0] - odds[1], atol=1e-4)
    assert not torch.allclose(found.values[:, 0, 0].double(), odds[0] - odds[2], atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (("Pur", "ple", "."), ["Purple", "."]),
        (("A", " cat", " and", " a", " do", "g", "."), ["A", "cat", "and", "a", "dog", "."]),
        (("it", "'s", " 3", "5", "%"), ["it's", "35", "%"]),
        (("top", "-", "left"), ["top-left"]),
        ((), []),
    ],
)
def test_tokens_make_words(tokens, words):
    found = split_words(tokens)
    assert [word.text for word in found] == words
    assert [i for word in found for i in range(word.start, word.stop)] == list(range(len(tokens)))
