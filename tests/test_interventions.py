"""Interventions: each equal to hand-made masks and hooks on the plain model, and certified to have taken place."""

import contextlib

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.interventions import Ablate, Freeze, Knockout, Patch, Scale, Steer, intervene
from tests.families import tiny_example, tiny_model
from tests.tiny import hooks_of, tiny_inputs, tiny_llava

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen3_vl", "gemma3", "internvl", "idefics3", "smolvlm", "paligemma")
MORE = ("mistral3", "aya_vision", "glm4v", "granite4_vision", "cohere2_vision", "got_ocr2")
EXACT = 1e-5


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


@pytest.fixture(scope="module")
def other(vlm):
    return tiny_inputs(vlm, seed=5)


def blocks_of(vlm):
    return vlm.model.model.language_model.layers


def logprobs(vlm, x):
    logits = vlm.model(**x.model_inputs, use_cache=False).logits[0, x.answer_start - 1 : -1]
    return logits.log_softmax(-1).gather(-1, x.answer_ids[:, None])[:, 0]


@contextlib.contextmanager
def hooked(*handles):
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def masked_by_hand(vlm, x, rows, keys, layers):
    """A mask for whole attention modules, written from nothing: causal, and less these edges."""
    seen = torch.ones(x.length, x.length).tril().bool()
    seen[rows[:, None] & keys] = False
    mask = torch.zeros(1, 1, x.length, x.length).masked_fill(~seen, -torch.inf)

    def given(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask}

    hooks = [blocks_of(vlm)[n].self_attn.register_forward_pre_hook(given, with_kwargs=True) for n in layers]
    with hooked(*hooks), torch.no_grad():
        return logprobs(vlm, x)


def output_by_hand(vlm, x, changes):
    """Hooks on modules of transformers: module → function of its output."""

    def around(change):
        def hook(module, args, output):
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        return hook

    with hooked(*(module.register_forward_hook(around(change)) for module, change in changes.items())), torch.no_grad():
        return logprobs(vlm, x)


@pytest.mark.parametrize("layers", [[0], [1, 2], [0, 1, 2]])
def test_a_knockout_is_a_mask_by_hand(vlm, x, layers):
    for rows, keys in (("last", "image"), (["question", "template"], "image"), ("predicting", [1, 2, 8])):
        if rows == "last":
            places = torch.arange(x.length) == x.answer_start - 1
        elif rows == "predicting":
            places = torch.arange(x.length) >= x.answer_start - 1
        else:
            places = x.where(*rows)
        read = x.where("image") if keys == "image" else torch.isin(torch.arange(x.length), torch.tensor(keys))
        found = intervene(vlm, x, Knockout(rows, keys, layers=layers))
        assert torch.allclose(found.logprob[1], masked_by_hand(vlm, x, places, read, layers), atol=EXACT)
        assert torch.allclose(found.logprob[0], logprobs(vlm, x), atol=EXACT) and found.parity < EXACT
        for one in found.certificates:
            assert one.holds and one.fired == 1
            assert one.untouched["attention on these edges"] > 0 == one.achieved["attention on these edges"]


