"""Models in float64: the softmax of a head that is read is as fine as the one that the model takes."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.model import attention
from lvlm_interp.model.finite import need_finite
from lvlm_interp.opening.rounding import apart
from tests.families import tiny_example, tiny_model

TYPES = ("llava", "blip-2", "internvl", "llama4", "chameleon", "got_ocr2")


def double(name, kernel):
    vlm = li.wrap(tiny_model(name, kernel).double())
    return vlm, tiny_example(vlm, name)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("name", TYPES)
def test_every_check_holds(name, kernel):
    """Of some eager functions the softmax is in float32, of others in what the model is in; kernels are as fine."""
    vlm, x = double(name, kernel)
    assert li.check(vlm, x).ok, li.check(vlm, x).to_frame().to_string()
    assert apart(vlm.run(x), vlm.capture(x, "*")["logits"]) < 1e-12


def test_a_softmax_in_float32_everywhere_is_noticed(monkeypatch):
    monkeypatch.setattr(attention, "_precision", lambda *_: torch.float32)
    vlm, x = double("llama4", "sdpa")
    assert apart(vlm.run(x), vlm.capture(x, "*")["logits"]) > 1e-9


def test_rows_that_see_nothing_are_refused_where_they_would_be_nan():
    vlm, x = double("llava", "eager")
    longer = x.with_answer([*x.answer_ids.tolist()] * 2, vlm.token_strings([*x.answer_ids.tolist()] * 2), "")
    with pytest.raises(InputError, match=r"in float64, transformers' eager attention .*set_attn_implementation"):
        vlm.batch([x, longer])
    assert len(vlm.batch([x, x]).examples) == 2
    with pytest.raises(ModelError, match="its softmax is in float32"):
        need_finite(vlm, x, torch.tensor(torch.nan))
    sdpa, x = double("llava", "sdpa")
    assert sdpa.run(sdpa.batch([x, longer])).isfinite().all()


def test_lowest_numbers_are_alike():
    """A token that is never said has the lowest number of its type."""
    wide = torch.tensor([torch.finfo(torch.float64).min, 1.0], dtype=torch.float64)
    assert apart(wide, wide.float()) == 0 and apart(wide, torch.tensor([0.0, 1.0])) > 1e38
