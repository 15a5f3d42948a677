"""Captures and models open in transformer_lens and nnsight, and the model stays as it was."""

import warnings

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, LvlmInterpWarning, ModelError, SiteError
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

FOR_ANALYSIS = ["blocks.*.hook_resid_*", "blocks.*.hook_attn_out", "blocks.*.hook_mlp_out", "blocks.*.attn.hook_z"]
LAST = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def lens():
    return pytest.importorskip("lvlm_interp.adapters.transformer_lens")


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava("eager"))


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


@pytest.fixture(scope="module")
def captured(vlm, x):
    return vlm.capture(x, FOR_ANALYSIS)


@pytest.fixture(scope="module")
def cache(lens, vlm, captured):
    return lens.as_activation_cache(vlm, captured)


def state_of(model):
    """Everything that an adapter might leave behind in a model."""
    modules = {name: (type(m), "forward" in vars(m), len(m._forward_hooks)) for name, m in model.named_modules()}
    return modules, str(model.config), {name: weight.clone() for name, weight in model.state_dict().items()}


def same_state(one, other):
    return one[:2] == other[:2] and all(torch.equal(one[2][k], other[2][k]) for k in one[2])


# --- a capture as an ActivationCache ----------------------------------------------------------------------------------


def test_residuals_accumulate(cache, captured):
    stack, labels = cache.accumulated_resid(return_labels=True)
    assert labels == ["0_pre", "1_pre", "2_pre", "final_post"]
    assert torch.equal(stack[1], captured["blocks.1.hook_resid_pre"])
    assert torch.equal(stack[-1], captured[LAST])


def test_accumulated_residuals_through_the_norm_are_the_logit_lens(cache, captured, vlm):
    stack = cache.accumulated_resid(apply_ln=True)
    assert torch.allclose(vlm.readout.unembed(stack[-1]), captured["logits"], atol=1e-5)
    assert not torch.allclose(vlm.readout.unembed(stack[-2]), captured["logits"], atol=1e-2)


def test_parts_of_the_residual_add_up(cache, captured):
    parts, labels = cache.decompose_resid(return_labels=True)
    assert labels[:3] == ["embed", "0_attn_out", "0_mlp_out"] and len(labels) == 7
    assert torch.allclose(parts.sum(0), captured[LAST], atol=1e-5)
    assert not torch.allclose(parts[1:].sum(0), captured[LAST], atol=1e-2)


def test_heads_add_up_to_attention(cache, captured):
    heads, labels = cache.stack_head_results(return_labels=True)
    assert labels[:5] == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"]
    for layer in range(3):
        added = captured[f"blocks.{layer}.hook_attn_out"]
        assert torch.allclose(heads[4 * layer : 4 * layer + 4].sum(0), added, atol=1e-5)
        assert not torch.allclose(heads[4 * layer : 4 * layer + 3].sum(0), added, atol=1e-2)


def test_logit_attributions_add_up_to_the_logit(cache, captured):
    parts = cache.decompose_resid()
    assert torch.allclose(cache.logit_attrs(parts, 7).sum(0), captured["logits"][..., 7], atol=1e-4)
    assert not torch.allclose(cache.logit_attrs(parts, 8).sum(0), captured["logits"][..., 7], atol=1e-2)
    against = cache.logit_attrs(parts, 7, incorrect_tokens=8).sum(0)
    assert torch.allclose(against, captured["logits"][..., 7] - captured["logits"][..., 8], atol=1e-4)
    with pytest.raises(InputError, match="give token ids"):
        cache.logit_attrs(parts, "seven")


def test_gemma_norms_count_their_weight_from_one(lens):
    gemma = li.wrap(tiny_model("gemma3"))
    captured = gemma.capture(tiny_example(gemma, "gemma3"), FOR_ANALYSIS)
    cache = lens.as_activation_cache(gemma, captured)
    attributed = cache.logit_attrs(cache.decompose_resid(), 7).sum(0)
    assert torch.allclose(attributed, captured["logits"][..., 7], atol=1e-3)
    assert captured["logits"][..., 7].abs().max() > 0.1
    with pytest.raises(ModelError, match="a norm or gate stands between"):
        cache.stack_head_results()


def test_heads_behind_a_norm_are_no_sum(lens):
    kosmos = li.wrap(tiny_model("kosmos-2"))
    cache = lens.as_activation_cache(kosmos, kosmos.capture(tiny_example(kosmos, "kosmos-2"), FOR_ANALYSIS))
    with pytest.raises(ModelError, match="no attention output that splits by head"):
        cache.stack_head_results()


def test_positions_may_be_chosen(lens, vlm, x, captured):
    some = lens.as_activation_cache(vlm, vlm.capture(x, FOR_ANALYSIS, positions="answer"))
    assert torch.allclose(some.decompose_resid().sum(0), captured[LAST][:, -3:], atol=1e-5)


