"""Activations are the model's own, and afterwards the model is as it was."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import ModelError, SiteError
from lvlm_interp.families.shared.registry import NAMES
from lvlm_interp.model import attention, parts
from tests.families import tiny_example, tiny_model
from tests.tiny import hooks_of, tiny_inputs, tiny_llava

ALL = "*"


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def vlm(request):
    return li.wrap(tiny_llava(request.param))


def test_capturing_everything_changes_nothing(vlm):
    x = tiny_inputs(vlm)
    plain = vlm.run(x)
    captured = vlm.capture(x, ALL)
    kernel = vlm.model.config._attn_implementation
    # Under eager the kernel is the same and so is every bit; recorded layers of an SDPA model run eager.
    assert torch.allclose(captured["logits"], plain, atol=0 if kernel == "eager" else 1e-5)
    assert set(captured) == {*vlm.sites, "logits"}


def test_residual_sites_leave_the_kernel_alone(vlm):
    x = tiny_inputs(vlm)
    assert torch.equal(vlm.capture(x, "blocks.*.hook_resid_*")["logits"], vlm.run(x))


def test_the_model_is_restored(vlm):
    x = tiny_inputs(vlm)
    before = vlm.run(x), hooks_of(vlm.model), str(vlm.model.config)
    vlm.capture(x, ALL)
    with pytest.raises(ZeroDivisionError):
        vlm.capture(x, ALL, edits={"blocks.0.hook_resid_pre": lambda value: 1 / 0})
    assert torch.equal(vlm.run(x), before[0])
    assert (hooks_of(vlm.model), str(vlm.model.config)) == before[1:]


def test_activations_are_those_of_transformers(vlm):
    x = tiny_inputs(vlm)
    kernel = vlm.model.config._attn_implementation
    vlm.model.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = vlm.model(**x.model_inputs, output_hidden_states=True, output_attentions=True)
    vlm.model.set_attn_implementation(kernel)
    ours = vlm.capture(x, ALL)
    for i in range(3):
        assert torch.allclose(ours[f"blocks.{i}.hook_resid_pre"], theirs.hidden_states[i], atol=1e-5)
        assert torch.allclose(ours[f"blocks.{i}.attn.hook_pattern"], theirs.attentions[i], atol=1e-6)
    assert torch.allclose(ours["ln_final.hook_out"], theirs.hidden_states[-1], atol=1e-5)
    assert torch.allclose(ours["projector.hook_out"][0], theirs.image_hidden_states, atol=1e-5)


@pytest.mark.parametrize("tower", ["", "vision."])
def test_the_parts_add_up(vlm, tower):
    c = vlm.capture(tiny_inputs(vlm), ALL)
    block = f"{tower}blocks.0"
    pre, mid, post = (c[f"{block}.hook_resid_{name}"] for name in ("pre", "mid", "post"))
    assert torch.allclose(pre + c[f"{block}.hook_attn_out"], mid, atol=1e-5)
    assert torch.allclose(mid + c[f"{block}.hook_mlp_out"], post, atol=1e-5)
    assert c[f"{block}.hook_attn_out"].abs().max() > 1e-3


def test_what_a_block_scales_is_added_scaled():
    """InternVL's vision tower: parameters of the block stand between attention or MLP and the residual stream."""
    vlm = li.wrap(tiny_model("internvl"))
    x = tiny_example(vlm, "internvl")
    names = [f"vision.blocks.0.hook_{part}" for part in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")]
    pre, attended, mid, mlp, post = (vlm.capture(x, names)[name] for name in names)
    assert torch.allclose(pre + attended, mid, atol=1e-5) and torch.allclose(mid + mlp, post, atol=1e-5)
    halved = vlm.capture(x, names[2], edits={names[1]: lambda value: 0.5 * value})[names[2]]
    assert torch.allclose(halved, pre + 0.5 * attended, atol=1e-5)
    block = vlm.vision.encoder.layer[0]
    assert not torch.allclose(block.lambda_1, torch.ones(()), atol=0.1)  # the control: the scale makes a difference


def test_heads_recombine_to_attention_out(vlm):
    c = vlm.capture(tiny_inputs(vlm), ALL)
    for prefix, tower in (("", vlm.decoder), ("vision.", vlm.model.base_model.vision_tower)):
        project = parts.part(parts.attention_of(parts.find_blocks(tower)[1]), NAMES.output_projection)
        z = c[f"{prefix}blocks.1.attn.hook_z"]
        assert torch.allclose(project(z.flatten(-2)), c[f"{prefix}blocks.1.hook_attn_out"], atol=1e-5)


def test_pattern_times_values_is_z(vlm):
    c = vlm.capture(tiny_inputs(vlm), "blocks.2.attn.*")
    pattern, v = c["blocks.2.attn.hook_pattern"], c["blocks.2.attn.hook_v"].repeat_interleave(2, 2)
    assert torch.allclose(torch.einsum("bhqk,bkhd->bqhd", pattern, v), c["blocks.2.attn.hook_z"], atol=1e-5)
    assert torch.allclose(pattern.sum(-1), torch.ones_like(pattern.sum(-1)))
    assert torch.allclose(c["blocks.2.attn.hook_attn_scores"].softmax(-1), pattern)
    assert pattern.triu(1).max() == 0


def test_a_pattern_written_over_its_scores_is_the_same_pattern(vlm):
    x = tiny_inputs(vlm)
    patterns, scores = "*blocks.*.attn.hook_pattern", "*blocks.*.attn.hook_attn_scores"
    alone, beside = vlm.capture(x, patterns), vlm.capture(x, [patterns, scores])
    assert len(alone) > 4 and all(torch.equal(value, beside[name]) for name, value in alone.items())
    assert all(value.amin() < 0 for name, value in beside.items() if name.endswith("scores"))  # those are kept


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 33, 1025), (3, 16, 130, 130)])
def test_a_softmax_in_place_is_the_softmax(shape):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9
    scores[..., 1::3] = torch.finfo(torch.float32).min
    single, spent = torch.float32, scores.clone()
    anew, over = attention._softmax(scores, single, spent=False), attention._softmax(spent, single, spent=True)
    assert torch.equal(anew, over)
    assert over.data_ptr() == spent.data_ptr() and anew.data_ptr() != scores.data_ptr()
    halves = scores.clamp(-9, 9).half()
    assert attention._softmax(halves, single, spent=True).data_ptr() != halves.data_ptr()


