"""Visits of one place, one behind the other: the outer one first, and what is inside sees what it made.

The oracle is the plain model with hooks of torch, in which the same change is written out by hand.
"""

import contextlib

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

import lvlm_interp as li
from lvlm_interp.errors import SiteError
from tests.tiny import hooks_of, tiny_inputs, tiny_llava

WRITTEN = [f"{tower}blocks.{n}.hook_{end}" for tower, n in (("", 1), ("vision.", 0)) for end in ("attn_out", "mlp_out")]
MIDDLES = ["blocks.1.hook_resid_mid", "vision.blocks.0.hook_resid_mid"]
NORMS = ["blocks.1.ln1", "blocks.1.ln2", "ln_final", "vision.blocks.0.ln1"]  # the last takes the mean away


def opened(dtype=torch.float32):
    """Norms with weights, and biases, that are not all one, or nought."""
    vlm = li.wrap(tiny_llava(dtype=dtype))
    generator = torch.Generator().manual_seed(3)
    for norm in [site.module for site in vlm.sites.values() if site.read == "scale"]:
        norm.weight.data.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
        if getattr(norm, "bias", None) is not None:
            norm.bias.data.copy_(torch.randn(norm.bias.shape, generator=generator))
    return vlm.model.requires_grad_(False) and vlm


@pytest.fixture(scope="module")
def shared():
    vlm = opened()
    return vlm, tiny_inputs(vlm)


def without_third(value):
    return value.clone().index_fill_(1, torch.tensor([3]), 0)


def turned(value):
    return value.roll(1, -1)


def doubled(value):
    return 2 * value


def first_of(output):
    return output[0] if isinstance(output, tuple) else output


def with_first(output, value):
    return (value, *output[1:]) if isinstance(output, tuple) else value


@contextlib.contextmanager
def by_hand(module, change):
    """A plain forward hook: what the module gives goes through a change."""
    handle = module.register_forward_hook(lambda _, args, output: with_first(output, change(first_of(output))))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def middle_by_hand(vlm, site, change):
    """The middle of a stream is what enters the block and what attention gives: so attention gives that much less."""
    entered = []

    def note(_, args, kwargs):
        entered[:] = [args[0] if args else kwargs["hidden_states"]]

    block = vlm.sites[site.replace("_mid", "_pre")].module
    handle = block.register_forward_pre_hook(note, with_kwargs=True)
    with by_hand(vlm.sites[site].module, lambda value: change(entered[0] + value) - entered[0]):
        yield
    handle.remove()


def norm_by_hand(norm, of_scale, of_normalized):
    """By what the norm gives: a factor of its scale, then a change of what was divided by it."""
    bias = getattr(norm, "bias", None)
    bias = 0 if bias is None else bias
    return by_hand(norm, lambda out: bias + norm.weight * of_normalized((out - bias) / norm.weight / of_scale))


def close(found, expected):
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-3)


# --- what is added, and the stream that comes of it -------------------------------------------------------------------


@pytest.mark.parametrize("site", WRITTEN + MIDDLES)
def test_what_runs_inside_an_edit_of_a_sum_is_edited(shared, site):
    vlm, x = shared
    hand = (
        middle_by_hand(vlm, site, without_third) if site in MIDDLES else by_hand(vlm.sites[site].module, without_third)
    )
    plain = vlm.run(x)
    with hand:
        expected = vlm.run(x)
    assert (expected - plain).abs().max() > 0.05
    with vlm.visiting({site: without_third}):
        found = [vlm.capture(x, inner) for inner in (site, WRITTEN[0], MIDDLES[0], WRITTEN[1], "*.hook_*out")]
        parts = li.direct(vlm, x)
    assert all(close(one["logits"], expected) for one in found)
    assert found[0][site][:, 3].abs().max() == 0
    answers = expected[0, x.answer_positions - 1].gather(1, x.answer_ids[:, None])[:, 0]
    assert close(parts.logit.float(), answers)
    assert torch.equal(vlm.run(x), plain)


@pytest.mark.parametrize("outer", ["attn_out", "resid_mid"])
@pytest.mark.parametrize("inner", ["attn_out", "resid_mid"])
def test_an_edit_inside_an_edit_of_a_sum_comes_behind_it(shared, outer, inner):
    """What is added comes before what is made of it, whichever is inside."""
    vlm, x = shared
    edits = (f"blocks.1.hook_{outer}", doubled), (f"blocks.1.hook_{inner}", lambda value: value + 1)
    added, whole = ([edit for name, edit in edits if name.endswith(end)] for end in ("attn_out", "mid"))
    chained = [lambda value, some=some: [value := edit(value) for edit in some][-1] for some in (added, whole) if some]
    hands = []
    if added:
        hands.append(by_hand(vlm.sites["blocks.1.hook_attn_out"].module, chained[0]))
    if whole:
        hands.append(middle_by_hand(vlm, "blocks.1.hook_resid_mid", chained[-1]))
    with contextlib.ExitStack() as stack:
        for hand in hands:
            stack.enter_context(hand)
        expected = vlm.run(x)
    with vlm.visiting(dict(edits[:1])), vlm.visiting(dict(edits[1:])):
        assert close(vlm.run(x), expected)


