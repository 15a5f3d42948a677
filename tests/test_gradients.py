"""A gradient is of what an edit there does, whatever else the model computes of the same value."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import ModelError
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

NEAR = 1e-3  # two graphs of one pass: sums are taken in another order at most


def slope_of(logits, value):
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    return torch.autograd.grad((logits * weights).sum(), value)[0]


def slope_of_edit(vlm, x, site):
    """The gradient at a tensor of one's own that an edit puts in the place of the value."""
    put = []

    def edit(value):
        put.append(value.detach().clone().requires_grad_())
        return put[0]

    found = vlm.capture(x, "ln_final.hook_out", edits={site: edit}, grad=True)
    return slope_of(found["logits"], put[0])


def need_the_same(vlm, x, site):
    found = vlm.capture(x, site, grad=True)
    slope, expected = slope_of(found["logits"], found[site]), slope_of_edit(vlm, x, site)
    assert expected.abs().max() > 1e-3 and (slope - expected).abs().max() < NEAR * expected.abs().max()


@pytest.mark.parametrize("frozen", [False, True], ids=["weights with gradients", "frozen weights"])
@pytest.mark.parametrize("site", ["hook_embed", "blocks.0.hook_resid_pre", "blocks.1.ple.hook_out"])
def test_inputs_of_each_layer_are_made_before_an_edit_of_the_embeddings(site, frozen):
    """Gemma 4 makes them of the same tensor that enters the first block."""
    vlm = li.wrap(tiny_model("gemma4"))
    vlm.model.requires_grad_(not frozen)
    need_the_same(vlm, tiny_example(vlm, "gemma4"), site)


@pytest.mark.parametrize(
    "site", ["hook_embed", "blocks.1.hook_resid_mid", "blocks.1.attn.hook_v", "ln_final.hook_scale"]
)
def test_a_gradient_is_of_what_an_edit_does(site):
    vlm = li.wrap(tiny_llava())
    need_the_same(vlm, tiny_inputs(vlm), site)


@pytest.mark.parametrize("frozen", [False, True], ids=["weights with gradients", "frozen weights"])
def test_an_example_that_was_made_in_inference_mode(frozen):
    vlm = li.wrap(tiny_llava())
    vlm.model.requires_grad_(not frozen)
    with torch.inference_mode():
        x = tiny_inputs(vlm)
    assert x.model_inputs["pixel_values"].is_inference()
    site = "vision.blocks.0.hook_resid_post"
    slopes = [
        slope_of((found := vlm.capture(y, site, grad=True))["logits"], found[site]) for y in (x, tiny_inputs(vlm))
    ]
    assert torch.equal(*slopes)


def test_a_model_that_was_made_in_inference_mode_has_no_gradients():
    with torch.inference_mode():
        vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    assert vlm.capture(x, "hook_embed")
    with pytest.raises(ModelError, match=r"weights that a graph can hold, and \S+ was made in torch.inference_mode"):
        vlm.capture(x, "hook_embed", grad=True)


def test_what_is_kept_gathers_its_gradient_going_back():
    vlm = li.wrap(tiny_llava())
    found = vlm.capture(tiny_inputs(vlm), site := "hook_embed", grad=True)
    expected = slope_of(found["logits"], found[site])
    found = vlm.capture(tiny_inputs(vlm), site, grad=True)
    weights = torch.randn(found["logits"].shape, generator=torch.Generator().manual_seed(3))
    (found["logits"] * weights).sum().backward()
    assert torch.equal(found[site].grad, expected)