def test_last_residual_through_readout_is_the_logits(vlm):
    c = vlm.capture(tiny_inputs(vlm), "blocks.2.hook_resid_post")
    assert torch.allclose(vlm.readout(c["blocks.2.hook_resid_post"]), c["logits"], atol=1e-5)
    assert not torch.allclose(vlm.readout(c["blocks.2.hook_resid_post"] * 0 + 1), c["logits"], atol=1e-1)


@pytest.mark.parametrize(
    "site", ["blocks.1.hook_resid_mid", "blocks.1.attn.hook_z", "blocks.1.attn.hook_v", "blocks.1.attn.hook_pattern"]
)
def test_edits_reach_the_output(vlm, site):
    x = tiny_inputs(vlm)
    plain = vlm.run(x)
    edited = vlm.capture(x, site, edits={site: torch.zeros_like})
    assert edited[site].abs().max() == 0
    assert (edited["logits"] - plain).abs().max() > 1e-3
    kept = vlm.capture(x, site, edits={site: lambda value: value})
    assert torch.allclose(kept["logits"], plain, atol=1e-5)


def test_an_edit_reaches_what_the_projector_reads():
    """LLaVA reads a layer of its tower by hooks of transformers, which stay from the first pass on."""
    vlm = li.wrap(tiny_llava())
    x, site, out = tiny_inputs(vlm), "vision.blocks.0.hook_resid_post", "projector.hook_out"
    vlm.model.requires_grad_(False)
    first, second = (vlm.capture(x, out, edits={site: torch.zeros_like}) for _ in range(2))
    assert torch.equal(first[out], second[out]) and torch.equal(first["logits"], second["logits"])
    assert (second[out] - vlm.capture(x, out)[out]).abs().max() > 0.1
    found = vlm.capture(x, site, grad=True)
    assert torch.autograd.grad(found["logits"][0, -1, 7], found[site])[0].abs().max() > 1e-3


def test_hooks_of_others_come_first(vlm):
    """What is recorded is what the model goes on with."""
    x, site = tiny_inputs(vlm), "blocks.0.hook_resid_post"
    handle = vlm.decoder.layers[0].register_forward_hook(lambda module, args, output: 2 * output)
    found = vlm.capture(x, [site, "blocks.1.hook_resid_pre"])
    handle.remove()
    assert torch.equal(found[site], found["blocks.1.hook_resid_pre"])
    assert torch.allclose(found[site], 2 * vlm.capture(x, site)[site], atol=1e-5)


def test_zeroing_a_head_is_zeroing_its_columns(vlm):
    x = tiny_inputs(vlm)

    def without_head(z):
        z = z.clone()
        z[:, :, 2] = 0
        return z

    edited = vlm.capture(x, "blocks.1.attn.hook_z", edits={"blocks.1.attn.hook_z": without_head})["logits"]
    weight = vlm.decoder.layers[1].self_attn.o_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:, 16:24] = 0
        expected = vlm.run(x)
        weight.copy_(kept)
    assert torch.allclose(edited, expected, atol=1e-5)


