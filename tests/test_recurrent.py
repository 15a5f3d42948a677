"""Families whose decoder has layers without attention: what is hidden is passed over by them, and nothing leaks."""

import dataclasses

import pytest
import torch
from torch import nn

import lvlm_interp as li
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.errors import SiteError, VisibilityError
from lvlm_interp.families.shared.registry import NAMES
from lvlm_interp.model.hooks import masking, skipping
from lvlm_interp.opening import checks, masked
from tests.families import tiny_example, tiny_model
from tests.families.shared.tiny import ROUNDING

HYBRID = ("glm5_next", "lfm2_vl", "lfm3_vl", "nemotron_h_omni", "qwen3_5", "qwen3_5_moe", "qwen4_exp")


@pytest.fixture(scope="module", params=HYBRID)
def family(request):
    vlm = li.wrap(tiny_model(request.param))
    return vlm, tiny_example(vlm, request.param)


@pytest.fixture(scope="module")
def qwen():
    vlm = li.wrap(tiny_model("qwen3_5"))
    return vlm, tiny_example(vlm, "qwen3_5")


def some_coalitions(x):
    random = torch.rand(4, x.length, generator=torch.Generator().manual_seed(0)) < 0.6
    random |= x.where("answer", "template")
    return torch.stack([x.everything, x.hidden("image"), x.hidden("question"), *random])


@torch.no_grad()
def on_its_own(vlm, x, visible):
    """The oracle: transformers' decoder is given the visible rows and no others, at their own positions."""
    given = run_to_decoder(vlm, x, room=0)
    rows = visible.nonzero().flatten()
    lowest = torch.finfo(torch.float32).min
    causal = torch.full((len(rows), len(rows)), lowest).triu(1)
    windows = {  # sliding windows count positions, not rows
        module: torch.zeros_like(causal).masked_fill(~kind.see[rows][:, rows], lowest)[None, None]
        for kind in given.sight.kinds
        for module in kind.modules
    }
    positions = given.positions[:, rows]
    with masking(windows):
        states = vlm.decoder(
            inputs_embeds=given.embeds[None, rows],
            position_ids=positions if len(positions) == 1 else positions[:, None],
            attention_mask=causal[None, None],
            use_cache=False,
            **given.extras_of(rows),
        ).last_hidden_state[0]
    return vlm.readout.unembed(states[-len(x.answer_positions) - 1 : -1])


def test_scores_are_those_of_the_visible_rows_alone(family):
    vlm, x = family
    visible = some_coalitions(x)
    expected = torch.stack([on_its_own(vlm, x, row) for row in visible])
    assert (li.score(vlm, x, visible).logits() - expected).abs().max() < ROUNDING
    plain = vlm.run(x)[0, x.answer_positions - 1]
    assert (expected[0] - plain).abs().max() < ROUNDING and (expected[1] - plain).abs().max() > 0.1


def test_masks_alone_do_not_hide(family, monkeypatch):
    """The control of the positions check: without `skipping` its oracle lets hidden positions through."""
    vlm, x = family
    assert checks.positions(vlm, x).ok
    monkeypatch.setattr(masked, "skipping", lambda modules, rows: skipping((), rows))
    assert not checks.positions(vlm, x).ok


def test_methods_add_up(family):
    vlm, x = family
    split = li.credit(vlm, x, value="full")
    assert torch.allclose(split.prior + split.credits.sum(-1), split.total, atol=1e-5)
    both = li.contrast(vlm, x)
    expected = [on_its_own(vlm, x, row)[torch.arange(3), x.answer_ids] for row in (x.everything, x.hidden("image"))]
    assert torch.allclose(both.delta, expected[0] - expected[1], atol=ROUNDING)


def test_nothing_is_hidden_from_text_alone(family):
    vlm, x = family
    with pytest.raises(VisibilityError, match=r"carries what image rows see on.*hide_from='all'"):
        li.score(vlm, x, x.hidden("image")[None], hide_from="text")


def test_a_map_hides_from_all(qwen):
    vlm, x = qwen
    patches = li.attribute(vlm, x)
    assert patches.hide_from == "all" and patches.values.shape == (3, 2, 3)
    first = x.everything
    first[x.images[0].positions[0]] = False
    odds = li.score(vlm, x, torch.stack([x.everything, first])).logodds
    assert torch.allclose(patches.values[:, 0, 0], odds[0] - odds[1], atol=1e-5)
    with pytest.raises(VisibilityError, match="hide_from='all'"):
        li.attribute(vlm, x, hide_from="text")


