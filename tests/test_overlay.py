"""Maps at the pixels of the original picture, side by side, and as files of numbers."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_interp.errors import InputError, OutputError
from lvlm_interp.heatmaps.pixels import at_pixels
from lvlm_interp.report import export, figures, overlay
from lvlm_interp.report.figures import drawing
from tests.made import made, made_map
from tests.test_report_figures import pixels


@pytest.fixture
def slope():
    """2 × 3 patches of a picture of 60 × 40, of which each column is one more."""
    patches = made_map(("cat", "dog"), torch.zeros)
    patches.values[0] = torch.tensor([[0.0, 1.0, 2.0]]).expand(2, 3)
    return patches


def test_each_pixel_has_its_patch_s_number(slope):
    found = at_pixels(slope)
    assert found.shape == (40, 60)
    for row, column in np.ndindex(2, 3):
        left, top, right, bottom = map(round, slope.boxes[row, column].tolist())
        assert (found[top:bottom, left:right] == column).all()


def test_between_the_middles_it_is_straight(slope):
    found = at_pixels(slope, "cat", smooth=True)
    assert found[0, 0] == 0 and found[39, 59] == 2  # beyond the outer middles there is nothing to go to
    assert found[20, 30] == pytest.approx(1 + 0.5 / 20) and np.ptp(found, axis=0).max() == 0
    assert np.diff(found[7, 11:49]) == pytest.approx(1 / 20)


def test_pixels_outside_all_patches_have_no_number(slope):
    inner = dataclasses.replace(slope, boxes=slope.boxes * 0.5)
    for smooth in (False, True):
        found = at_pixels(inner, smooth=smooth)
        assert np.isnan(found[20:]).all() and np.isnan(found[:, 30:]).all() and not np.isnan(found[:20, :30]).any()


def test_patches_that_are_no_lattice(slope):
    askew = slope.boxes.clone()
    askew[0, 1] += 3
    with pytest.raises(InputError, match="no lattice"):
        at_pixels(dataclasses.replace(slope, boxes=askew), smooth=True)


@pytest.mark.parametrize("smooth", [False, True])
def test_the_picture_keeps_its_size(slope, smooth):
    shown = overlay.overlaid(slope, Image.new("RGB", (60, 40), "white"), smooth=smooth)
    assert shown.size == (60, 40)
    (left, *_), (right, _, blue) = shown.getpixel((2, 2)), shown.getpixel((58, 38))
    assert left > 250 and right - blue > 100  # white, and orange
    with pytest.raises(InputError, match="this picture has"):
        overlay.overlaid(slope, Image.new("RGB", (40, 60)))
    with pytest.raises(InputError, match="a limit is above 0"):
        overlay.overlaid(slope, Image.new("RGB", (60, 40)), limit=0.0)


def test_a_smooth_map_is_drawn_where_its_patches_are(slope):
    at = pixels(figures.heatmap(slope, picture=Image.new("RGB", (60, 40), "white"), smooth=True, mark_peak=False))
    amounts = [at(x, 20)[0] - at(x, 20)[2] for x in (5, 25, 40, 55)]
    assert amounts == sorted(amounts) and amounts[0] < 10 and amounts[-1] > 100


# --- side by side -----------------------------------------------------------------------------------------------------


def test_a_row_for_each_map_and_a_column_for_each_part(slope):
    weak = dataclasses.replace(slope, values=slope.values * 0.1)
    ax = figures.heatmap_grid({"occlusion": slope, "attention": weak}, Image.new("RGB", (60, 40), "white"))
    panels = ax.child_axes
    assert [panel.get_title() for panel in panels] == ["“cat”", "“dog”", "", ""]
    assert [panel.get_ylabel() for panel in panels] == ["occlusion", "", "attention", ""]
    limits = [panel.collections[0].get_clim()[1] for panel in panels]
    assert limits == pytest.approx([2, 2, 0.2, 0.2])  # of a row, since methods have units of their own
    own = figures.heatmap_grid({"a": slope}, tokens=["cat", 1], limit="own").child_axes
    assert own[0].collections[0].get_clim()[1] > own[1].collections[0].get_clim()[1]


def test_a_grid_takes_the_place_that_it_is_given(slope):
    left, right = drawing.own(6, 3, 1, 2)[1][0]
    assert figures.heatmap_grid({"a": slope}, ax=left) is left and not right.child_axes
    assert len(left.child_axes) == 2


def test_maps_that_make_no_grid(slope):
    with pytest.raises(InputError, match="one map or more"):
        figures.heatmap_grid({})
    with pytest.raises(InputError, match="of one picture"):
        figures.heatmap_grid({"a": slope, "b": dataclasses.replace(slope, size=(10, 10))})
    with pytest.raises(InputError, match="no part in common"):
        figures.heatmap_grid({"a": slope, "b": made_map(("bird",), torch.zeros)})
    with pytest.raises(InputError, match="the map 'a'"):
        figures.heatmap_grid({"a": slope}, tokens=["bird"])


# --- files ------------------------------------------------------------------------------------------------------------


def test_numbers_of_a_map_as_files(tmp_path):
    patches = made().patches
    path = export.save_heatmap(patches, None, tmp_path / "map.npz")
    with np.load(path) as held:  # and not by pickle
        assert np.array_equal(held["values"], patches.values) and np.array_equal(held["boxes"], patches.boxes)
        assert held["tokens"].tolist() == list(patches.tokens) and held["size"].tolist() == list(patches.size)
        assert str(held["unit"]) == patches.unit
        assert json.loads(str(held["provenance"]))["method"] == patches.method
    told = json.loads(export.save_heatmap(patches, None, tmp_path / "map.json").read_text("utf-8"))
    assert told["values"] == patches.values.tolist() and told["provenance"]["method"] == patches.method
    with pytest.raises(OutputError, match=r"does not end like.*; \.npz and \.json hold the numbers"):
        export.save_heatmap(patches, None, tmp_path / "map.pt")
