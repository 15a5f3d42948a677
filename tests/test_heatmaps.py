"""Heatmaps of sets of patches, each equal to a slow, obvious version; the table of methods, and regions."""

import dataclasses
import inspect
import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageStat

import lvlm_interp as li
from lvlm_interp.attribution.asked import asked_of
from lvlm_interp.attribution.value import values_of
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.heatmaps.game import Game
from lvlm_interp.heatmaps.method import Method, known
from lvlm_interp.heatmaps.methods.random_masks import Banzhaf, Rise, mean_of
from lvlm_interp.heatmaps.regions import pixels_in, regions_of, spread
from tests import saved
from tests.tiny import tiny_inputs, tiny_llava

SIDE = 4


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def wide():
    """Sixteen patches."""
    return li.wrap(tiny_llava(side=SIDE))


@pytest.fixture(scope="module")
def chat():
    """With a tokenizer of bytes."""
    return li.wrap(tiny_llava(), saved.processor("llava"))


def value(vlm, x, *hidden):
    """Log-odds of the answer's tokens with some image tokens hidden from text."""
    visible = x.everything
    visible[x.images[0].positions[list(hidden)]] = False
    return li.score(vlm, x, visible, hide_from="text").logodds[0].double()


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_of_methods():
    table = li.methods()
    assert {"occlusion", "shapley", "integrated_gradients", "attention", "tam"} <= set(table["method"])
    assert (table[["cost", "source"]] != "").all(axis=None)


@pytest.mark.parametrize("name", [name for name in known() if name != "relative_attention"])
def test_every_method_gives_a_map_that_says_what_it_is(vlm, name, tmp_path):
    x = tiny_inputs(vlm)
    found = li.attribute(vlm, x, name, unit="answer")
    assert found.values.shape == (1, 2, 2) and found.values.isfinite().all() and not found.values.requires_grad
    assert found.provenance.method == name
    assert found.unit in found.note and f" {found.says}" in found.note
    assert li.load_result(found.save(tmp_path / "map.safetensors")) == found
    if not known()[name].signed:
        assert found.values.min() >= 0
    assert (found.residual is not None) == bool(known()[name].sums)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("occlusoin", {}, "did you mean 'occlusion'"),
        ("shapley", {"samples": 3}, "no parameter 'samples'; it has"),
        ("shapley", {"pairs": "three"}, r"Shapley\(pairs=…\) takes int"),
        ("shapley", {"pairs": 0}, "1 pair of orders or more"),
        ("banzhaf", {"seen": 1.0}, "a chance between 0 and 1"),
        ("banzhaf", {"samples": 4, "seen": 0.01}, "in fewer than two, or in all but one: draw more"),
        ("banzhaf", {"samples": 2}, "4 or more"),
        ("rise", {"seed": 2**70}, "64 bits"),
        ("shapley", {"regions": np.array([["a", "b"], ["c", "d"]])}, "whole numbers"),
        ("shapley", {"regions": np.ma.masked_array(np.eye(2, dtype=int), np.eye(2))}, "none of them masked"),
        ("shapley", {"regions": np.full((2, 2), 2**63, np.uint64)}, "whole numbers"),
        ("attention", {"heads": (0, 0)}, "asked for twice"),
        ("gradient", {"noise": float("nan")}, "noise is a share"),
        ("integrated_gradients", {"baseline": "black"}, "by tokens a baseline is 'mean', 'zero'; got 'black'"),
        ("shapley", {"regions": 0}, "1 or more"),
        ("shapley", {"regions": np.ones((3, 5), int)}, r"labels are of the grid, \[2, 2\], or of the picture"),
        ("shapley", {"regions": np.ones((2, 2))}, "whole numbers"),
        ("shapley", {"regions": np.full((2, 2), -1)}, "no patch is in a region"),
    ],
)
def test_parameters_that_no_method_has(vlm, method, parameters, message):
    with pytest.raises(InputError, match=message):
        li.attribute(vlm, tiny_inputs(vlm), method, **parameters)


