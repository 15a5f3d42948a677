"""Compiled models: what is captured, edited and scored is what the model computes without the compiler."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import ModelError
from tests.tiny import tiny_inputs, tiny_llava


def count(graph, inputs):
    """A compiler that changes nothing, but what it made runs in the place of modules and their hooks."""
    return graph.forward


def compiled(model, how):
    language = model.model.language_model
    if how == "model":
        return torch.compile(model, backend=count)
    if how == "in place":
        model.compile(backend=count)
    if how == "decoder":
        model.model.language_model = torch.compile(language, backend=count)
    if how == "blocks":
        for n, block in enumerate(language.layers):
            language.layers[n] = torch.compile(block, backend=count)
    if how == "attention in place":
        for block in language.layers:
            block.self_attn.compile(backend=count)
    if how == "forward":
        model.forward = torch.compile(model.forward, backend=count)
    if how == "forwards of MLPs":
        for block in language.layers:
            block.mlp.forward = torch.compile(block.mlp.forward, backend=count)
    if how == "head":
        model.lm_head = torch.compile(model.lm_head, backend=count)
    return model


HOW = ["model", "in place", "decoder", "blocks", "attention in place", "forward", "forwards of MLPs", "head"]


@pytest.fixture(params=HOW)
def pair(request):
    """A compiled model, which has run before it is opened, and the same one as it is written."""
    model = compiled(tiny_llava(), request.param)
    plain = li.wrap(tiny_llava())
    x = tiny_inputs(plain)
    try:
        with torch.no_grad():
            model(**x.model_inputs)
    except NameError as error:  # transformers 5.9 compiled by torch 2.6
        pytest.skip(f"this torch cannot compile this transformers: {error}")
    yield li.wrap(model), plain, x
    torch._dynamo.reset()


def test_captures_and_edits(pair):
    vlm, plain, x = pair
    assert vlm.sites.keys() == plain.sites.keys() and vlm.fingerprint == plain.fingerprint
    zeroed = {"blocks.1.attn.hook_z": torch.zeros_like, "blocks.2.hook_resid_pre": lambda value: value * 2}
    for edits in ({}, zeroed):
        found, expected = vlm.capture(x, "*", edits=edits), plain.capture(x, "*", edits=edits)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(vlm.run(x), plain.run(x)) and not torch.equal(found["logits"], vlm.run(x))


def test_methods(pair):
    vlm, plain, x = pair
    assert torch.equal(li.contrast(vlm, x).delta, li.contrast(plain, x).delta)
    hidden = torch.stack([x.everything, x.hidden("image"), x.hidden("question")])
    assert torch.equal(li.score(vlm, x, hidden).logits(), li.score(plain, x, hidden).logits())
    assert torch.equal(li.lens(vlm, x).entropy, li.lens(plain, x).entropy)
    assert torch.equal(li.direct(vlm, x).heads, li.direct(plain, x).heads)
    assert torch.equal(li.credit(vlm, x).credits, li.credit(plain, x).credits)


def test_methods_that_were_compiled_are_computed_as_they_are_written():
    plain, model = li.wrap(tiny_llava()), tiny_llava()
    model.model.get_image_features = torch.compile(model.model.get_image_features, backend="eager")
    vlm = li.wrap(model)
    x = tiny_inputs(vlm)
    for name in ("vision.*", "blocks.0.hook_resid_post"):
        ours, theirs = vlm.capture(x, name), plain.capture(tiny_inputs(plain), name)
        assert all(torch.allclose(ours[site], theirs[site], atol=1e-4) for site in theirs)
    assert li.check(vlm, x).ok


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_torch_jit_made_is_refused_by_name(when):
    model = tiny_llava()
    vlm = li.wrap(model) if when == "after" else None
    x = tiny_inputs(li.wrap(tiny_llava()))
    model.lm_head = torch.jit.script(model.lm_head)
    with pytest.raises(ModelError, match=r"'lm_head' was made by torch\.jit"):
        li.contrast(li.wrap(model) if vlm is None else vlm, x)
