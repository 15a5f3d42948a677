"""Curves, nulls and boxes: each equal to a slow, obvious version, and told from what is right by chance."""

import dataclasses

import numpy as np
import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError
from lvlm_interp.heatmaps.faithfulness import area_under
from lvlm_interp.heatmaps.localization import located, otsu
from lvlm_interp.report import figures
from tests.tiny import tiny_inputs, tiny_llava

SIDE = 4


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava(side=SIDE))


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm, side=SIDE)


@pytest.fixture(scope="module")
def shapley(vlm, x):
    return li.attribute(vlm, x, "shapley", regions=np.arange(16).reshape(4, 4) // 2, unit="answer", value="logprob")


ASKED = {"unit": "answer", "value": "logprob"}


def worth(vlm, x, seen):
    """Log-probability of the answer where text sees these patches only."""
    visible = x.everything
    visible[x.images[0].positions] = torch.as_tensor(seen)
    return float(li.score(vlm, x, visible, hide_from="text").logprob[0].double().sum())


def flipped(patches):
    return dataclasses.replace(patches, values=-patches.values)


def test_curves_are_what_the_model_does(vlm, x, shapley):
    found = li.faithfulness(vlm, x, shapley, substrates="tokens", regions=4, orders=2, **ASKED)
    order = shapley.values.flatten().argsort(descending=True, stable=True).tolist()
    for step in (0, 1, 5, 16):
        seen = torch.zeros(16, dtype=torch.bool)
        seen[order[:step]] = True
        assert float(found.insertion[0, 0, step]) == pytest.approx(worth(vlm, x, seen), abs=1e-4)
        assert float(found.deletion[0, 0, step]) == pytest.approx(worth(vlm, x, ~seen), abs=1e-4)
    assert found.revealed[0].tolist() == pytest.approx([k / 16 for k in range(17)])
    by_hand = np.trapezoid(found.insertion[0, 0].double().numpy(), found.revealed[0].double().numpy())
    assert float(found.insertion_area[0, 0]) == pytest.approx(by_hand, abs=1e-5)
    assert found.maps == ("map", "centre") and found.token == shapley.tokens[0]


def test_a_faithful_map_is_above_random_and_its_contrary_below(vlm, x, shapley):
    """Exact Shapley values of the very regions; the same numbers upside down are worse than chance."""
    maps = {"shapley": shapley, "contrary": flipped(shapley)}
    labels = np.arange(16).reshape(4, 4) // 2
    found = li.faithfulness(vlm, x, maps, substrates="tokens", regions=labels, orders=20, **ASKED)
    insertion, deletion = found.insertion_area[:, 0], found.deletion_area[:, 0]
    assert insertion[0] > found.random_insertion.mean() > insertion[1]
    assert deletion[0] < found.random_deletion.mean() < deletion[1]
    assert torch.allclose(found.sensitivity[0], -found.sensitivity[1], atol=1e-5) and found.sensitivity[0] > 0.5
    frame = found.to_frame().set_index("map")
    assert (
        frame.loc["shapley", "insertion above random"] >= 0.8 > 0.2 >= frame.loc["contrary", "insertion above random"]
    )


def test_what_is_least_relevant_first_is_insertion_backwards(vlm, x, shapley):
    maps = {"one": shapley, "contrary": flipped(shapley)}
    found = li.faithfulness(vlm, x, maps, substrates="tokens", regions=np.arange(16).reshape(4, 4), orders=1, **ASKED)
    assert not torch.equal(found.insertion[0], found.insertion[1])
    distinct = dataclasses.replace(shapley, values=shapley.values + torch.arange(16.0).view(1, 4, 4) * 1e-4)
    maps = {"one": distinct, "contrary": flipped(distinct)}
    found = li.faithfulness(vlm, x, maps, substrates="tokens", regions=None, orders=1, **ASKED)
    assert torch.allclose(found.insertion[0], found.deletion[1].flip(-1), atol=1e-5)


def test_a_region_s_number_is_that_of_its_patches(vlm, x, shapley):
    """A map of patches and one that was made of the regions are held to the same sets."""
    shuffled = shapley.values.view(8, 2).flip(1).reshape(1, 4, 4)  # within each region
    maps = {"one": shapley, "same": dataclasses.replace(shapley, values=shuffled)}
    labels = np.arange(16).reshape(4, 4) // 2
    found = li.faithfulness(vlm, x, maps, substrates="tokens", regions=labels, orders=1, **ASKED)
    assert torch.equal(found.insertion[0], found.insertion[1])


def test_curves_over_pixels_say_so(tmp_path):
    from PIL import Image

    from tests import saved

    chat = li.wrap(tiny_llava(), saved.processor("llava"))
    x = chat.prepare("is it?", Image.linear_gradient("L").rotate(30).resize((28, 28)).convert("RGB"), answer="a cat")
    patches = li.attribute(chat, x, unit="answer")
    found = li.faithfulness(chat, x, patches, orders=2, sets=5, unit="answer")
    assert found.substrates == ("tokens", "mean", "blur")
    ends = found.deletion[0, :, 0]
    assert torch.allclose(ends, ends[:1].expand(3), atol=1e-4)  # nothing is gone yet
    assert not torch.allclose(found.insertion[0, 1, :1], found.insertion[0, 2, :1], atol=1e-4)
    assert li.load_result(found.save(tmp_path / "f.safetensors")) == found
    other = Image.effect_mandelbrot((28, 28), (-2, -1, 1, 1), 20).convert("RGB")
    assert li.faithfulness(chat, x, patches, substrates=other, orders=1, unit="answer").substrates == ("picture",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": {}}, "at least one map"),
        ({"maps": {"centre": None}}, "none called 'centre'"),
        ({"orders": 0}, "1 random order or more"),
        ({"sets": 2}, "3 sets"),
        ({"substrates": ()}, "at least one"),
        ({"substrates": ("mean", "mean")}, "each substrate once"),
        ({"substrates": "white"}, "made from processed ones|substrate is"),
        ({"token": 4}, "no token 4"),
        ({"unit": "token"}, "give unit= and target= as the map was asked for"),
    ],
)
def test_what_cannot_be_judged(vlm, x, shapley, change, message):
    maps = change.pop("maps", shapley)
    maps = dict.fromkeys(maps, shapley) if isinstance(maps, dict) else maps
    with pytest.raises(li.errors.LvlmInterpError, match=message):
        li.faithfulness(vlm, x, maps, **{**ASKED, **change})


