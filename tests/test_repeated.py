"""Modules that stand at several places of a model (weights shared by being one object), and blocks out of count."""

import copy
import math

import pytest
import torch
from torch import nn

import lvlm_interp as li
from lvlm_interp.errors import ModelError, SiteError
from tests.families import tiny_model
from tests.families.shared.tiny import ROUNDING
from tests.tiny import tiny_inputs, tiny_llava


def blocks_of(model):
    return model.model.language_model.layers


def shared_between(name, model, first=0, other=1):
    """The model, in whose other block a module is that of the first."""
    setattr(blocks_of(model)[other], name, getattr(blocks_of(model)[first], name))
    return model


def apart(model):
    """The same weights in modules of their own."""
    made = tiny_llava()
    made.load_state_dict(model.state_dict())
    return made


@torch.no_grad()
def plain(model, x):
    """Transformers' own pass: the logits, and the stream in front of each block."""
    out = model(**x.model_inputs, use_cache=False, output_hidden_states=True)
    return out.logits, out.hidden_states


def test_a_block_that_stands_twice_is_refused():
    """Both would keep their keys and values in one place, and a hook on one is a hook on the other."""
    model = tiny_llava()
    blocks_of(model)[2] = blocks_of(model)[0]
    with pytest.raises(ModelError, match=r"blocks 0 and 2 have one LlamaAttention .* a layer_idx of its own"):
        li.wrap(model)
    blocks_of(model)[2] = copy.deepcopy(blocks_of(model)[0])
    blocks_of(model)[2].self_attn.layer_idx = 2  # as it says
    vlm = li.wrap(model)
    assert torch.allclose(vlm.run(x := tiny_inputs(vlm)), plain(model, x)[0]) and li.credit(vlm, x)


def test_attention_that_two_blocks_share_is_refused():
    with pytest.raises(ModelError, match="blocks 0 and 1 have one LlamaAttention"):
        li.wrap(shared_between("self_attn", tiny_llava()))
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    shared_between("self_attn", vlm.model)
    with pytest.raises(ModelError, match="blocks 0 and 1 have one LlamaAttention"):  # once it is open as well
        li.credit(vlm, x)


@pytest.mark.parametrize("number", [0, 7, None])
def test_blocks_that_count_themselves_wrongly_are_refused(number):
    model = tiny_llava()
    blocks_of(model)[1].self_attn.layer_idx = number
    with pytest.raises(ModelError, match=rf"block 1 counts itself as {number} \(self_attn.layer_idx\)"):
        li.wrap(model)


def test_a_block_that_was_taken_out_leaves_the_others_to_be_counted_anew():
    model = tiny_llava()
    del blocks_of(model)[0]
    model.config.text_config.num_hidden_layers = 2
    with pytest.raises(ModelError, match=r"block 0 counts itself as 1 .* all anew.* block.self_attn.layer_idx = n"):
        li.wrap(model)
    for number, block in enumerate(blocks_of(model)):
        block.self_attn.layer_idx = number
    vlm = li.wrap(model)
    x = tiny_inputs(vlm)
    answer = plain(model, x)[0][0, x.answer_positions - 1].log_softmax(-1).gather(1, x.answer_ids[:, None])[:, 0]
    split = li.credit(vlm, x, value="logprob", unit="token")
    chance = math.log(vlm.readout.vocabulary)  # it counts from there
    assert torch.allclose(split.numbers[0][:, -1].float(), answer + chance, atol=ROUNDING)


def test_blocks_in_another_order_are_read():
    model = tiny_llava()
    model.model.language_model.layers = nn.ModuleList(reversed([*blocks_of(model)]))
    vlm = li.wrap(model)
    x = tiny_inputs(vlm)
    logits, stream = plain(model, x)
    found = vlm.capture(x, "blocks.*.hook_resid_pre")
    assert torch.allclose(found["logits"], logits, atol=ROUNDING)
    for number, value in enumerate(stream[:-1]):
        assert torch.allclose(found[f"blocks.{number}.hook_resid_pre"], value, atol=ROUNDING * value.abs().max())
    assert li.check(vlm, x).ok


@pytest.mark.parametrize(
    ("name", "lost"),
    [("mlp", "hook_mlp_out"), ("input_layernorm", "ln1.hook_scale")],
)
def test_sites_of_what_two_blocks_share_are_missing_and_the_rest_is_right(name, lost):
    shared = shared_between(name, tiny_llava())
    vlm, other = li.wrap(shared), li.wrap(apart(shared))
    x = tiny_inputs(vlm)
    for block in (0, 1):
        with pytest.raises(SiteError, match=rf"stands at layers.0.{name} and at layers.1.{name}, the same object"):
            vlm.capture(x, f"blocks.{block}.{lost}")
    found, expected = vlm.capture(x, "*"), other.capture(x, "*")
    assert {*expected} - {*found} == {*vlm.missing} and f"blocks.2.{lost}" in found
    assert all(torch.equal(value, expected[site]) for site, value in found.items())
    assert torch.equal(li.credit(vlm, x).numbers, li.credit(other, x).numbers) and li.check(vlm, x).ok


def test_direct_attribution_of_an_mlp_that_two_blocks_share_is_refused():
    """What it adds would be called neither block's."""
    vlm = li.wrap(shared_between("mlp", tiny_llava()))
    with pytest.raises(SiteError, match=r"blocks.0.hook_mlp_out.* one LlamaMLP stands at layers.0.mlp"):
        li.direct(vlm, tiny_inputs(vlm))


def test_direct_attribution_where_blocks_share_a_norm():
    shared = shared_between("input_layernorm", tiny_llava())
    vlm, other = li.wrap(shared), li.wrap(apart(shared))
    found, expected = (li.direct(one, tiny_inputs(one)) for one in (vlm, other))
    assert torch.equal(found.heads, expected.heads) and torch.equal(found.mlps, expected.mlps)


@pytest.mark.parametrize("method", [li.direct, li.lens])
def test_a_final_norm_that_stands_in_a_block_too_is_named(method):
    model = tiny_llava()
    blocks_of(model)[1].input_layernorm = model.model.language_model.norm
    vlm = li.wrap(model)
    with pytest.raises(SiteError, match=r"ln_final.hook_out.* layers.1.input_layernorm and at norm"):
        method(vlm, tiny_inputs(vlm))


def test_one_module_at_two_places_of_a_block():
    model = tiny_llava()
    attention = blocks_of(model)[0].self_attn
    attention.k_proj = attention.v_proj
    vlm = li.wrap(model)
    x = tiny_inputs(vlm)
    assert {*vlm.missing} == {"blocks.0.attn.hook_k", "blocks.0.attn.hook_v"}
    with pytest.raises(SiteError, match=r"block 0 .* one Linear stands at layers.0.self_attn.k_proj"):
        li.direct(vlm, x)


def test_a_block_of_the_vision_tower_that_stands_twice():
    model = tiny_llava()
    tower = li.wrap(model).vision
    layers = next(module for module in tower.modules() if isinstance(module, nn.ModuleList))
    layers[1] = layers[0]
    vlm = li.wrap(model)
    x = tiny_inputs(vlm)
    found = vlm.capture(x, "*")
    assert not any(name.startswith("vision.") for name in found) and "projector.hook_out" in found
    assert torch.allclose(found["logits"], plain(model, x)[0], atol=ROUNDING) and li.check(vlm, x).ok


@pytest.mark.parametrize("name", ["idefics", "mllama", "nemotron_h_omni"])
def test_layers_that_keep_nothing_of_their_own_are_not_counted(name):
    assert li.wrap(tiny_model(name)).blocks
