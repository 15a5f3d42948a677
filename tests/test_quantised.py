"""Quantised layers as packages build them: scales that move, weights of a type of their own, rows that mix."""

import pytest
import torch
from torch import nn

import lvlm_interp as li
from lvlm_interp.errors import InputError, LvlmInterpWarning, ModelError
from lvlm_interp.model.identity import fingerprint
from lvlm_interp.opening.masked import masked_pass
from tests.test_maps import Packed
from tests.tiny import tiny_inputs, tiny_llava


class State:
    """Where scales are from the first pass on, and from which size on numbers are not rounded."""

    SCB, threshold = None, 2.0


class Int8(nn.Module):
    """LLM.int8(): what is read is rounded row by row, but for the columns in which any row has a large number."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features, self.bias, self.state = (
            linear.in_features,
            linear.out_features,
            None,
            State(),
        )
        scales = linear.weight.detach().abs().amax(1) / 127
        steps = (linear.weight.detach() / scales[:, None]).round().to(torch.int8)
        self.weight, self.bias = nn.Parameter(steps, requires_grad=False), linear.bias
        self.weight.SCB = scales

    def forward(self, x):
        if self.state.SCB is None:
            self.state.SCB, self.weight.SCB = self.weight.SCB, None
        rows = x.flatten(0, -2)
        large = (rows.abs() >= self.state.threshold).any(0) if self.state.threshold else torch.zeros(()).bool()
        steps = rows.abs().masked_fill(large, 0).amax(1, keepdim=True).clamp(min=1e-9) / 15
        read = torch.where(large, rows, (rows / steps).round() * steps)
        weight = self.weight.float() * self.state.SCB[:, None]
        return nn.functional.linear(read, weight, self.bias).unflatten(0, x.shape[:-1])


class Scaled(torch.Tensor):
    """A weight of a type of its own, as torchao's: it can be read by few functions, and summed by none."""

    @staticmethod
    def __new__(cls, steps, scale):
        return torch.Tensor._make_wrapper_subclass(cls, steps.shape, dtype=scale.dtype)

    def __init__(self, steps, scale):
        self.steps, self.scale, self.scheme = steps, scale, "weights"

    def __tensor_flatten__(self):
        return ["steps", "scale"], {"scheme": self.scheme}

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        plain = [one.steps * one.scale if isinstance(one, Scaled) else one for one in args]
        if function is torch.ops.aten.detach.default:
            return Scaled(args[0].steps, args[0].scale)
        if function is torch.ops.aten.t.default:
            return plain[0].t()
        raise NotImplementedError(f"{function} of {cls.__name__}")


def scaled(linear):
    scale = linear.weight.detach().abs().amax() / 127
    linear.weight = nn.Parameter(
        Scaled((linear.weight.detach() / scale).round().to(torch.int8), scale), requires_grad=False
    )
    return linear


def quantised(make):
    model = tiny_llava()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and name != "lm_head":
                setattr(module, name, make(child))
    return model


@pytest.fixture
def int8():
    vlm = li.wrap(quantised(Int8))
    return vlm, tiny_inputs(vlm)


def coalitions(x):
    return torch.stack(
        [x.everything, x.hidden("image"), x.hidden("context"), x.hidden("image", "question") | x.where("template")]
    )


def farthest(vlm, x):
    visible = coalitions(x)
    slowly = torch.stack([masked_pass(vlm, x, one) for one in visible])
    return (li.score(vlm, x, visible).logits() - slowly).abs().max()


def test_rows_that_mix_are_computed_as_one_masked_pass(int8):
    vlm, x = int8
    with pytest.warns(LvlmInterpWarning, match=r"\(Int8\) computes a row by what stands beside it.*llm_int8_threshold"):
        assert farthest(vlm, x) < 1e-4
    with pytest.warns(LvlmInterpWarning, match="beside it"):
        assert li.score(vlm, x, x.everything[None]).rows == x.length


