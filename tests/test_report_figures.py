"""What figures of maps, credit and contrast draw, and the pictures under them."""

import base64
import dataclasses
import inspect
import io

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_interp.errors import InputError
from lvlm_interp.report import figures, pictures
from tests.made import made, made_map


def pixels(axes, dpi=100):
    """The drawn figure, and where a point of the data stands in it."""
    stream = io.BytesIO()
    axes.figure.savefig(stream, format="png", dpi=dpi)
    drawn = np.asarray(Image.open(stream).convert("RGB")).astype(int)

    def at(x, y):
        column, row = axes.transData.transform((x, y)) * dpi / axes.figure.dpi
        return drawn[drawn.shape[0] - 1 - round(row), round(column)]

    return at


@pytest.mark.parametrize("hot", [(0, 0), (0, 2), (1, 1)])
def test_the_hottest_patch_is_drawn_where_its_box_is(hot):
    patches = made_map(("cat",), torch.zeros)
    patches.values[0][hot] = 2.0
    axes = figures.heatmap(patches, picture=Image.new("RGB", (60, 40), "white"))
    at = pixels(axes)
    for row, column in np.ndindex(2, 3):
        left, top, right, bottom = patches.boxes[row, column].tolist()
        red, _, blue = at((left + right) / 2, (top + bottom) / 2)
        assert (red - blue > 100) == ((row, column) == hot)  # orange, and white elsewhere


def test_what_speaks_against_is_purple_and_scales_are_symmetric():
    patches = made_map(("cat",), torch.zeros)
    patches.values[0, 0, 0], patches.values[0, 1, 2] = -2.0, 1.0
    axes = figures.heatmap(patches, picture=Image.new("RGB", (60, 40), "white"))
    red, green, blue = pixels(axes)(10, 10)
    assert blue > red > green
    assert axes.collections[0].get_clim() == (-2.0, 2.0)
    assert "nats" in axes.child_axes[0].get_ylabel()
    figures.heatmap(patches, picture=Image.new("RGB", (60, 40), "white"), ax=axes, limit=5.0)
    (bar,) = axes.child_axes  # of the map that was drawn last
    assert bar.get_ylim() == (-5.0, 5.0)


def test_heatmap_is_over_the_picture_and_checks_it():
    patches = made_map(("cat",), torch.zeros)
    half = Image.new("RGB", (60, 40), "white")
    half.paste("black", (0, 0, 30, 40))
    at = pixels(figures.heatmap(patches, picture=half, fade=0.0))
    assert at(5, 20).tolist() == [0, 0, 0] and at(55, 20).tolist() == [255, 255, 255]
    with pytest.raises(InputError, match="60, 40"):
        figures.heatmap(patches, picture=Image.new("RGB", (61, 40)))
    with pytest.raises(InputError, match="no token 1"):
        figures.heatmap(patches, 1)
    assert figures.heatmap(patches).get_xlabel() == "pixels of the image"
    unknown = made_map(("cat",), torch.zeros, size=(3, 2))  # as `attribute` makes it of processed pixels
    assert figures.heatmap(unknown).get_xlabel() == "patches"


def test_a_faded_picture_has_no_colours_of_its_own():
    purple = Image.new("RGB", (60, 40), "white")
    purple.paste("#b020f0", (10, 10, 30, 30))
    pale = np.asarray(pictures.faded(purple)).astype(int)
    assert (pale == pale[..., :1]).all() and pale.min() > 100 and pale[20, 20, 0] < pale[0, 0, 0] - 30
    assert pictures.faded(purple, 0.0) is purple


def test_large_pictures_are_embedded_smaller():
    uri = pictures.embedded(Image.effect_noise((3000, 1500), 90).convert("RGB"), 1024)
    assert uri.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (1024, 512)


def test_credit_bars_add_up():
    split = made(roles=("question", "context", "image")).credit
    axes = figures.credit_bars(split)
    bars = [patch for patch in axes.patches if patch.get_height() < 1]
    drawn = sum(np.array([bar.get_width() for bar in bars]).reshape(4, 2))
    assert drawn == pytest.approx(split.total.numpy(), abs=1e-6)
    assert axes.lines[0].get_xdata() == pytest.approx(split.total.numpy())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "Prior",
        "Question",
        "Context",
        "Image",
        "Total",
    ]


def test_contrast_bars_and_given_axes():
    contrast = made(tokens=("$x$", " <b>", ".")).contrast  # dollars are text, not mathematics
    given = figures.contrast_bars(contrast).figure.add_subplot()
    assert figures.contrast_bars(contrast, given, quantity="delta") is given and "logits" in given.get_xlabel()
    pixels(given)
    with pytest.raises(InputError, match="got 'hellinger'"):
        inspect.unwrap(figures.contrast_bars)(contrast, quantity="hellinger")  # without the tests' own type checks


def test_bars_of_players_that_are_no_roles():
    """Parts of one role have its colour, ever paler, and their own names; the unit is the value's."""
    split = made(roles=("question", "context", "image")).credit
    split = dataclasses.replace(
        split,
        players=("question", "sentence 0", "sentence 1"),
        player_roles=("question", "context", "context"),
        units=("logits", "nats"),
    )
    axes = figures.credit_bars(split)
    labels = {text.get_text(): bar for text, bar in zip(*legend_of(axes), strict=True)}
    assert list(labels) == ["Prior", "Question", "sentence 0", "sentence 1", "Total"]
    colors = [labels[name].get_facecolor()[:3] for name in ("Question", "sentence 0", "sentence 1")]
    assert len({*colors}) == 3 and sum(colors[2]) > sum(colors[1])
    assert axes.get_xlabel().startswith("logits")


def legend_of(axes):
    legend = axes.get_legend()
    return legend.get_texts(), legend.legend_handles


@pytest.mark.parametrize(
    ("alternatives", "title"),
    [
        ((), "“cat”"),
        (((" dog",),), "“cat” rather than “dog”"),
        (((" dog", " cow"),), "“cat” rather than 2 others"),
    ],
)
def test_a_map_says_what_it_is_held_against(alternatives, title):
    patches = dataclasses.replace(made_map(("cat",), torch.zeros), alternatives=alternatives)
    assert figures.heatmap(patches).get_title() == title
    assert figures.heatmap(patches, title="mine").get_title() == "mine"
