"""Weights under adapters, and stored in another form: what is read of them is the map that the model computes."""

import pytest
import torch
from torch import nn

import lvlm_interp as li
from lvlm_interp.errors import ModelError
from lvlm_interp.model.weights import map_of
from tests.tiny import tiny_inputs, tiny_llava

HEADS = ["q_proj", "k_proj", "v_proj", "o_proj"]


class Packed(nn.Module):
    """A linear map that keeps its weight as bytes, two numbers in each, as four-bit models do."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.step = linear.weight.detach().abs().amax() / 7
        steps = (linear.weight.detach() / self.step).round().to(torch.int8) + 8
        pairs = steps.flatten().unflatten(0, (-1, 2)).to(torch.uint8)
        self.weight = nn.Parameter((pairs[:, 0] * 16 + pairs[:, 1])[:, None], requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        pairs = torch.cat([self.weight // 16, self.weight % 16], 1).float()
        weight = ((pairs - 8) * self.step).view(self.out_features, self.in_features)
        return nn.functional.linear(x, weight.to(x.dtype), self.bias)


def packed(model):
    """The same model with its linear maps packed."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, Packed(child))
    return model


def with_adapter(model, targets=HEADS):
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return model.eval()


def opened(how):
    vlm = li.wrap(how(tiny_llava()))
    return vlm, tiny_inputs(vlm)


@pytest.fixture(scope="module", params=[with_adapter, packed])
def stored(request):
    return opened(request.param)


@torch.no_grad()
def test_a_map_is_what_its_module_gives(stored):
    vlm, _ = stored
    project = vlm.decoder.layers[1].self_attn.o_proj
    weight, bias = map_of(project)
    rows = torch.randn(5, weight.shape[1])
    expected = project(rows)
    assert torch.allclose(rows @ weight.T + (0 if bias is None else bias), expected, atol=1e-4)
    assert weight.shape == (32, 32)
    kept = getattr(project, "base_layer", project).weight  # the control: what is stored
    assert kept.shape != weight.shape or (kept - weight).abs().max() > 1e-2


def test_all_sites_are_there(stored):
    vlm, x = stored
    plain = li.wrap(tiny_llava())
    assert list(vlm.sites) == list(plain.sites) and not vlm.missing
    found = vlm.capture(x, "*")
    layer = vlm.decoder.layers[1]
    queries = layer.self_attn.q_proj(layer.input_layernorm(found["blocks.1.hook_resid_pre"]))
    assert torch.allclose(found["blocks.1.attn.hook_q"].flatten(-2), queries, atol=1e-5)


def test_logits_are_taken_apart(stored):
    vlm, x = stored
    found = li.direct(vlm, x)
    assert torch.allclose(found.total, found.logit, rtol=1e-4, atol=1e-4)
    assert found.others.abs().max() < 1e-4  # nothing is left over: heads are all that attention adds


def test_heads_add_up_to_attention_in_a_cache(stored):
    lens = pytest.importorskip("lvlm_interp.adapters.transformer_lens")
    vlm, x = stored
    ends = ("hook_attn_out", "hook_mlp_out", "hook_resid_*", "attn.hook_z")
    found = vlm.capture(x, [f"blocks.*.{end}" for end in ends])
    kept = {name: value for name, value in found.items() if not name.startswith("vision.")}
    cache = lens.as_activation_cache(vlm, type(found)(kept, found.choice))
    heads = cache.stack_head_results()
    for layer in range(3):
        assert torch.allclose(heads[4 * layer : 4 * layer + 4].sum(0), kept[f"blocks.{layer}.hook_attn_out"], atol=1e-4)
    parts = cache.logit_attrs(cache.decompose_resid(), 7).sum(0)
    assert torch.allclose(parts, found["logits"][..., 7], atol=1e-3)


def test_an_adapter_that_is_put_in_later_is_seen():
    """What was found among the modules is found anew: a query is what the layer with its adapter gives."""
    vlm = li.wrap(tiny_llava())
    x, site = tiny_inputs(vlm), "blocks.1.attn.hook_q"
    before = vlm.capture(x, site)[site]
    with_adapter(vlm.model)
    layer = vlm.decoder.layers[1]
    found = vlm.capture(x, [site, "blocks.1.hook_resid_pre"])
    queries = layer.self_attn.q_proj(layer.input_layernorm(found["blocks.1.hook_resid_pre"]))
    assert torch.allclose(found[site].flatten(-2), queries, atol=1e-5)
    assert (found[site] - before).abs().max() > 1e-2
    vlm.model.disable_adapters()
    assert torch.allclose(vlm.capture(x, site)[site], before, atol=1e-5)


def test_a_head_that_is_replaced_is_read_out():
    vlm = li.wrap(tiny_llava())
    x, last = tiny_inputs(vlm), "blocks.2.hook_resid_post"
    vlm.readout  # noqa: B018  found once
    vlm.model.lm_head = nn.Linear(32, 200, bias=False)
    found = vlm.capture(x, last)
    assert torch.allclose(vlm.readout(found[last]), found["logits"], atol=1e-5)


def test_what_is_no_linear_map():
    with pytest.raises(ModelError, match="Tanh is no linear map"):
        map_of(nn.Tanh())