def test_a_method_of_ones_own(vlm):
    @dataclasses.dataclass(frozen=True)
    class Flat(Method):
        height: float = 1.0

        def map(self, asked):
            values = torch.full((len(asked.target.parts), asked.cells.numel()), self.height)
            return asked.mapped("flat", values, values.sum(1), self.parameters)

    found = li.attribute(vlm, tiny_inputs(vlm), Flat(2.0), unit="answer")
    assert (found.values == 2).all() and found.provenance.parameters["height"] == 2
    with pytest.raises(InputError, match="has its parameters"):
        li.attribute(vlm, tiny_inputs(vlm), Flat(), height=3.0)
    with pytest.raises(InputError, match=r"Flat\(height=…\) takes float"):
        Flat("tall")


def test_a_method_that_makes_no_map(vlm):
    class Wrong(Method):
        def map(self, asked):
            return None

    class Short(Method):
        def map(self, asked):
            return asked.mapped("short", torch.zeros(3, 5), torch.zeros(3), self.parameters)

    with pytest.raises(InputError, match=r"what asked\.mapped"):
        inspect.unwrap(li.attribute)(vlm, tiny_inputs(vlm), Wrong())
    with pytest.raises(InputError, match=r"\[part, patch\], \[3, 4\] numbers"):
        li.attribute(vlm, tiny_inputs(vlm), Short())


# --- sets of patches --------------------------------------------------------------------------------------------------


def test_shapley_values_are_means_over_all_orders(vlm):
    x = tiny_inputs(vlm)
    found = li.attribute(vlm, x, "shapley")
    worth = {s: value(vlm, x, *({*range(4)} - {*s})) for n in range(5) for s in itertools.combinations(range(4), n)}
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for order in itertools.permutations(range(4)):
        for n, player in enumerate(order):
            before, after = tuple(sorted(order[:n])), tuple(sorted(order[: n + 1]))
            expected[player] += (worth[after] - worth[before]) / 24
    assert torch.allclose(found.values.flatten(1).double(), expected.T, atol=1e-4)
    assert torch.allclose(found.values.sum((1, 2)), found.image_total, atol=1e-4)
    assert found.residual.abs().max() < 1e-4 and (found.error == 0).all()
    apart = li.attribute(vlm, x, hide_from="text")  # of which no sum is promised
    assert not torch.allclose(apart.values.sum((1, 2)), apart.image_total, atol=1e-2)


def test_drawn_orders_come_near_and_say_how_near(wide, monkeypatch):
    """Eight regions, exact and drawn: every number within its error, as it is said."""
    x = tiny_inputs(wide, side=SIDE)
    labels = np.arange(16).reshape(4, 4) // 2
    exact = li.attribute(wide, x, "shapley", regions=labels, unit="answer")
    monkeypatch.setattr("lvlm_interp.heatmaps.methods.shapley.FEW", 2)
    drawn = li.attribute(wide, x, "shapley", regions=labels, pairs=24, unit="answer")
    assert drawn.residual.abs().max() < 1e-4 and drawn.error.min() > 0 and exact.error.max() == 0
    assert ((drawn.values - exact.values).abs() <= 5 * drawn.error + 1e-5).all()
    assert not torch.equal(drawn.values, exact.values)
    one = li.attribute(wide, x, "shapley", regions=labels, pairs=1, unit="answer")
    assert one.error is None and not torch.allclose(one.values, drawn.values, atol=1e-3)


def test_drawing_stops_at_the_precision_that_is_wanted(wide):
    x = tiny_inputs(wide, side=SIDE)
    rough, fine = (
        li.attribute(wide, x, "shapley", pairs=12, precision=share, unit="answer") for share in (0.9, 0.0001)
    )
    assert rough.provenance.parameters["pairs"] == 2 and fine.provenance.parameters["pairs"] == 12
    assert rough.error.max() <= 0.9 * rough.values.abs().max()


def test_means_over_sets_are_means():
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    sets = torch.rand(40, 5, generator=generator) < 0.4
    mean, error = mean_of(values, sets)
    for part, player in itertools.product(range(2), range(5)):
        inside = values[part, sets[:, player]]
        assert mean[part, player] == pytest.approx(float(inside.mean()))
        assert error[part, player] == pytest.approx(float(inside.std(correction=0) / (len(inside) - 1) ** 0.5))


