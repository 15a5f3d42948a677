"""Gradients by pixels: which patch each of a processor's numbers is of, and derivatives that are those of the value."""

import numpy as np
import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.attribution.asked import asked_of
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.heatmaps.by_pixels import ByPixels
from tests import saved
from tests.families import tiny_model
from tests.tiny import tiny_inputs, tiny_llava

DRAW = np.random.default_rng(0)
FAMILIES = ["llava", "internvl", "idefics3", "llava_next", "qwen2_vl", "gemma3", "paligemma"]


def picture(width, height):
    return Image.fromarray((DRAW.random((height, width, 3)) * 255).astype("uint8"))


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava(), saved.processor("llava"))


@pytest.fixture(scope="module")
def x(vlm):
    return vlm.prepare("a b", picture(60, 44), answer="cat dog")


def known(names):
    return [name for name in names if name in saved.SAVED]


@pytest.mark.parametrize("family", known(FAMILIES))
def test_each_number_is_of_the_patch_that_changes_it(family):
    vlm = li.wrap(tiny_model(family), saved.processor(family))
    x = vlm.prepare("what is it", picture(71, 50), answer="ab")
    of = ByPixels(asked_of(vlm, x))
    patches, hiding = of._patches, of._hiding
    count = of.asked.cells.numel()
    assert {*patches.tolist()} - {-1} == {*range(count)}
    for patch in {0, 1, count // 2, count - 1}:
        white = hiding.drawn([float(number == patch) for number in range(count)])
        changed, own = of._share(white).flatten(), patches == patch
        assert changed[own].mean() > 0.6 and changed[own].sum() > 0.6 * changed.clamp(min=0).sum()
        assert changed[~own].mean() < 0.1
    assert hiding.substrate == "black"


def fine(side=9):
    pixels = type(saved.processor("llava").image_processor)
    wide = 14 * side
    made = pixels(size={"shortest_edge": wide}, crop_size={"height": wide, "width": wide})
    return li.wrap(tiny_llava(side=side), saved.processor("llava", pixels=made))


@pytest.mark.parametrize(
    "size", [(18, 18), (19, 23), (28, 28), (31, 57), (64, 40), (126, 126), (200, 133), (1000, 700)]
)
def test_numbers_of_any_size_are_of_the_patch_that_the_model_sees(size):
    """Of a picture that is made larger too, where one of its pixels is several of the model's."""
    vlm = fine()
    of = ByPixels(asked_of(vlm, vlm.prepare("a b", picture(*size), answer="cat")))
    rows = torch.arange(126) // 14
    expected = (rows[:, None] * 9 + rows).expand(3, 126, 126)
    assert (of._patches.view(3, 126, 126) != expected).double().mean() < 0.002


def test_a_map_is_that_of_the_model_s_own_derivative():
    vlm = fine()
    x = vlm.prepare("a b", picture(28, 28), answer="cat")
    found = li.attribute(vlm, x, "grad_x_input", by="pixels", value="logprob", target=0, unit="token")
    leaf = x.model_inputs["pixel_values"].clone().requires_grad_()
    logits = vlm.model(**{**x.model_inputs, "pixel_values": leaf}).logits[0, x.answer_start - 1].log_softmax(-1)
    (slope,) = torch.autograd.grad(logits[int(x.answer_ids[0])], leaf)
    expected = (slope * leaf).detach().reshape(3, 9, 14, 9, 14).sum((0, 2, 4))
    torch.testing.assert_close(found.values[0], expected, atol=0.02 * float(expected.abs().max()), rtol=0.02)


def test_too_few_pixels_for_patches(vlm):
    x = vlm.prepare("a b", picture(1, 1), answer="cat")
    with pytest.raises(ImageError, match=r"1 × 1 pixels has too few for 2 × 2 patches.*enlarge it"):
        li.attribute(vlm, x, "gradient", by="pixels")


def test_totals_and_noise_are_of_this_picture(vlm):
    grey, other = Image.new("RGB", (28, 28), (120, 120, 120)), picture(28, 28)
    x = vlm.prepare("a b", [grey, other], answer="cat")
    one, two = (li.attribute(vlm, x, "grad_x_input", by="pixels", image=image) for image in (0, 1))
    for found in (one, two):
        torch.testing.assert_close(found.image_total, found.values.sum((1, 2)))
    assert not torch.allclose(one.image_total, two.image_total)
    of, beside = (ByPixels(asked_of(vlm, vlm.prepare("a b", [grey, y], answer="cat"))) for y in (grey, other))
    assert of.spread == beside.spread < 1 < beside.features.max() - beside.features.min()
    assert two.values.abs().sum() > 0


def test_other_pictures_are_of_no_patch(vlm):
    x = vlm.prepare("a b", [picture(60, 44), picture(30, 30)], answer="cat")
    for image in (0, 1):
        tiles = ByPixels(asked_of(vlm, x, image))._patches.view(2, -1)
        assert (tiles[image] >= 0).all() and (tiles[1 - image] == -1).all()


def test_sums_stay(vlm, x):
    of = ByPixels(asked_of(vlm, x))
    values = torch.randn(3, *of.features.shape[1:], dtype=torch.float64)
    torch.testing.assert_close(of.by_patch(values).sum(1), values.flatten(1).sum(1))


def test_derivatives_are_those_of_the_value(x):
    vlm = li.wrap(tiny_llava(dtype=torch.float64), saved.processor("llava"))
    x = vlm.prepare("a b", picture(60, 44), answer="cat dog")
    of = ByPixels(asked_of(vlm, x, value="logprob", unit="answer"))
    leaf = of.features.requires_grad_()
    (slope,) = torch.autograd.grad(of(leaf)[0, 0], leaf)
    for patch in range(4):
        way = (of._patches == patch).view(leaf.shape).double()
        with torch.no_grad():
            ahead, behind = (float(of(leaf + sign * 1e-3 * way)[0, 0]) for sign in (1, -1))
        assert float((slope * way).sum()) == pytest.approx((ahead - behind) / 2e-3, rel=1e-2, abs=1e-5)
    at_once = li.attribute(vlm, x, "gradient", by="pixels", value="logprob", unit="answer")
    lengths = [float(slope.flatten()[of._patches == patch].norm()) for patch in range(4)]
    assert at_once.values[0].flatten().tolist() == pytest.approx(lengths, rel=1e-4)


@pytest.mark.parametrize("baseline", ["mean", "blur", "black", picture(20, 20)])
def test_a_way_between_pictures_adds_up(vlm, x, baseline):
    asked = {"unit": "answer", "value": "logit"}
    few, many = (
        li.attribute(vlm, x, "integrated_gradients", by="pixels", baseline=baseline, steps=steps, **asked)
        for steps in (2, 128)
    )
    assert abs(float(many.residual)) < 0.2 and abs(float(few.residual)) > 2 * abs(float(many.residual))
    named = baseline if isinstance(baseline, str) else "picture"
    assert many.provenance.parameters["baseline"] == named and many.provenance.parameters["by"] == "pixels"
    assert (many.provenance.parameters["picture"] is None) == isinstance(baseline, str)
    seen = li.attribute(vlm, x, substrate=baseline, regions=1, **asked)
    torch.testing.assert_close(many.image_total, seen.image_total, atol=1e-4, rtol=1e-4)


def test_what_is_no_pixel_stays(vlm):
    """Padding, other pictures, and numbers that say where a patch stands: noise would move it."""
    x = vlm.prepare("a b", [picture(60, 44), picture(30, 30)], answer="cat")
    of = ByPixels(asked_of(vlm, x, 0))
    leaf = of.features.requires_grad_()
    (slope,) = torch.autograd.grad(of(leaf)[0, 0], leaf)
    tiles = slope[0]
    assert (tiles[1] == 0).all() and (tiles[0] != 0).any()


def test_by_pixels_is_not_by_tokens(vlm, x):
    one, other = (li.attribute(vlm, x, "grad_x_input", by=by) for by in ("tokens", "pixels"))
    with pytest.raises(InputError, match="their by are not the same"):
        one - other


def test_what_has_no_picture(vlm):
    x = tiny_inputs(vlm)
    with pytest.raises(ImageError, match="original picture"):
        li.attribute(vlm, x, "gradient", by="pixels")


BY_PIXELS = "integrated_gradients", "by pixels a baseline is 'mean', 'blur', 'black' or another picture"
WRONG = {
    "no such way": ("gradient", {"by": "patches"}, "by is 'tokens' or 'pixels'|by=…"),
    "a picture by tokens": ("integrated_gradients", {"baseline": "blur"}, "by tokens a baseline is 'mean', 'zero'"),
    "nothing by pixels": (
        "integrated_gradients",
        {"by": "pixels", "baseline": "zero"},
        "by pixels a baseline is 'mean'",
    ),
    "what depends": ("integrated_gradients", {"by": "pixels", "baseline": "road"}, "by pixels a baseline is 'mean'"),
    "tokens": ("integrated_gradients", {"by": "pixels", "baseline": "tokens"}, "by pixels a baseline is 'mean'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_parameters_that_are_none(vlm, x, name):
    method, parameters, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        li.attribute(vlm, x, method, **parameters)
