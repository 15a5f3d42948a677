"""Models in which an adapter of peft runs copies of modules: the sites are those of what runs."""

import copy

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import ModelError, SiteError
from tests.families import tiny_example, tiny_model
from tests.families.shared.tiny import ROUNDING
from tests.tiny import tiny_inputs, tiny_llava

peft = pytest.importorskip("peft")
SAVED = {
    "final norm": ["norm"],
    "norms of blocks": ["input_layernorm", "post_attention_layernorm"],
    "attention": ["self_attn"],
    "MLP": ["mlp"],
    "a block": ["layers.1"],
    "projector": ["multi_modal_projector"],
    "unembedding and embeddings": ["lm_head", "embed_tokens"],
    "vision tower": ["vision_tower"],
}


def saving(names):
    tuned = "up_proj" if "self_attn" in names else "o_proj"  # another than what is saved
    return peft.LoraConfig(r=2, target_modules=[tuned], modules_to_save=names)


CONFIGS = {
    **{name: saving(modules) for name, modules in SAVED.items()},
    "trained tokens": peft.LoraConfig(r=2, target_modules=["o_proj"], trainable_token_indices=[30, 42]),
    "LN tuning": peft.LNTuningConfig(target_modules=["input_layernorm", "norm"]),
}
TRAINED = ("modules_to_save", "ln_tuning_layers", "trainable_tokens_delta")


def adapted(model, config):
    """The model with an adapter whose copies are others than what they are copies of."""
    with_adapter = peft.get_peft_model(model, copy.deepcopy(config)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in with_adapter.named_parameters():
            if any(kind in name for kind in TRAINED):
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return with_adapter


def need_near(found, expected):
    """The same numbers at the same sites, but for the lowest number, which scores have where they are masked."""
    assert {*found} == {*expected}
    assert max(float((found[n] - v).abs().max()) for n, v in expected.items() if "scores" not in n) < ROUNDING


@pytest.mark.parametrize("config", CONFIGS.values(), ids=[*CONFIGS])
def test_sites_are_those_of_the_model_with_the_adapter_merged(config):
    with_adapter = adapted(tiny_llava(), config)
    vlm = li.wrap(with_adapter.get_base_model())
    x = tiny_inputs(vlm)
    assert {*vlm.sites} == {*li.wrap(tiny_llava()).sites} and not vlm.missing
    found, scored = vlm.capture(x, "*"), li.score(vlm, x, x.hidden("image")).logit
    merged = li.wrap(with_adapter.merge_and_unload())
    need_near(found, merged.capture(x, "*"))
    assert (scored - li.score(merged, x, x.hidden("image")).logit).abs().max() < ROUNDING
    assert (found["logits"] - li.wrap(tiny_llava()).run(x)).abs().max() > 0.01  # the copies make a difference


@pytest.mark.parametrize("config", CONFIGS.values(), ids=[*CONFIGS])
def test_an_adapter_that_is_switched_off_later(config):
    """What was found of the model is forgotten, whichever method comes first."""
    with_adapter, plain = adapted(tiny_llava(), config), li.wrap(tiny_llava())
    vlm = li.wrap(with_adapter.get_base_model())
    x = tiny_inputs(vlm)
    on = li.score(vlm, x, x.everything).logit
    with with_adapter.disable_adapter():
        off = li.score(vlm, x, x.everything).logit
        need_near(vlm.capture(x, "*"), plain.capture(x, "*"))
    assert (off - li.score(plain, x, x.everything).logit).abs().max() < ROUNDING
    assert torch.equal(li.score(vlm, x, x.everything).logit, on) and (on - off).abs().max() > 0.01


@pytest.mark.parametrize("site", ["ln_final.hook_scale", "blocks.1.ln1.hook_normalized", "ln_final.hook_out"])
def test_an_edit_of_a_norm_that_is_trained_reaches_the_output(site):
    vlm = li.wrap(adapted(tiny_llava(), CONFIGS["LN tuning"]).get_base_model())
    x = tiny_inputs(vlm)
    edited = vlm.capture(x, site, edits={site: lambda value: 2 * value})
    assert (edited["logits"] - vlm.run(x)).abs().max() > 0.1


def test_tokens_that_are_trained_where_the_unembedding_is_tied():
    """Gemma 3: the unembedding is a wrapper that names no sizes."""
    with_adapter = adapted(tiny_model("gemma3"), CONFIGS["trained tokens"])
    vlm = li.wrap(with_adapter.get_base_model())
    x = tiny_example(vlm, "gemma3")
    last = vlm.capture(x, f"blocks.{vlm.depth - 1}.hook_resid_post")
    assert torch.allclose(vlm.readout(next(iter(last.values()))), vlm.run(x), atol=1e-4)
    head = vlm.model.get_output_embeddings().weight
    assert (vlm.readout.weight - head).abs().max() < ROUNDING and li.direct(vlm, x)
    trained = torch.zeros(len(head), dtype=torch.bool).index_fill(0, torch.tensor([30, 42]), True)
    moved = (head - tiny_model("gemma3").lm_head.weight).abs().amax(-1) > 1e-3
    assert torch.equal(moved, trained)


def test_layers_that_are_repeated():
    model = tiny_llava()
    config = peft.LoraConfig(r=2, target_modules=["o_proj"], layer_replication=[[0, 2], [1, 3]])
    peft.get_peft_model(model.model.language_model, config)
    vlm = li.wrap(model.eval())
    x = tiny_inputs(vlm)
    assert vlm.depth == 4 and not vlm.missing
    found = vlm.capture(x, "*")
    assert torch.allclose(found["logits"], vlm.run(x), atol=1e-5)
    assert {f"blocks.3.{name}" for name in ("ln1.hook_scale", "ln2.hook_normalized", "attn.hook_q")} <= {*found}


def test_an_adapter_that_is_switched_within_an_edit_is_named():
    with_adapter = adapted(tiny_llava(), CONFIGS["final norm"])
    vlm = li.wrap(with_adapter.get_base_model())
    x = tiny_inputs(vlm)
    with (
        pytest.raises(SiteError, match=r"adapter was switched on or off, and in the place of '\S+\.norm' another copy"),
        vlm.visiting({"ln_final.hook_out": torch.zeros_like}),
        with_adapter.disable_adapter(),
    ):
        vlm.run(x)


@pytest.mark.parametrize("change", [None, "written", "trained"])
def test_a_weight_that_an_adapter_puts_in_anew_in_each_pass_is_the_same(change):
    """As a parametrisation; the control is that a change of it, or of what is trained of it, is seen."""
    model = tiny_llava()
    for layer in model.model.language_model.layers:
        layer.mlp.up_proj.bias = torch.nn.Parameter(torch.ones(64))
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["mlp.up_proj.weight"])
    vlm = li.wrap(peft.get_peft_model(model, config).eval().get_base_model())
    before, captured = vlm.fingerprint, vlm.capture(tiny_inputs(vlm), "hook_embed")
    vlm.run(tiny_inputs(vlm))
    wrapper = vlm.decoder.layers[0].mlp.up_proj
    with torch.no_grad():
        if change == "written":
            wrapper.get_base_layer().weight.mul_(2)
        if change == "trained":
            wrapper.lora_B["default"].weight[0, 0] += 1
    if change is None:
        assert captured.provenance.weights == before == vlm.fingerprint
        return
    assert vlm.fingerprint != before
    with pytest.raises(ModelError, match="changed since"):
        _ = captured.provenance


