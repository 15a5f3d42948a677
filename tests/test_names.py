"""TransformerLens's names of what is inside norms and MLPs, in all kinds of blocks; and changing it."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.model.parts import find_blocks, output_of
from tests.families import tiny_example, tiny_model

# RMS norms counted from nought and from one; layer norms; MLPs with a gate, without one, with both maps in one, and in
# the block itself.
KINDS = ("llava", "gemma3", "glm_ocr", "blip-2", "internvl", "nemotron_h_omni", "lfm2_vl", "molmo2", "gemma4", "ovis2")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    vlm = li.wrap(tiny_model(request.param))
    return vlm, tiny_example(vlm, request.param)


def test_norms_are_what_is_divided_times_their_weight(kind):
    vlm, x = kind
    found = vlm.capture(x, "*")
    scales = [name for name in vlm.sites if name.endswith("hook_scale")]
    assert "ln_final.hook_scale" in scales
    for name in scales:
        norm, normalized = vlm.sites[name].module, found[name.replace("scale", "normalized")]
        rows = normalized.flatten(0, -2)
        assert torch.allclose(rows.square().mean(-1), torch.ones(len(rows)), atol=1e-2)  # a little less, by epsilon
        assert torch.allclose(
            norm(normalized * found[name]), norm(normalized), rtol=1e-3, atol=1e-3
        )  # it divides again
    last = f"blocks.{vlm.depth - 1}.hook_resid_post"
    assert torch.allclose(vlm.readout.norm(found[last]), found["ln_final.hook_out"], atol=1e-5)
    assert (found["ln_final.hook_out"] - found["ln_final.hook_normalized"]).abs().max() > 1e-2


def test_what_norms_divide_can_be_changed(kind):
    """Of three, twice what was divided is twice what comes out, less the bias; twice the scale is half of it."""
    vlm, x = kind
    out, normalized, scale = (f"ln_final.hook_{part}" for part in ("out", "normalized", "scale"))
    plain = vlm.capture(x, out)[out]
    bias = getattr(vlm.sites[out].module, "bias", None)
    bias = torch.zeros(()) if bias is None else bias.detach()
    doubled = vlm.capture(x, out, edits={normalized: lambda value: 2 * value})[out]
    halved = vlm.capture(x, out, edits={scale: lambda value: 2 * value})[out]
    assert torch.allclose(doubled - bias, 2 * (plain - bias), atol=1e-4)
    assert torch.allclose(halved - bias, 0.5 * (plain - bias), atol=1e-4)
    assert torch.equal(vlm.capture(x, [out, normalized, scale])["logits"], vlm.capture(x, out)["logits"])
    found = vlm.capture(x, normalized, grad=True)
    assert torch.autograd.grad(found["logits"][0, -1, 7], found[normalized])[0].abs().max() > 1e-3


def test_what_comes_out_of_an_activation_is_what_leads_back(kind):
    """The last map of an MLP reads `hook_post`; and that is made of what goes in, gate by gate."""
    vlm, x = kind
    posts = [name for name in vlm.sites if name.endswith("mlp.hook_post")]
    assert posts
    for name in posts:
        block, site = name.removesuffix(".mlp.hook_post"), vlm.sites[name]
        found = vlm.capture(x, [name, name.replace("post", "pre"), f"{block}.hook_mlp_out"])
        gone = vlm.capture(x, f"{block}.hook_mlp_out", edits={name: torch.zeros_like})[f"{block}.hook_mlp_out"]
        assert found[name].shape == found[name.replace("post", "pre")].shape
        assert found[name].shape[-1] == site.module.in_features
        assert (found[f"{block}.hook_mlp_out"] - gone).abs().max() > 1e-3
        linear = name.replace("hook_post", "hook_pre_linear")
        if linear in vlm.sites:
            other = vlm.capture(x, name, edits={linear: lambda value: 2 * value})[name]
            assert torch.allclose(other, 2 * found[name], atol=1e-5)


def test_embeddings_are_what_enters_the_first_block(kind):
    vlm, x = kind
    found = vlm.capture(x, ["hook_embed", "blocks.0.hook_resid_pre"])
    assert torch.equal(found["hook_embed"], found["blocks.0.hook_resid_pre"])
    assert vlm.capture(x, "hook_embed", positions="answer")["hook_embed"].shape[1] == 3


def test_queries_that_no_one_map_gives_are_missing_by_name():
    """Kimi makes queries and keys of a latent state, in two steps."""
    vlm = li.wrap(tiny_model("kimi_k25"))
    gone = [name for name in vlm.missing if name.endswith(("hook_q", "hook_k"))]
    assert gone and "hook_rot_k has it" in vlm.missing["blocks.0.attn.hook_k"]
    assert all(output_of(block.self_attn) is not None for block in find_blocks(vlm.decoder))