@pytest.mark.parametrize(
    ("kind", "options"), [(Banzhaf, {}), (Banzhaf, {"seen": 0.4}), (Rise, {}), (Rise, {"seen": 0.8})]
)
def test_errors_are_how_far_draws_are_apart(kind, options):
    """Over many seeds, in a game whose patches add up and some that do not."""
    worth = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, errors = [], []
    for seed in range(300):
        method = kind(seed=seed, samples=64, **options)
        sets = method.sets(9)
        seen = sets.double()
        values = (seen @ worth + 3 * seen[:, 0] * seen[:, 1])[None]
        for some, one in zip((found, errors), method.estimate(values, sets), strict=True):
            some.append(one[0])
    ratio = torch.stack(found).std(0) / torch.stack(errors).mean(0)
    assert ratio.mean() == pytest.approx(1, abs=0.1) and ratio.min() > 0.75 and ratio.max() < 1.3


def test_random_masks_are_means_with_and_without(vlm):
    """All sixteen sets, as often as drawn: Banzhaf values are within their errors of the exact ones."""
    x = tiny_inputs(vlm)
    game = Game(asked_of(vlm, x, unit="answer"))
    sets = torch.tensor(list(itertools.product([False, True], repeat=4)))
    values = game(sets)[0]
    exact = torch.stack([values[sets[:, i]].mean() - values[~sets[:, i]].mean() for i in range(4)])
    found = li.attribute(vlm, x, "banzhaf", samples=400, unit="answer")
    assert ((found.values.flatten().double() - exact).abs() <= 5 * found.error.flatten()).all()
    assert (found.error < 0.3 * found.values.abs().max()).all()
    rise = li.attribute(vlm, x, "rise", samples=400, unit="answer")
    assert torch.allclose(2 * rise.values, found.values, atol=1e-5)  # each is in half of the sets
    again = li.attribute(vlm, x, "banzhaf", samples=400, unit="answer", seed=1)
    assert not torch.equal(again.values, found.values)


@pytest.mark.parametrize("value", ["odds", "difference"])
def test_all_sets_are_compared_with_the_same(vlm, value):
    x = tiny_inputs(vlm)
    asked = asked_of(vlm, x, value=value)
    game = Game(asked)
    none = torch.zeros(1, game.players, dtype=torch.bool)
    assert torch.allclose(game(none)[:, 0], game.nothing, atol=1e-5)
    found = li.attribute(vlm, x, "shapley", value=value)
    assert found.alternatives and found.residual.abs().max() < 1e-4


# --- regions ----------------------------------------------------------------------------------------------------------


def test_blocks_and_labels(wide):
    asked = asked_of(wide, tiny_inputs(wide, side=SIDE))
    blocks = regions_of(asked, 2).view(4, 4)
    assert blocks.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert regions_of(asked, 9).tolist() == list(range(16)) == regions_of(asked, None).tolist()
    named = np.full((4, 4), 7)
    named[0] = 3
    named[3, 3] = -1
    assert regions_of(asked, named).view(4, 4).tolist() == [[0] * 4, [1] * 4, [1] * 4, [1, 1, 1, -1]]


def test_labels_of_pixels_are_those_of_most_of_a_patch(chat):
    x = chat.prepare("is it?", Image.new("RGB", (28, 28)), answer="a cat")
    labels = np.zeros((28, 28), int)
    labels[:, 12:] = 1
    assert regions_of(asked_of(chat, x), labels).tolist() == [0, 1, 0, 1]


def test_maps_of_other_regions_are_told_apart(vlm):
    x, labels = tiny_inputs(vlm), ([[0, 0], [1, 1]], [[0, 1], [0, 1]])
    one, other = (li.attribute(vlm, x, "shapley", regions=np.array(some)) for some in labels)
    assert one.provenance != other.provenance
    assert one.provenance == li.attribute(vlm, x, "shapley", regions=np.array(labels[0])).provenance


def test_pixels_of_a_patch_at_the_edge_of_a_picture():
    labels = torch.arange(12).view(3, 4)
    for box, expected in (
        ([3.6, 0, 4, 1], [3]),
        ([0, 2.8, 1, 3.4], [8]),
        ([-2, -1, 1, 1], [0]),
        ([1, 1, 3, 2], [5, 6]),
    ):
        assert labels[pixels_in(box, labels.shape)].flatten().tolist() == expected