def test_projections_that_an_adapter_calls_again_are_no_sites():
    """LLaMA-Adapter gives them its prompts: rows of two or three calls would stand under one name."""
    model = tiny_llava()
    peft.get_peft_model(model.model.language_model, peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=2))
    vlm = li.wrap(model.eval())
    with pytest.raises(SiteError, match="AdaptedAttention calls Linear again, with prompts of its own"):
        vlm.capture(tiny_inputs(vlm), "blocks.1.attn.hook_q")
    found = vlm.capture(tiny_inputs(vlm), "blocks.*.attn.hook_*")
    assert {value.shape[1] for name, value in found.items() if name.endswith(("_q", "_k", "_v", "_z"))} == {17}
    assert "blocks.0.attn.hook_q" in found and "blocks.1.attn.hook_rot_q" in found  # the control: an adapter is on 1, 2


def test_an_adapted_unembedding_in_half_precision():
    """peft's adapters are in float32 there, and what they adapt is not."""
    base = tiny_llava(dtype=torch.bfloat16)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    vlm = li.wrap(peft.get_peft_model(base, config).eval().get_base_model())
    x = tiny_inputs(vlm)
    logits = vlm.run(x)[0, x.answer_positions - 1].gather(-1, x.answer_ids[:, None])[:, 0].float()
    assert (li.direct(vlm, x).logit - logits).abs().max() < 0.05 * logits.abs().max()
    assert li.lens(vlm, x).target_logprob.isfinite().all()