def test_a_missing_site_is_named(lens, vlm, x):
    cache = lens.as_activation_cache(vlm, vlm.capture(x, "blocks.*.hook_resid_pre"))
    with pytest.raises(
        SiteError, match=r"'blocks\.2\.hook_resid_post' is not in this cache.*'blocks\.\*\.hook_resid_post'"
    ):
        cache.accumulated_resid()
    with pytest.raises(SiteError, match=r"capture 'blocks\.\*\.hook_attn_out' too"):
        cache.decompose_resid()
    with pytest.raises(SiteError, match=r"capture 'blocks\.\*\.attn\.hook_z' too"):
        cache.stack_head_results()
    with pytest.raises(SiteError, match=r"'ln_final\.hook_scale' is not.*capture 'blocks\.\*\.hook_resid_post'"):
        cache.logit_attrs(torch.ones(1, 1, 17, 32), 7)
    assert cache.accumulated_resid(layer=2).shape == (3, 1, 17, 32)


@pytest.mark.parametrize("options", [{"heads": [0]}, {"reduce": "mean"}])
def test_other_axes_are_refused(lens, vlm, x, options):
    with pytest.raises(SiteError, match="all heads, unreduced"):
        lens.as_activation_cache(vlm, vlm.capture(x, "blocks.*.attn.hook_z", **options))


# --- a model as a bridge ----------------------------------------------------------------------------------------------


def test_the_bridge_is_the_same_model_on_a_copy(lens, vlm, x):
    plain, before = vlm.run(x), state_of(vlm.model)
    bridge = lens.as_bridge(vlm)
    inputs = dict(x.model_inputs)
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(ids, **inputs)
    assert torch.allclose(getattr(logits, "logits", logits), plain, atol=1e-5)
    assert len(cache) > 100
    assert same_state(state_of(vlm.model), before)
    assert torch.equal(vlm.run(x), plain)
    # The control: on the model itself it would have replaced modules, and the check would have seen it.
    other = tiny_llava("eager")
    before = state_of(other)
    lens.build_bridge_from_module(other, type(other).__name__, hf_config=other.config)
    assert state_of(other)[0] != before[0]


def test_a_bridge_of_a_model_with_an_adapter_says_what_its_weights_lack(lens):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(tiny_llava(), config).eval()
    with pytest.warns(LvlmInterpWarning, match=r"such as '.*q_proj', this bridge has weights that are a part"):
        lens.as_bridge(li.wrap(adapted.get_base_model()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", LvlmInterpWarning)
        lens.as_bridge(li.wrap(adapted.merge_and_unload()))


def test_a_bridge_would_turn_the_weights_of_an_adapted_output(lens):
    """What TransformerLens makes of such a module is its stored weight, not transposed: of square ones none notices."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(tiny_llava(), config).eval()
    with pytest.raises(ModelError, match=r"attention output of block 0.*merge it first"):
        lens.as_bridge(li.wrap(adapted.get_base_model()))
    merged = adapted.merge_and_unload()
    stored = merged.model.language_model.layers[1].self_attn.o_proj.weight.detach().clone()
    bridge = lens.as_bridge(li.wrap(merged))
    assert torch.equal(bridge.W_O[1].flatten(0, 1), stored.T)


def test_a_family_without_a_bridge_is_refused(lens):
    with pytest.raises(ModelError, match=r"no bridge for SmolVLM.*LlavaForConditionalGeneration.*as_activation_cache"):
        lens.as_bridge(li.wrap(tiny_model("smolvlm")))


# --- a model under nnsight --------------------------------------------------------------------------------------------


def test_nnsight_traces_the_same_weights(vlm, x):
    plain, before = vlm.run(x), state_of(vlm.model)
    traced = vlm.nnsight
    with torch.no_grad(), traced.trace(**x.model_inputs):
        residual = traced.model.language_model.layers[1].output.save()
        logits = traced.output.logits.save()
    assert torch.equal(logits, plain)
    assert torch.equal(residual, vlm.capture(x, "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"])
    assert vlm.nnsight is traced
    assert same_state(state_of(vlm.model), before)
    own = {weight.data_ptr() for weight in vlm.model.parameters()}
    assert {weight.data_ptr() for weight in traced._module.parameters()} == own


def test_nnsight_on_the_model_itself_would_have_changed_it():
    from nnsight import NNsight

    model = tiny_llava()
    before = state_of(model)
    NNsight(model)
    assert not same_state(state_of(model), before)


def test_nnsight_edits_are_our_edits(vlm, x):
    plain, traced = vlm.run(x), vlm.nnsight
    with torch.no_grad(), traced.trace(**x.model_inputs):
        traced.model.language_model.layers[1].mlp.output = traced.model.language_model.layers[1].mlp.output * 0
        theirs = traced.output.logits.save()
    site = "blocks.1.hook_mlp_out"
    ours = vlm.capture(x, site, edits={site: torch.zeros_like})["logits"]
    assert torch.equal(theirs, ours)
    assert (theirs - plain).abs().max() > 1e-3
    assert torch.equal(vlm.run(x), plain)


def test_a_weight_that_changes_changes_in_both(vlm, x):
    plain, weight = vlm.run(x), vlm.model.lm_head.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(2)
        with torch.no_grad(), vlm.nnsight.trace(**x.model_inputs):
            logits = vlm.nnsight.output.logits.save()
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert torch.allclose(logits, 2 * plain, atol=1e-5)