def test_a_region_shares_its_number_on_its_patches():
    values, regions = torch.tensor([[6.0, 1.0]]), torch.tensor([0, 0, 1, -1, 0])
    assert spread(values, regions).tolist() == [[2, 2, 1, 0, 2]]


def test_patches_in_no_region_are_always_seen(vlm):
    x, labels = tiny_inputs(vlm), np.array([[0, -1], [-1, 1]])
    found = li.attribute(vlm, x, "shapley", regions=labels)
    assert torch.allclose(found.image_total.double(), value(vlm, x) - value(vlm, x, 0, 3), atol=1e-4)
    assert (found.values[:, [0, 1], [1, 0]] == 0).all()


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(chat):
    return chat.prepare("is it?", Image.linear_gradient("L").rotate(30).resize((28, 28)).convert("RGB"), answer="a cat")


def covered(picture, other, box):
    made = np.array(picture)
    left, top, right, bottom = (round(side) for side in box)
    made[top:bottom, left:right] = np.asarray(other)[top:bottom, left:right]
    return Image.fromarray(made)


@pytest.mark.parametrize("substrate", ["mean", "blur", "black", "other"])
def test_pixels_in_the_place_of_a_patch(chat, shown, substrate):
    """Each changed picture prepared anew, and scored by itself."""
    picture, other = shown.images[0].picture, Image.effect_mandelbrot((28, 28), (-2, -1, 1, 1), 20).convert("RGB")
    instead = {
        "mean": Image.new("RGB", (28, 28), tuple(round(c) for c in ImageStat.Stat(picture).mean)),
        "blur": picture.filter(ImageFilter.GaussianBlur(28 * 5 / 224)),
        "black": Image.new("RGB", (28, 28)),
        "other": other,
    }[substrate]
    found = li.attribute(chat, shown, substrate=other if substrate == "other" else substrate, unit="answer")
    assert found.value == "logodds" and found.provenance.parameters["substrate"] in (substrate, "picture")

    def worth(picture):
        x = chat.prepare("is it?", picture, answer="a cat")
        return values_of(chat, x, x.everything[None], asked_of(chat, x, unit="answer").target).numbers[0, 0, 0]

    whole = worth(picture)
    lost = [float(whole - worth(covered(picture, instead, box))) for box in found.boxes.view(4, 4).tolist()]
    assert found.values.flatten().tolist() == pytest.approx(lost, abs=1e-4) and max(map(abs, lost)) > 1e-4
    assert float(found.image_total) == pytest.approx(float(whole - worth(instead)), abs=1e-4)


def test_sets_of_pixels_share_the_whole(chat, shown):
    found = li.attribute(chat, shown, "shapley", substrate="mean", value="odds", unit="answer")
    assert found.residual.abs().max() < 1e-4 and found.hide_from is None and found.alternatives
    tokens = li.attribute(chat, shown, "shapley", value="odds", unit="answer")
    assert not torch.allclose(found.values, tokens.values, atol=1e-3)


def test_regions_are_hidden_together(vlm):
    x = tiny_inputs(vlm)
    found = li.attribute(vlm, x, regions=np.array([[0, 0], [1, 2]]))
    assert torch.allclose(found.values[:, 0].sum(1).double(), value(vlm, x) - value(vlm, x, 0, 1), atol=1e-4)
    assert torch.allclose(found.values[:, 1, 1].double(), value(vlm, x) - value(vlm, x, 3), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"substrate": "white"},
            "substrate is 'tokens', 'mean', 'blur', 'black', 'road' or another picture; got 'white'",
        ),
        ({"substrate": "mean", "hide_from": "text"}, "where pixels are changed"),
    ],
)
def test_what_cannot_stand_in_a_place(chat, shown, options, message):
    with pytest.raises(InputError, match=message):
        li.attribute(chat, shown, **options)


def test_pixels_of_a_picture_that_is_not_known(vlm):
    with pytest.raises(ImageError, match="made from processed ones"):
        li.attribute(vlm, tiny_inputs(vlm), substrate="mean")