def test_unknown_sites_are_named(vlm):
    x = tiny_inputs(vlm)
    with pytest.raises(SiteError, match=r"did you mean.*blocks\.0\.hook_resid_p"):
        vlm.capture(x, "blocks.0.hook_residpre")
    with pytest.raises(SiteError, match=r"did you mean.*blocks\.1\.attn\.hook_pattern"):
        vlm.capture(x, "blocks.0.hook_resid_pre", edits={"blocks.1.attn.hook_patern": torch.zeros_like})
    with pytest.raises(SiteError, match="no site was asked for"):
        vlm.capture(x, [])
    with pytest.raises(SiteError, match="was not captured"):
        vlm.capture(x, "blocks.0.hook_resid_pre")["blocks.1.hook_resid_pre"]


@pytest.mark.parametrize(
    ("name", "nearest", "several"),
    [
        ("hook_mlp_out", "blocks.0.hook_mlp_out", 5),  # three blocks of the decoder, two of the tower
        ("blocks.0.hook_resid", "blocks.0.hook_resid_pre", 6),
        ("projector", "projector.hook_out", None),
        ("block.*.hook_z", "blocks.0.attn.hook_z", None),
        ("blocks.9.attn.hook_pattern", "blocks.0.attn.hook_pattern", None),
        ("model.layers.0", "", None),
    ],
)
def test_names_that_are_too_short_or_nearly_right(vlm, name, nearest, several):
    """A name that could mean several sites is none; the error has the first ones, and a glob that means them all."""
    x = tiny_inputs(vlm)
    with pytest.raises(SiteError) as error:
        vlm.capture(x, name)
    said = str(error.value)
    assert repr(name) in said and nearest in said
    assert (f"'*{name}*' for all {several}" in said) == (several is not None)
    if several:
        assert len(vlm.capture(x, f"*{name}*")) == several + 1  # and the logits


def test_a_site_that_does_not_fire_is_an_error(vlm):
    text, before = vlm.inputs(torch.tensor([[1, 20, 21, 22]])), hooks_of(vlm.model)
    with pytest.raises(SiteError, match=r"did not fire.*projector\.hook_out"):
        vlm.capture(text, "projector.hook_out")
    assert hooks_of(vlm.model) == before


def test_one_pass_at_a_time(vlm):
    x = tiny_inputs(vlm)
    site = "blocks.0.attn.hook_z"
    with pytest.raises(ModelError, match="runs the model that it is called from"):
        vlm.capture(x, site, edits={site: lambda value: vlm.capture(x, site)[site]})
    assert torch.equal(vlm.run(x), vlm.run(x))


def test_attention_is_captured_while_it_is_edited(vlm):
    """What an outer `with` changes is what an inner one sees, whole or some rows; what is left leaves nothing."""
    x = tiny_inputs(vlm)
    pattern, z = "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_z"
    plain = vlm.capture(x, [pattern, z])
    edits = {pattern: lambda value: value * 0.5}
    at_once = vlm.capture(x, [pattern, z], edits=edits)
    with vlm.visiting(edits):
        nested = vlm.capture(x, [pattern, z])
        rows = vlm.capture(x, pattern, positions=[5])
        with vlm.visiting({z: lambda value: value + 1}):
            both = vlm.capture(x, z)
        again = vlm.capture(x, z)
    for name in (pattern, z):
        assert torch.equal(nested[name], at_once[name]) and not torch.allclose(nested[name], plain[name])
        assert torch.equal(vlm.capture(x, name)[name], plain[name])
    assert torch.allclose(rows[pattern][:, :, 0], at_once[pattern][:, :, 5])
    assert torch.allclose(both[z], at_once[z] + 1) and torch.equal(again[z], at_once[z])


def test_other_kinds_of_models_are_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    with pytest.raises(ModelError, match=r"'llama' cannot be read.*llava"):
        li.wrap(LlamaForCausalLM(config))
    with pytest.raises(ModelError, match="takes a transformers model"):
        li.wrap(torch.nn.Linear(2, 2))


def test_captures_of_the_same_pass_are_equal():
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    one, same = (vlm.capture(x, "blocks.0.*") for _ in range(2))
    assert one == same and one != vlm.capture(x, "blocks.1.*") and one != "capture"
    same["blocks.0.hook_resid_post"].mul_(2)
    assert one != same


def test_an_edit_takes_a_value_alone(vlm):
    """Hooks of TransformerLens are given the hook as well: that is told before a pass."""
    x, site = tiny_inputs(vlm), "blocks.0.hook_resid_post"
    for wrong in (lambda value, hook: value, lambda: None, lambda *, value: value):
        with pytest.raises(SiteError, match=r"its value alone.*TransformerLens"):
            vlm.capture(x, site, edits={site: wrong})
        with pytest.raises(SiteError, match="its value alone"), vlm.visiting({site: wrong}):
            pass
    for right in (lambda value, hook=None: value, torch.relu, torch.nn.Identity(), lambda *all: all[0]):
        vlm.capture(x, site, edits={site: right})