def test_a_hook_that_is_put_on_inside_adds_nothing_to_the_stream(shared):
    """What it gives is what is added, whatever it adds to make it."""
    vlm, x = shared
    site, shift = "blocks.1.hook_attn_out", torch.linspace(-1, 1, 32).expand(1, x.length, 32)
    attention, plain = vlm.sites[site].module, vlm.run(x)
    with by_hand(attention, lambda value: without_third(shift + value)):
        expected = vlm.run(x)
    with vlm.visiting({site: without_third}), by_hand(attention, lambda value: shift + value):
        assert close(vlm.run(x), expected) and not close(plain, expected)


# --- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMS)
def test_parts_of_a_norm_are_made_of_each_other(shared, name):
    """In one call, in either order, and in one `with` inside another."""
    vlm, x = shared
    scale, normalized = f"{name}.hook_scale", f"{name}.hook_normalized"
    edits = {scale: doubled, normalized: turned}
    norm, plain = vlm.sites[scale].module, vlm.capture(x, [scale, normalized])
    with norm_by_hand(norm, 2, turned):
        expected = vlm.run(x)
    assert not close(expected, plain["logits"])
    for some in (edits, dict(reversed(edits.items()))):
        found = vlm.capture(x, [scale, normalized], edits=some)
        assert close(found["logits"], expected) and close(found[scale], 2 * plain[scale])
        assert close(found[normalized], turned(plain[normalized] / 2))
        assert close(vlm.capture(x, "hook_embed", edits=some)["logits"], expected)
        first, second = ({key: edit} for key, edit in some.items())
        with vlm.visiting(first), vlm.visiting(second):
            assert close(vlm.run(x), expected)
    assert torch.equal(vlm.run(x), plain["logits"])


@pytest.mark.parametrize("part", ["hook_scale", "hook_normalized"])
def test_what_is_inside_sees_the_edited_part(shared, part):
    vlm, x = shared
    scale, normalized = "blocks.1.ln1.hook_scale", "blocks.1.ln1.hook_normalized"
    site, plain = f"blocks.1.ln1.{part}", vlm.capture(x, [scale, normalized])
    shifted = {scale: lambda value: value + 1, normalized: turned}[site]
    with norm_by_hand(vlm.sites[site].module, 1, lambda value: _of(site, shifted, value, plain[scale])):
        expected = vlm.run(x)
    with vlm.visiting({site: doubled}):
        found = vlm.capture(x, [scale, normalized])
        assert close(found[site], 2 * plain[site])
        assert close(found[normalized], plain[normalized] * (0.5 if site == scale else 2))
        with vlm.visiting({site: shifted}):  # the outer one first
            assert close(vlm.run(x), expected)


def _of(site, shifted, normalized, scale):
    """What is normalized after `doubled` and `shifted` of one part."""
    return normalized * scale / shifted(2 * scale) if site.endswith("scale") else shifted(2 * normalized)


@pytest.mark.parametrize("site", ["blocks.1.ln1.hook_scale", "blocks.1.ln1.hook_normalized"])
def test_a_part_of_a_norm_that_is_written_over_is_edited(shared, site):
    vlm, x = shared
    expected = vlm.capture(x, "hook_embed", edits={site: doubled})["logits"]
    with norm_by_hand(vlm.sites[site].module, *((2, torch.clone) if site.endswith("scale") else (1, doubled))):
        assert close(vlm.run(x), expected)
    with vlm.visiting({site: lambda value: value.mul_(2)}):
        assert torch.equal(vlm.run(x), expected)


