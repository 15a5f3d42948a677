"""The parts of a logit add up to it, in every family; and each part is what it says."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, ModelError, SiteError
from lvlm_interp.inside import direct as module
from lvlm_interp.inside import residual
from lvlm_interp.inside.frozen import frozen
from tests.families import FAMILIES, tiny_example, tiny_model

# Besides: a gate behind the heads; norms behind attention and MLP; tokens that are never said; keys of another layer;
# values out of a latent state; blocks without attention, and of one kind only.
OTHERS = ("step3p7", "exaone4_5", "chameleon", "gemma4", "kimi_k25", "qwen3_5", "lfm2_vl", "nemotron_h_omni")


@pytest.fixture(scope="module", params=[*FAMILIES, *OTHERS])
def family(request):
    vlm = li.wrap(tiny_model(request.param))
    return vlm, tiny_example(vlm, request.param)


@pytest.fixture(scope="module")
def llava():
    vlm = li.wrap(tiny_model("llava"))
    return vlm, tiny_example(vlm, "llava")


def test_parts_add_up_to_the_logit(family):
    """To 1e-4 of the logit; without any one kind of part they do not."""
    vlm, x = family
    found = li.direct(vlm, x)
    own = vlm.run(x)[0, x.answer_positions - 1].gather(1, x.answer_ids[:, None])[:, 0].double()
    assert torch.allclose(found.logit, own, rtol=1e-5, atol=1e-5)
    assert torch.allclose(found.total, own, rtol=1e-4, atol=1e-4)
    for missing in (found.heads.sum((1, 2)), found.mlps.sum(1), found.embedding):
        assert ((found.total - missing) - own).abs().max() > 1e-2


def test_sources_add_up_to_heads(family):
    vlm, x = family
    found = li.direct(vlm, x)
    crossed = [n for n in range(found.heads.shape[1]) if f"blocks.{n}.cross_attn.hook_z" in vlm.sites]
    own = [n for n in range(found.heads.shape[1]) if n not in crossed]
    assert torch.allclose(found.sources[:, own].sum(-1), found.heads[:, own], atol=1e-5)
    assert torch.allclose(found.by_role().sum(-1), found.heads, atol=1e-5)
    late = torch.arange(x.length)[None, :] > (x.answer_positions - 1)[:, None]
    assert found.sources.sum((1, 2))[late].abs().max() == 0  # nothing is read from what comes later


def test_others_are_nothing_where_blocks_are_plain(llava):
    """All that a plain block writes is heads, MLP and biases."""
    assert li.direct(*llava).others.abs().max() < 1e-5


def test_what_a_recurrent_layer_writes_is_of_no_head():
    vlm = li.wrap(tiny_model("qwen3_5"))
    x = tiny_example(vlm, "qwen3_5")
    found = li.direct(vlm, x)
    recurrent = [n for n in range(found.heads.shape[1]) if f"blocks.{n}.attn.hook_z" not in vlm.sites]
    written = [float(found.others[:, n].abs().min()) for n in recurrent]
    assert 0 < len(recurrent) < found.heads.shape[1] and min(written) > 1e-4
    assert found.heads[:, recurrent].abs().max() == 0


def test_several_residual_streams_are_refused():
    vlm = li.wrap(tiny_model("qwen4_exp"))
    with pytest.raises(SiteError, match="several residual streams"):
        li.direct(vlm, tiny_example(vlm, "qwen4_exp"))


def test_a_head_that_is_not_there_takes_its_part_with_it(llava):
    """In the last block nothing comes after, so with the scale frozen a head's part is exactly what it changes."""
    vlm, x = llava
    found = li.direct(vlm, x)
    last = found.heads.shape[1] - 1

    def without(head):
        def edit(z):
            z = z.clone()
            z[:, :, head] = 0
            return z

        edits = {f"blocks.{last}.attn.hook_z": edit, f"blocks.{last}.hook_mlp_out": torch.zeros_like}
        return vlm.capture(x, f"blocks.{last}.hook_resid_post", edits=edits)[f"blocks.{last}.hook_resid_post"][0]

    final = vlm.capture(x, f"blocks.{last}.hook_resid_post")[f"blocks.{last}.hook_resid_post"][0]
    rows = x.answer_positions - 1
    norm = frozen(vlm.readout.norm, final[rows])
    direction = norm.back(vlm.readout.unembed.weight[x.answer_ids].double())
    everything = {f"blocks.{last}.hook_mlp_out": torch.zeros_like}
    base = vlm.capture(x, f"blocks.{last}.hook_resid_post", edits=everything)[f"blocks.{last}.hook_resid_post"][0]
    for head in range(found.heads.shape[2]):
        changed = ((base - without(head))[rows].double() * direction).sum(1)
        assert torch.allclose(changed, found.heads[:, last, head], atol=1e-5)
    assert (found.heads[:, last, 0] - found.heads[:, last, 1]).abs().max() > 1e-3