def test_rows_that_do_not_mix_are_packed(int8, recwarn):
    vlm, x = int8
    mixed = vlm.run(x)
    for module in vlm.model.modules():
        if isinstance(module, Int8):
            module.state.threshold = 0.0
    assert (vlm.run(x) - mixed).abs().max() > 1e-3  # the control
    assert farthest(vlm, x) < 1e-4 and not vlm.not_side_by_side([x.length] * 2)
    assert li.score(vlm, x, coalitions(x)).rows < 4 * x.length and not recwarn.list


def test_rows_that_mix_do_not_stand_in_a_batch(int8):
    vlm, x = int8
    with pytest.raises(InputError, match=r"beside it.*Run them one by one"):
        vlm.batch([x, x])


def test_the_fingerprint_of_8_bits(int8):
    """Scales move at the first pass and belong to it before and after; so does the threshold."""
    vlm, x = int8
    assert fingerprint(quantised(Int8)) == vlm.fingerprint
    vlm.run(x)
    found = [vlm.fingerprint]
    layer = vlm.decoder.layers[1].self_attn.q_proj
    layer.state.SCB[3] *= 2
    found += [vlm.fingerprint, vlm.identity]
    layer.weight.data[0, 0] ^= 1
    found += [vlm.fingerprint]
    layer.state.threshold = 3.0
    found += [vlm.fingerprint]
    assert found[1] == found[2] and len(set(found)) == 4


def test_a_weight_of_a_type_of_its_own():
    vlm = li.wrap(quantised(scaled))
    x = tiny_inputs(vlm)
    assert farthest(vlm, x) < 1e-4
    found = li.direct(vlm, x)
    assert torch.allclose(found.total, found.logit, atol=1e-4) and found.others.abs().max() < 1e-4
    before, weight = vlm.fingerprint, vlm.decoder.layers[1].self_attn.q_proj.weight
    weight.steps[0, 0] ^= 1
    after = vlm.fingerprint
    weight.scale.mul_(2)
    louder = vlm.fingerprint
    weight.scheme = "activations too"
    assert len({before, after, louder, vlm.fingerprint}) == 4


def test_a_scale_that_is_no_number_is_refused():
    model = quantised(scaled)
    model.base_model.language_model.layers[0].mlp.up_proj.weight.scale.fill_(torch.nan)
    with pytest.raises(ModelError, match=r"1 weights .*mlp.up_proj.weight"):
        li.wrap(model)


class Cut(Packed):
    """A layer whose kernel knows no gradients, as those of 4 bits on some CPUs."""

    def forward(self, x):
        return super().forward(x.detach())


def test_gradients_that_would_be_cut_off_are_refused():
    vlm = li.wrap(tiny_llava())
    x, site = tiny_inputs(vlm), "blocks.0.hook_resid_post"
    vlm.capture(x, site, grad=True)
    vlm.decoder.layers[1].mlp.up_proj = Cut(nn.Linear(32, 64, bias=False))
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj \(Cut\) does not"):
        vlm.capture(x, site, grad=True)


def test_rounded_layers_hand_gradients_on():
    vlm = li.wrap(quantised(Packed))
    x, site = tiny_inputs(vlm), "blocks.0.hook_resid_post"
    found = vlm.capture(x, site, grad=True)
    assert torch.autograd.grad(found["logits"][0, -1, 7], found[site])[0].abs().max() > 0


def test_what_quantize_dynamic_makes_is_refused():
    """It packs weights out of sight, and rounds what it reads by the largest number of all rows."""
    model = torch.ao.quantization.quantize_dynamic(tiny_llava(), {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ModelError, match=r"quantize_dynamic.*cannot be read.*torchao"):
        li.wrap(model)


def test_what_quantize_dynamic_makes_of_an_open_model_is_refused():
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    li.score(vlm, x, x.everything[None])
    torch.ao.quantization.quantize_dynamic(vlm.model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
    with pytest.raises(ModelError, match=r"quantize_dynamic.*cannot be read.*torchao"):
        li.score(vlm, x, x.everything[None])