@pytest.mark.parametrize("name", NORMS)
def test_gradients_of_parts_that_are_captured_together(name):
    """They are finite differences of the plain model, in which a hook moves what the norm gives."""
    vlm = opened(torch.float64)
    x = tiny_inputs(vlm)
    scale, normalized = f"{name}.hook_scale", f"{name}.hook_normalized"
    norm = vlm.sites[scale].module
    found = vlm.capture(x, [scale, normalized], grad=True)
    wanted = torch.autograd.grad(found["logits"][0, -1, 7], [found[scale], found[normalized]])
    bias = 0 if getattr(norm, "bias", None) is None else norm.bias

    def moved(part, way):
        values = {scale: found[scale].detach(), normalized: 0}
        values[part] = values[part] + way
        factor = found[scale].detach() / values[scale]
        with by_hand(norm, lambda out: bias + (out - bias) * factor + norm.weight * values[normalized]):
            return vlm.run(x)[0, -1, 7]

    for part, slope in zip((scale, normalized), wanted, strict=True):
        way = torch.randn(slope.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        way *= 1e-2 / way.norm()
        measured = (moved(part, way) - moved(part, -way)) / 2
        # Norms compute in float32 whatever the model's type, so the step cannot be very small.
        assert torch.allclose((slope * way).sum(), measured, rtol=0.03, atol=2e-6)
        assert slope.abs().max() > 1e-3


@pytest.mark.parametrize("part", ["hook_scale", "hook_normalized"])
@pytest.mark.parametrize("when", ["before", "inside", "ahead"])
def test_a_hook_of_ones_own_on_a_norm_is_not_undone(shared, part, when):
    """Twice what it gives is what a norm of twice the weight gives, with that one's gradients."""
    vlm, x = shared
    site = f"blocks.1.ln2.{part}"
    norm = vlm.sites[site].module
    weight = norm.weight.data.clone()
    norm.weight.data *= 2
    heavy = vlm.capture(x, site, grad=True)
    edited = vlm.capture(x, "hook_embed", edits={site: without_third if part != "hook_scale" else doubled})["logits"]
    norm.weight.data.copy_(weight)
    with contextlib.ExitStack() as stack:
        if when == "inside":  # of an outer `with` at the same norm
            stack.enter_context(vlm.visiting({"blocks.1.ln2.hook_scale": lambda value: value}))
        handle = norm.register_forward_hook(lambda _, args, output: 2 * output, prepend=when == "ahead")
        stack.callback(handle.remove)
        found = vlm.capture(x, site, grad=True)
        again = vlm.capture(x, "hook_embed", edits={site: without_third if part != "hook_scale" else doubled})["logits"]
        plain = vlm.run(x)
    slopes = [torch.autograd.grad(one["logits"][0, -1, 7], one[site])[0] for one in (found, heavy)]
    assert close(found["logits"], plain) and close(again, edited) and close(found["logits"], heavy["logits"])
    assert torch.allclose(*slopes, rtol=1e-3, atol=1e-4) and slopes[0].abs().max() > 1e-2


def test_what_the_last_norm_gives_is_made_of_its_parts(shared):
    """Its output was edited before its scale was to be recorded."""
    vlm, x = shared
    out, scale = "ln_final.hook_out", "ln_final.hook_scale"
    with by_hand(vlm.sites[out].module, without_third):
        expected = vlm.run(x)
    found = vlm.capture(x, scale, edits={out: without_third}, grad=True)
    assert close(found["logits"], expected) and found[scale].requires_grad


def test_a_hook_for_every_module_is_not_undone_in_silence(shared):
    vlm, x = shared
    site = "blocks.1.ln1.hook_scale"
    norm = vlm.sites[site].module
    with register_module_forward_hook(lambda module, args, output: 2 * output if module is norm else None):
        plain = vlm.run(x)
        assert torch.equal(vlm.capture(x, site)["logits"], plain)
        with pytest.raises(SiteError, match="every module changes what LlamaRMSNorm gives"):
            vlm.capture(x, site, edits={site: doubled})
    with register_module_forward_hook(lambda *_: None):
        vlm.capture(x, site, edits={site: doubled})


# --- behind other hooks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["edit", "hook"])
def test_an_edit_behind_another_reaches_what_the_projector_reads(other):
    """Transformers keeps what a layer of the tower gives, by a hook: edits are ahead of it, and behind the others."""
    vlm = opened()
    x, site, out = tiny_inputs(vlm), "vision.blocks.0.hook_resid_post", "projector.hook_out"
    layer = vlm.sites[site].module
    first = vlm.visiting({site: doubled}) if other == "edit" else by_hand(layer, doubled)
    with first:
        vlm.run(x)  # from here on transformers' hook is there
        with vlm.visiting({site: turned}):
            found = vlm.capture(x, out)
    fresh = opened()
    with by_hand(fresh.sites[site].module, lambda value: turned(2 * value)):
        expected = fresh.capture(x, out)
    assert close(found[out], expected[out]) and close(found["logits"], expected["logits"])
    assert not close(vlm.capture(x, out)[out], expected[out])


def test_nothing_is_left(shared):
    vlm, x = shared
    vlm.run(x)
    before = hooks_of(vlm.model)
    with vlm.visiting({"*.hook_scale": torch.clone}), vlm.visiting({"*.hook_mlp_out": torch.clone}):
        vlm.capture(x, ["*.hook_normalized", "*.hook_resid_mid"])
    assert hooks_of(vlm.model) == before