def test_differences_are_differences(llava):
    vlm, x = llava
    one, other = li.direct(vlm, x, target=7), li.direct(vlm, x, target=8)
    both = li.direct(vlm, x, target=7, against=8)
    assert torch.allclose(both.heads, one.heads - other.heads, atol=1e-6)
    assert torch.allclose(both.logit, one.logit - other.logit, atol=1e-5)
    assert torch.allclose(both.total, both.logit, atol=1e-4)


@pytest.mark.parametrize("against", [None, 3])
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_half_precision_rounds_the_logit_and_is_no_misreading(family, against):
    vlm = li.wrap(tiny_model(family, dtype=torch.bfloat16))
    for seed in range(8):
        found = li.direct(vlm, tiny_example(vlm, family, seed=seed), against=against)
        assert torch.allclose(found.total, found.logit, atol=0.06)


def test_frames_add_up(llava):
    found = li.direct(*llava)
    frame = found.to_frame()
    parts = frame.drop(columns=["token", "logit"]).sum(axis=1)
    assert (parts - frame["logit"]).abs().max() < 1e-4
    components = found.components(0)
    assert abs(components["logit"].sum() - float(found.logit[0])) < 1e-4
    assert components["logit"].abs().is_monotonic_decreasing
    assert "add up" in found._repr_html_()


def test_saved_and_read_again(llava, tmp_path):
    found = li.direct(*llava)
    assert torch.equal(li.DirectAttribution.load(found.save(tmp_path / "d.safetensors")).sources, found.sources)


@pytest.mark.parametrize("norm", [torch.nn.LayerNorm(8), torch.nn.RMSNorm(8)])
def test_frozen_norms(norm):
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 8)
    map_ = frozen(norm, x)
    assert torch.allclose(map_(x.double()), norm(x).double(), atol=1e-5)
    direction = torch.randn(5, 8).double()
    assert torch.allclose(
        (map_(x.double()) * direction).sum(1), (map_.back(direction) * x).sum(1) + direction @ map_.bias
    )
    assert (map_(2 * x.double()) - norm(2 * x).double()).abs().max() > 0.1  # frozen: it does not rescale


def test_what_is_no_norm_is_refused():
    with pytest.raises(ModelError, match="not a linear map"):
        frozen(torch.nn.Tanh(), torch.randn(3, 8))


def test_misread_weights_are_noticed(llava, monkeypatch):
    """The sum is checked: a projection read wrongly is an error, not a number."""
    vlm, x = llava
    monkeypatch.setattr(module, "between", lambda stream, direction: torch.ones(len(direction), len(stream)).double())
    with pytest.raises(SiteError, match="miss the logit"):
        li.direct(vlm, x)


def test_what_cannot_be_taken_apart(llava):
    vlm, x = llava
    with pytest.raises(InputError, match="not in the vocabulary"):
        li.direct(vlm, x, target=999)
    with pytest.raises(InputError, match="no answer"):
        li.direct(
            vlm, vlm.inputs(input_ids=x.input_ids, answer_start=None, pixel_values=x.model_inputs["pixel_values"])
        )


def test_heads_behind_a_gate(monkeypatch):
    """What they read at a position is what the gate lets through of it, number by number; without it, it is not."""
    vlm = li.wrap(tiny_model("muse_glimmer"))
    x = tiny_example(vlm, "muse_glimmer")
    found = li.direct(vlm, x)
    assert torch.allclose(found.total, found.logit, rtol=1e-4)
    assert torch.allclose(found.sources.sum(-1), found.heads, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(residual, "_gate", lambda block, read: torch.ones_like(read))
    with pytest.raises(SiteError, match="sources miss their heads"):
        li.direct(vlm, x)


def test_a_gate_that_lets_numbers_through_one_by_one_into_the_stream():
    """Muse Spark: what a head adds is no multiple of what it writes; the parts would add up, and be wrong."""
    vlm = li.wrap(tiny_model("muse_spark"))
    with pytest.raises(SiteError, match="no multiple of what its heads write"):
        li.direct(vlm, tiny_example(vlm, "muse_spark"))


def test_a_word_of_several_tokens_is_refused(reference, purple_banana):
    with pytest.raises(InputError, match="takes one"):
        li.direct(reference, purple_banana, target="Purple")