def test_a_knockout_of_one_head_is_its_share(vlm, x):
    """By the eager formula, one head's row anew."""
    layer, head, last = 1, 2, x.answer_start - 1
    site = f"blocks.{layer}.attn."
    found = vlm.capture(x, [f"{site}hook_pattern", f"{site}hook_v"])
    pattern, v = found[f"{site}hook_pattern"][0, head, last], found[f"{site}hook_v"][0, :, head // 2]
    left = pattern * ~x.where("image")
    z = (left / left.sum()) @ v

    def changed(value):
        new = value.clone()
        new[0, last, head] = z
        return new

    by_hand = vlm.capture(x, "hook_embed", edits={f"{site}hook_z": changed})["logits"]
    got = intervene(vlm, x, Knockout("last", "image", heads=[(layer, head)]))
    want = by_hand[0, x.answer_start - 1 : -1].log_softmax(-1).gather(-1, x.answer_ids[:, None])[:, 0]
    assert torch.allclose(got.logprob[1], want, atol=EXACT)


def test_heads_and_neurons_are_removed_by_hand(vlm, x):
    width = 8

    def less(module, args):
        value = args[0].clone()
        value[..., 2 * width : 3 * width] = 0
        return (value,)

    with hooked(blocks_of(vlm)[1].self_attn.o_proj.register_forward_pre_hook(less)), torch.no_grad():
        by_hand = logprobs(vlm, x)
    assert torch.allclose(intervene(vlm, x, Ablate(heads=[(1, 2)])).logprob[1], by_hand, atol=EXACT)
    assert torch.allclose(intervene(vlm, x, Ablate(heads=2, layers=1)).logprob[1], by_hand, atol=EXACT)

    def without(value):
        value = value.clone()
        value[..., [3, 5]] = 0
        return value

    by_hand = output_by_hand(vlm, x, {blocks_of(vlm)[0].mlp: without})
    got = intervene(vlm, x, Ablate("blocks.0.hook_mlp_out", neurons=[3, 5]))
    assert torch.allclose(got.logprob[1], by_hand, atol=EXACT)


def test_a_direction_is_removed_and_nothing_beside_it(vlm, x):
    basis = torch.randn(2, 32, generator=torch.Generator().manual_seed(0)).double()
    inverse = torch.linalg.inv(basis @ basis.T)

    def less(value):
        wide = value.double()
        return (wide - wide @ basis.T @ inverse @ basis).to(value)

    by_hand = output_by_hand(vlm, x, {blocks_of(vlm)[1]: less})
    got = intervene(vlm, x, Ablate("blocks.1.hook_resid_post", directions=basis))
    assert torch.allclose(got.logprob[1], by_hand, atol=1e-4)


@pytest.mark.parametrize("by", ["mean", "resample"])
def test_means_and_other_examples_by_hand(vlm, x, other, by):
    where, name = x.where("image"), "blocks.0.hook_mlp_out"
    stored = vlm.capture(other, name)[name]

    def changed(value):
        new = value.clone()
        new[0, where] = stored[0, where] if by == "resample" else stored[0, where].mean(0)
        return new

    by_hand = output_by_hand(vlm, x, {blocks_of(vlm)[0].mlp: changed})
    for source in (other, [other, other] if by == "mean" else vlm.capture(other, name)):
        got = intervene(vlm, x, Ablate(name, "image", by=by, source=source))
        assert torch.allclose(got.logprob[1], by_hand, atol=EXACT)


def test_a_whole_stream_that_is_exchanged_is_the_other_run(vlm, x, other):
    for layer in range(3):
        got = intervene(vlm, x, Patch(f"blocks.{layer}.hook_resid_post", source=other))
        assert torch.allclose(got.logprob[1], logprobs(vlm, other), atol=EXACT)
        assert got.certificates[0].achieved == {"distance to what replaces it": 0.0}
        assert got.certificates[0].untouched["distance to what replaces it"] > 0.1


def test_back_patching_by_hand(vlm, x):
    where, later = x.where("image"), vlm.capture(x, "blocks.2.hook_resid_post")["blocks.2.hook_resid_post"]

    def changed(value):
        new = value.clone()
        new[0, where] = later[0, where]
        return new

    by_hand = output_by_hand(vlm, x, {blocks_of(vlm)[0]: changed})
    got = intervene(vlm, x, Patch("blocks.0.hook_resid_post", "image", source_site="blocks.2.hook_resid_post"))
    assert torch.allclose(got.logprob[1], by_hand, atol=EXACT)


@pytest.mark.parametrize("norm", ["add", "keep"])
def test_steering_by_hand(vlm, x, norm):
    way = torch.randn(32, generator=torch.Generator().manual_seed(3))

    def pushed(value):
        if norm == "add":
            return value - 0.5 * way
        length = value.norm(dim=-1, keepdim=True)
        turned = torch.nn.functional.normalize(value, dim=-1) - 0.5 * torch.nn.functional.normalize(way, dim=0)
        return length * torch.nn.functional.normalize(turned, dim=-1)

    by_hand = output_by_hand(vlm, x, {blocks_of(vlm)[1]: pushed})
    got = intervene(vlm, x, Steer(layers=[1], direction=way, alpha=-0.5, norm=norm))
    assert torch.allclose(got.logprob[1], by_hand, atol=EXACT)
    achieved = got.certificates[0].achieved
    assert achieved["cosine with the direction"] < 0
    if norm == "add":
        assert achieved["length of the push"] == pytest.approx(float(0.5 * way.norm()), rel=1e-4)
    at_layers = Steer(direction={1: way}, alpha=-0.5, norm=norm)
    assert torch.allclose(intervene(vlm, x, at_layers).logprob[1], by_hand, atol=EXACT)


@pytest.mark.parametrize("by", ["weights", "scores"])
def test_keys_that_are_read_more_by_hand(vlm, x, by):
    """Scores and patterns of one layer, rewritten as the papers say."""
    site, keys, last = "blocks.1.attn.", x.where("image"), x.answer_start - 1

    def more(value):
        new = value.clone()
        part = new[:, :, last:]
        if by == "scores":
            part[..., keys] = part[..., keys] + 0.5 * part[..., keys].abs()
        else:
            part[..., keys] = part[..., keys] * 0.5
            part /= part.sum(-1, keepdim=True)
        return new

    name = f"{site}hook_{'attn_scores' if by == 'scores' else 'pattern'}"
    logits = vlm.capture(x, "hook_embed", edits={name: more})["logits"][0, x.answer_start - 1 : -1]
    want = logits.log_softmax(-1).gather(-1, x.answer_ids[:, None])[:, 0]
    got = intervene(vlm, x, Scale(keys="image", factor=0.5, by=by, layers=[1]))
    assert torch.allclose(got.logprob[1], want, atol=EXACT)


def test_what_is_frozen_does_not_hand_on(vlm, x):
    """Path patching: with all later attention and MLPs held, a head reaches the logits directly, as its part says."""
    head = Ablate(heads=[(0, 2)], positions="predicting")
    held = Freeze("blocks.*.attn.hook_z", layers=[1, 2]) + Freeze("blocks.*.hook_mlp_out")
    got = intervene(vlm, x, head + held)
    straight, all_of_it = got.logit[1] - got.logit[0], intervene(vlm, x, head).logit
    normed = vlm.capture(x, "blocks.2.hook_resid_post", positions="answer")  # the norm's scale is not frozen
    assert normed is not None and not torch.allclose(all_of_it[1] - all_of_it[0], straight, atol=1e-3)
    z = vlm.capture(x, "blocks.0.attn.hook_z")["blocks.0.attn.hook_z"][0, x.answer_start - 1 : -1, 2]
    wrote = z @ blocks_of(vlm)[0].self_attn.o_proj.weight[:, 16:24].T
    stream = vlm.capture(x, "blocks.2.hook_resid_post")["blocks.2.hook_resid_post"][0, x.answer_start - 1 : -1]
    with torch.no_grad():
        logits = vlm.model.lm_head(vlm.model.model.language_model.norm(stream - wrote))
    assert torch.allclose(got.logit[1], logits.gather(-1, x.answer_ids[:, None])[:, 0], atol=1e-4)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_in_families_what_no_row_reads_is_hidden(family):
    """An independent way to the same numbers: the engine's coalitions, in which image rows keep their sight."""
    vlm = li.wrap(tiny_model(family), name=family)
    x = tiny_example(vlm, family)
    rows = ~x.where("image")
    if "image" not in x.roles or vlm.recurrent:
        pytest.skip("needs an image in the prompt, and attention alone")
    got = intervene(vlm, x, Knockout(rows, "image"))
    want = li.score(vlm, x, x.hidden("image"), hide_from="text")
    assert torch.allclose(got.logprob[1], want.logprob[0], atol=5e-5)
    assert got.parity < 1e-4 and all(one.holds for one in got.certificates)
    assert float(got.kl.max()) > 0
    other, last = tiny_example(vlm, family, seed=2), f"blocks.{vlm.depth - 1}.hook_resid_post"
    exchanged = intervene(vlm, x, Patch(last, source=other))
    assert torch.allclose(exchanged.logprob[1], li.score(vlm, other, other.everything).logprob[0], atol=5e-5)
    assert not torch.allclose(exchanged.logprob[1], exchanged.logprob[0], atol=1e-3)


def test_the_answer_is_written_under_interventions_too(vlm, x):
    """Token by token, each from all positions anew."""
    prompt = vlm.inputs(x.input_ids[:, : x.answer_start], pixel_values=x.model_inputs["pixel_values"])
    image, ids = x.where("image"), x.input_ids[:, : x.answer_start]
    for _ in range(4):
        length = ids.shape[1]
        rows = torch.arange(length) >= x.answer_start - 1
        longer = vlm.inputs(ids, pixel_values=x.model_inputs["pixel_values"])
        seen = torch.ones(length, length).tril().bool()
        seen[rows[:, None] & torch.nn.functional.pad(image[: x.answer_start], (0, length - x.answer_start))] = False
        mask = torch.zeros(1, 1, length, length).masked_fill(~seen, -torch.inf)
        hooks = [
            block.self_attn.register_forward_pre_hook(
                lambda module, args, kwargs, mask=mask: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
            )
            for block in blocks_of(vlm)
        ]
        with hooked(*hooks), torch.no_grad():
            logits = vlm.model(**longer.model_inputs, use_cache=False).logits[0, -1]
        ids = torch.cat([ids, logits.argmax()[None, None]], 1)
    hooks = hooks_of(vlm.model)
    with li.intervening(vlm, prompt, Knockout("predicting", "image")) as ledger:
        written = vlm.generate(prompt, 4)
    assert list(written.ids) == ids[0, x.answer_start :].tolist()
    assert {one.fired for one in ledger.certificates} == {4}
    assert hooks_of(vlm.model) == hooks
