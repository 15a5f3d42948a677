"""NaN and infinity are one clear error, whatever reads them, and no finding."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import ModelError
from lvlm_interp.model.finite import first_bad
from lvlm_interp.probes.features import collect_features
from tests.tiny import tiny_inputs, tiny_llava

METHODS = {
    "score": lambda vlm, x: li.score(vlm, x, x.everything[None]),
    "contrast": li.contrast,
    "credit": li.credit,
    "attribute": li.attribute,
    "lens": li.lens,
    "direct": lambda vlm, x: li.direct(vlm, x),
    "features": lambda vlm, x: collect_features(vlm, [x, x], {"stream": "blocks.*.hook_resid_post"}),
    "tuned lens": lambda vlm, x: li.fit_tuned_lens(vlm, [x, tiny_inputs(vlm, seed=2)]),
}


def overflowing(dtype):
    """A projector whose products are beyond what float16 holds, as of pictures with large activations."""
    model = tiny_llava(dtype=dtype)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.mul_(3e4 if dtype == torch.float16 else 1)
    vlm = li.wrap(model)
    x = tiny_inputs(vlm)
    if dtype != torch.float16:
        model.model.language_model.layers[1].mlp.up_proj.weight.data[0, 0] = float("inf")
    return vlm, x


@pytest.mark.parametrize("method", METHODS)
def test_overflow_is_an_error_that_says_where(method):
    vlm, x = overflowing(torch.float16)
    with pytest.raises(ModelError, match=r"(NaN|infinity).*first at 'projector\.hook_out'.*bfloat16"):
        METHODS[method](vlm, x)


@pytest.mark.parametrize("method", METHODS)
def test_bad_weights_are_an_error_that_says_where(method):
    vlm, x = overflowing(torch.float32)
    with pytest.raises(ModelError, match=r"(NaN|infinity).*first at 'blocks\.1\.mlp\.hook_pre_linear'.*weights"):
        METHODS[method](vlm, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nothing_is_answered_from_what_is_no_number(dtype):
    vlm, x = overflowing(dtype)
    with pytest.raises(ModelError, match="gives NaN or infinity for this example"):
        vlm.generate(x, 3)


def test_bad_pixels_are_named():
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    x.model_inputs["pixel_values"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="whose pixel_values hold NaN"):
        li.contrast(vlm, x)


def test_a_capture_shows_what_is_there():
    """Where numbers go wrong is looked for with captures, which hold what the model holds."""
    vlm, x = overflowing(torch.float16)
    assert not vlm.capture(x, "projector.hook_out")["projector.hook_out"].isfinite().all()
    fine = li.wrap(tiny_llava())
    assert first_bad(fine, tiny_inputs(fine)) is None and first_bad(vlm, x) == "projector.hook_out"