def test_gated_attention(qwen):
    """Queries are told from the gates that stand behind them, and z is what the output projection reads."""
    vlm, x = qwen
    attention = vlm.decoder.layers[1].self_attn
    inputs = {}
    for name in ("q_norm", "o_proj", "q_proj"):
        getattr(attention, name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    found = vlm.capture(x, "blocks.1.attn.*")
    for name in ("q_norm", "o_proj", "q_proj"):
        getattr(attention, name)._forward_pre_hooks.clear()
    assert torch.equal(found["blocks.1.attn.hook_q"], inputs["q_norm"])
    assert torch.equal(found["blocks.1.attn.hook_z"].flatten(-2), inputs["o_proj"])
    gate = attention.q_proj(inputs["q_proj"]).unflatten(-1, (4, -1))[..., 8:].sigmoid()
    values = found["blocks.1.attn.hook_v"].repeat_interleave(2, 2)
    read = torch.einsum("bhqk,bkhi->bqhi", found["blocks.1.attn.hook_pattern"], values)
    assert torch.allclose(read * gate, found["blocks.1.attn.hook_z"], atol=1e-5)
    assert not torch.allclose(read, found["blocks.1.attn.hook_z"], atol=1e-2)  # the gate makes a difference


@torch.no_grad()
def test_an_edit_of_queries_leaves_their_gates(qwen):
    vlm, x = qwen
    name, attention = "blocks.1.attn.hook_q", vlm.decoder.layers[1].self_attn
    edited = vlm.capture(x, "ln_final.*", edits={name: torch.zeros_like})["logits"]
    weight = attention.q_proj.weight.clone()
    try:
        attention.q_proj.weight.view(4, 16, -1)[:, :8] = 0
        assert torch.allclose(edited, vlm.run(x), atol=1e-5)
    finally:
        attention.q_proj.weight.copy_(weight)
    assert not torch.allclose(edited, vlm.run(x), atol=1e-2)


def test_what_blocks_add_is_named(family):
    """Attention, what carries a state, and MLPs: each under its name, and together they make the residual stream."""
    vlm, x = family
    found, names = vlm.capture(x, "blocks.*"), ("hook_attn_out", *(f"{name}.hook_out" for name in NAMES.recurrent))
    for block in sorted({name.rsplit(".hook", 1)[0] for name in found if name.endswith("resid_pre")}):
        pre, post = (found[f"{block}.hook_resid_{at}"] for at in ("pre", "post"))
        first = [found[f"{block}.{name}"] for name in names if f"{block}.{name}" in found]
        second = [found[f"{block}.hook_mlp_out"]] if f"{block}.hook_mlp_out" in found else []
        assert bool(second) == (f"{block}.hook_resid_mid" in found)
        middle = found[f"{block}.hook_resid_mid"] if second else post
        need_sum(pre, first, middle)
        need_sum(middle, second, post)


def need_sum(before, parts, after):
    """Several streams are mixed with weights that sum to 1, and take shares of what is as wide as one of them."""
    width = min(v.shape[-1] for v in (before, *parts))
    moved = sum((v for v in parts if v.shape == before.shape), before) - after
    moved = moved.unflatten(-1, (-1, width)).mean(-2)
    for part in (v for v in parts if v.shape != before.shape):
        share = -(moved * part).sum(-1, keepdim=True) / (part * part).sum(-1, keepdim=True)
        assert (share > 0).all() and (share < 2).all()
        moved = moved + share * part
    # The weights that GLM-5 Next mixes streams with come from rounds of an iteration that ends before they are exact.
    assert moved.abs().max() < (1e-5 if width == before.shape[-1] else 1e-2)


def test_attention_that_cannot_be_seen_cannot_be_taken_apart():
    vlm = li.wrap(tiny_model("glm5_next"))
    with pytest.raises(SiteError, match=r"attention of block 0 cannot be taken apart.*computes attention by itself"):
        li.direct(vlm, tiny_example(vlm, "glm5_next"))


def test_direct_attribution_through_a_gate(monkeypatch):
    """Only the layers that have attention: all of them here."""
    import tests.families as families

    row = families.ALL["qwen3_5"]
    text = {**row.config["text_config"], "layer_types": ["full_attention"] * 3}
    attending = dataclasses.replace(row, config={**row.config, "text_config": text})
    monkeypatch.setitem(families.ALL, "qwen3_5", attending)
    vlm = li.wrap(tiny_model("qwen3_5"))
    assert not vlm.recurrent
    found = li.direct(vlm, tiny_example(vlm, "qwen3_5"))
    assert torch.allclose(found.total, found.logit, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found.sources.sum(-1), found.heads, rtol=1e-4, atol=1e-5)
    assert found.heads.abs().max() > 0.01 and found.others.abs().max() < 1e-5


def test_skipping_gives_the_others_nothing():
    rows, seen = torch.tensor([True, False, True]), []
    module = nn.Identity()
    module.register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    with skipping([module], rows):
        out = module(torch.ones(1, 3, 2))
    assert out[0, :, 0].tolist() == [1, 0, 1] and seen == [torch.Size([1, 2, 2])]
    assert module(torch.ones(1, 3, 2)).sum() == 6
