"""What blocks add is what their stream gains, and its middle is the stream itself: in every kind of block."""

import dataclasses

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.inside.frozen import frozen
from lvlm_interp.model import parts
from lvlm_interp.model.sites import Site
from lvlm_interp.opening import additions, checks
from tests.families import need_read, tiny_example, tiny_model

# A plain block; norms behind attention and MLP, in addition to those before or alone; multipliers; gates of layers that
# read the image; parameters of the block; inputs of each layer; windows; layers that carry a state; two streams.
KINDS = (
    *("llava", "gemma3", "exaone4_5", "granite_docling", "hyperclovax_vision_v2", "mllama", "idefics", "internvl"),
    *("gemma4", "got_ocr2", "lfm2_vl", "qwen4_exp", "glm5_next", "muse_spark"),
)
SCALED = {
    "granite_docling": "blocks.1",
    "mllama": "blocks.1",
    "idefics": "blocks.0",
    "hyperclovax_vision_v2": "blocks.2",
}


def example(name):
    vlm = li.wrap(tiny_model(name))
    need_read(vlm.model.config.model_type)
    return vlm, tiny_example(vlm, name)


@torch.no_grad()
def seen(vlm, x):
    return checks.sites(vlm, x)


def middles(vlm):
    return [name for name, site in vlm.sites.items() if name.endswith("resid_mid") and site.read == "sum"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return example(request.param)


def test_a_middle_that_is_nought_is_nought_in_the_stream(kind):
    """What goes on is what was put there, and what is added behind it; nothing of what was there before."""
    vlm, x = kind
    for name in (middles(vlm)[0], middles(vlm)[-1]):
        prefix = name.rpartition(".")[0]
        pre, post = f"{prefix}.hook_resid_pre", f"{prefix}.hook_resid_post"
        behind = next((one.behind for one in additions.written_in(vlm) if one.prefix == prefix), ())
        found = vlm.capture(x, [name, post, *behind], edits={name: torch.zeros_like})
        assert found[name].abs().max() == 0
        other = vlm.capture(x, post, edits={pre: lambda value: 2 * value, name: torch.zeros_like})
        assert torch.equal(other[post], found[post])
        assert not torch.equal(vlm.capture(x, post, edits={pre: lambda value: 2 * value})[post], found[post])
        if behind:  # several streams take shares instead
            added = sum(found[one].reshape(found[post].shape) for one in behind)
            assert torch.equal(found[post], added * parts.rescale_of(vlm.sites[post].module))


def test_gradients_go_through_the_middle(kind):
    """They are those of what attention adds: the stream is that, and what was there before."""
    vlm, x = kind
    written = [one for one in additions.written_in(vlm) if one.before and one.prefix.startswith("blocks.")]
    for one in written[:2]:
        found = vlm.capture(x, [one.middle, *one.before], grad=True)
        wanted = [found[one.middle], found[one.before[0]]]
        at_middle, at_added = torch.autograd.grad(found["logits"][0, -1, 7], wanted)
        assert torch.allclose(at_middle, at_added.reshape(at_middle.shape), rtol=1e-5, atol=1e-7)
        assert at_middle.abs().max() > 1e-3


@pytest.mark.parametrize("name", SCALED)
def test_what_is_added_is_what_goes_into_the_stream(name):
    """Behind multipliers and gates. Halved, half of it is added; what the module gives is another number."""
    vlm, x = example(name)
    prefix = SCALED[name]
    sites = [f"{prefix}.hook_{part}" for part in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")]
    pre, attended, mid, mlp, post = (vlm.capture(x, sites)[site] for site in sites)
    assert torch.equal(pre + attended, mid) and torch.equal(mid + mlp, post)
    halved = vlm.capture(x, sites[2], edits={sites[1]: lambda value: 0.5 * value})[sites[2]]
    assert torch.equal(halved, pre + 0.5 * attended)
    raw = dataclasses.replace(vlm.sites[sites[1]], read="output")
    given = []
    with vlm.visiting({raw: lambda value: given.append(value) or value}):
        vlm.run(x)
    assert (given[0] - attended).abs().max() > 0.05


def test_inputs_of_each_layer_are_added_too():
    """Gemma 4 adds one embedding of its own in each layer, and multiplies the stream at the end of it."""
    vlm, x = example("gemma4")
    for n, block in enumerate(vlm.blocks):
        block.layer_scalar.fill_(0.5 + 0.1 * n)
    ends = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    found = vlm.capture(x, "blocks.1.*")
    pre, attended, mlp, post = (found[f"blocks.1.hook_{end}"] for end in ends)
    assert torch.allclose((pre + attended + mlp + found["blocks.1.ple.hook_out"]) * 0.6, post, atol=1e-5)
    assert found["blocks.1.ple.hook_out"].abs().max() > 0.05 and seen(vlm, x).ok
    for block in vlm.blocks:
        block.layer_scalar.fill_(1)


def test_parts_of_a_logit_behind_a_stream_that_is_multiplied():
    """Each part arrives as it is multiplied on its way; those of the last block can be told from what is recorded."""
    vlm, x = example("gemma4")
    for block in vlm.blocks:
        block.layer_scalar.fill_(0.5)
    found, last = li.direct(vlm, x), vlm.depth - 1
    assert torch.allclose(found.total, found.logit, rtol=1e-4, atol=1e-4)
    site = f"blocks.{last}.hook_mlp_out"
    plain, without = (
        vlm.capture(x, f"blocks.{last}.hook_resid_post", edits=edits)[f"blocks.{last}.hook_resid_post"]
        for edits in ({}, {f"blocks.{last}.ple.hook_out": torch.zeros_like})
    )
    ple = (plain - without)[0, x.answer_positions - 1].double()
    written = vlm.capture(x, [site])[site][0, x.answer_positions - 1].double()
    norm = frozen(vlm.readout.norm, plain[0, x.answer_positions - 1])
    direction = norm.back(vlm.readout.weight[x.answer_ids].double())
    for arriving, part in ((0.5 * written, found.mlps[:, last]), (ple, found.others[:, last])):
        assert torch.allclose((arriving * direction).sum(1), part, rtol=1e-4, atol=1e-4) and part.abs().max() > 0.1


# --- faults that the check of sites must see ----------------------------------------------------------


def fails(vlm, x):
    return not seen(vlm, x).ok


def test_what_no_site_shows():
    """A block that adds something else."""
    vlm, x = example("llava")
    assert not fails(vlm, x)
    handle = vlm.decoder.layers[1].register_forward_hook(lambda module, args, output: output + 0.01)
    assert fails(vlm, x) and "blocks.1.hook_resid_post" in seen(vlm, x).detail
    handle.remove()


@pytest.mark.parametrize("name", SCALED)
def test_what_a_module_gives_taken_for_what_is_added(name):
    vlm, x = example(name)
    site = f"{SCALED[name]}.hook_attn_out"
    vlm.sites[site] = dataclasses.replace(
        vlm.sites[site], module=parts.writers_of(vlm.blocks[-1]).modules["hook_mlp_out"]
    )
    assert fails(vlm, x)


@pytest.mark.parametrize("name", ["llava", "gemma3", "granite_docling"])
def test_what_a_norm_reads_taken_for_the_stream(name):
    """Its values are the same; changed, they change the norm's input alone."""
    vlm, x = example(name)
    site, block = "blocks.1.hook_resid_mid", vlm.blocks[1]
    norm = getattr(block, "pre_feedforward_layernorm", block.post_attention_layernorm)
    before = vlm.capture(x, site)[site]
    vlm.sites[site] = Site(site, norm, "input")
    assert torch.equal(vlm.capture(x, site)[site], before) and fails(vlm, x)


def test_an_addition_that_is_not_known(monkeypatch):
    """Gemma 4's inputs of each layer, without the name of their norm."""
    monkeypatch.setattr(parts, "NAMES", dataclasses.replace(parts.NAMES, others={}))
    assert fails(*example("gemma4"))