def test_maps_of_other_patches_and_other_parts(vlm, x, shapley):
    small = li.wrap(tiny_llava())
    other = li.attribute(small, tiny_inputs(small), unit="answer")
    with pytest.raises(InputError, match=r"has \[2, 2\] patches, and this image \[4, 4\]"):
        li.faithfulness(vlm, x, other, **ASKED)
    named = dataclasses.replace(shapley, tokens=("another",))
    with pytest.raises(InputError, match="maps of one part"):
        li.faithfulness(vlm, x, {"one": shapley, "other": named}, **ASKED)


def test_the_area_is_over_what_is_revealed():
    values, revealed = torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.25, 1.0]])
    assert float(area_under(values, revealed)) == pytest.approx(0.125 + 0.75)


def test_curves_are_drawn(vlm, x, shapley):
    found = li.faithfulness(vlm, x, {"ours": shapley}, substrates="tokens", orders=2, **ASKED)
    ax = figures.faithfulness_curves(found, "deletion")
    lines = {line.get_label().split(" (")[0]: line for line in ax.get_lines()}
    assert list(lines) == ["ours", "centre", "random"]
    assert np.allclose(lines["ours"].get_ydata(), found.deletion[0, 0]) and "tokens hidden" in ax.get_xlabel()
    assert ax.get_ylabel() == "logprob, nats"
    with pytest.raises(InputError, match="one of"):
        figures.faithfulness_curves(found, substrate="mean")


# --- boxes ------------------------------------------------------------------------------------------------------------


def mapped(vlm, x, values):
    return dataclasses.replace(
        li.attribute(vlm, x, unit="answer"), values=torch.tensor(values, dtype=torch.float32).view(1, 4, 4)
    )


def test_a_map_on_a_box(vlm, x):
    """Boxes are in patches where no picture is known: the left half, eight of sixteen."""
    found = located(mapped(vlm, x, [3, 1, 0, 0] * 4), (0, 0, 2, 4))
    assert (found.points, found.energy, found.area, found.best_iou) == (1, 1, 0.5, 1)
    assert found.average_precision == 1 and found.otsu_iou == 0.5
    beside = located(mapped(vlm, x, [0, 0, 1, 3] * 4), (0, 0, 2, 4))
    assert (beside.points, beside.energy) == (0, 0) and beside.best_iou == 0.5  # everything at once
    assert located(mapped(vlm, x, [0, 0, 1, 3] * 4), [(0, 0, 2, 4), (3, 0, 4, 4)]).energy == 0.75


def test_a_constant_map_points_at_nothing_in_particular(vlm, x):
    flat = located(mapped(vlm, x, [1] * 16), (0, 0, 1, 4))
    assert flat.points == flat.area == flat.energy == flat.average_precision == 0.25
    negative = located(mapped(vlm, x, [-1] * 16), (0, 0, 1, 4))
    assert np.isnan(negative.energy)


@pytest.mark.parametrize("box", [(0, 0, 4, 4), (0.6, 0.6, 0.9, 0.9)])
def test_a_box_that_tells_nothing_apart(vlm, x, box):
    with pytest.raises(InputError, match="have their centres in"):
        located(mapped(vlm, x, range(16)), box)


def test_otsu_parts_two_clusters():
    values = torch.cat([torch.linspace(0, 1, 30), torch.linspace(8, 9, 10)])
    assert 1 < otsu(values) < 8
    assert otsu(torch.ones(5)) == 1
