"""Under edits and hooks, row p is position p, in scores as in the model's own run; what cannot be so is refused.

The oracle is the plain transformers model with ordinary hooks: one forward pass a coalition, under a 4-D mask.
"""

import contextlib

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.attribution import alternatives
from lvlm_interp.attribution.rivals import Rivals
from lvlm_interp.engine.score import score_answers
from lvlm_interp.errors import ModelError
from lvlm_interp.inside.tuned_lens import Fitting
from lvlm_interp.probes import features
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

SITE = "blocks.1.hook_resid_post"


@pytest.fixture
def vlm():
    return li.wrap(tiny_llava())


def without(*positions):
    """Sets rows to 0."""
    return lambda value: value.index_fill(1, torch.tensor(positions) % value.shape[1], 0.0)


def hooked(module, change):
    """An ordinary forward hook."""
    return module.register_forward_hook(lambda module, args, output: change(output))


@torch.no_grad()
def plain(model, x, visible):
    """Logits of the answer by the plain model."""
    found = []
    for row in visible:
        see = torch.ones(x.length, x.length, dtype=torch.bool).tril() & row | torch.eye(x.length, dtype=torch.bool)
        mask = torch.zeros(1, 1, *see.shape).masked_fill(~see, torch.finfo(torch.float32).min)
        places = torch.arange(x.length)[None]
        logits = model(**{**x.model_inputs, "attention_mask": mask, "position_ids": places}, use_cache=False).logits
        found.append(logits[0, x.answer_positions - 1].gather(-1, x.answer_ids[:, None])[:, 0])
    return torch.stack(found)


def coalitions(x):
    return torch.stack([x.everything, x.hidden("image"), x.hidden("context"), x.hidden("image", "question")])


class AtPosition(torch.nn.Module):
    """A user's own layer: position 9 gets nothing from it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, states):
        return self.inner(states).index_fill(1, torch.tensor([9]), 0.0)


class Among(AtPosition):
    """A row less the mean of all."""

    def forward(self, states):
        found = self.inner(states)
        return found - found.mean(1, keepdim=True)


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AtPosition, Among])
@pytest.mark.parametrize("opened", ["before", "after"])
def test_rows_stand_where_they_are_in_layers_of_ones_own(kind, opened, monkeypatch):
    model = tiny_llava()
    block = model.model.language_model.layers[1]
    vlm = li.wrap(model)
    block.mlp = kind(block.mlp)
    vlm = vlm if opened == "before" else li.wrap(model)
    x = tiny_inputs(vlm)
    visible = coalitions(x)
    torch.testing.assert_close(li.score(vlm, x, visible).logit, plain(model, x, visible), rtol=0, atol=1e-5)
    monkeypatch.setattr("lvlm_interp.engine.decoder.written_by_others", lambda *_: [])  # the control
    assert (li.score(vlm, x, visible).logit - plain(model, x, visible)).abs().max() > 1e-3


@pytest.mark.parametrize("position", [-1, -2, -4, 9, 13])
@pytest.mark.parametrize("way", ["edit", "hook"])
def test_a_negative_position_counts_from_the_last_answer_token(vlm, position, way):
    x, block = tiny_inputs(vlm), vlm.decoder.layers[1]
    visible, change = coalitions(x), without(position)
    before = plain(vlm.model, x, visible)
    with hooked(block, change):
        expected = plain(vlm.model, x, visible)
    if way == "edit":
        found = li.score(vlm, x, visible, edits={SITE: change})
    else:
        with hooked(block, change):
            found = li.score(vlm, x, visible)
    assert torch.allclose(found.logit, expected, atol=1e-4)
    assert torch.equal(expected, before) == (position == -1)  # nobody reads the last row


def test_each_of_several_answers_has_its_own_last_row(vlm):
    x, answers = tiny_inputs(vlm), [torch.tensor(ids) for ids in ([7, 8, 9], [7, 8], [5, 6, 7, 8])]
    with hooked(vlm.decoder.layers[1], without(-2)):
        found = score_answers(vlm, x, x.everything[None, : x.answer_start], answers)
        for one, ids in zip(found, answers, strict=True):
            y = tiny_inputs(vlm, tuple(ids.tolist()))
            assert torch.allclose(one.logit, plain(vlm.model, y, y.everything[None]), atol=1e-4)


@pytest.mark.parametrize("position", [5, -2, -4, -6])
@pytest.mark.parametrize("value", ["difference", "odds"])
def test_an_alternative_of_another_length_has_rows_of_its_own(vlm, position, value, monkeypatch):
    """From its first token on, which is read where the answer's is as long as nothing counts from the end."""
    x, change = tiny_inputs(vlm, (7, 8, 9)), without(position)
    monkeypatch.setattr(alternatives, "_given", lambda _, __, part, *___: Rivals(part, [[5, 6]]))

    def logprob(y):
        logits = vlm.model(**y.model_inputs, use_cache=False).logits[0, y.answer_positions - 1]
        return logits.log_softmax(-1).gather(-1, y.answer_ids[:, None]).sum()

    with hooked(vlm.decoder.layers[1], change), torch.no_grad():
        expected = logprob(x) - logprob(tiny_inputs(vlm, (5, 6)))
    with vlm.visiting({SITE: change}):
        found = li.credit(vlm, x, unit="answer", value=value, against=["any"]).total[0]
        monkeypatch.setattr(alternatives, "standing", lambda _: [])  # the control
        monkeypatch.setattr(type(vlm), "active_edits", ())
        mixed = li.credit(vlm, x, unit="answer", value=value, against=["any"]).total[0]
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-4)
    assert (abs(mixed - expected) > 1e-3) == (position in (-4, -6))


@pytest.mark.parametrize("way", ["edit", "hook", "layer"])
def test_features_of_each_example_are_those_alone(vlm, way, monkeypatch):
    """Side by side, padding would shift the position."""
    examples = [tiny_inputs(vlm, ids) for ids in ((7, 8, 9), (7,), (5, 6, 7, 8))]
    block, change = vlm.decoder.layers[1], without(9)
    put = {"edit": lambda: vlm.visiting({SITE: change}), "hook": lambda: hooked(block, change)}
    block.mlp = AtPosition(block.mlp) if way == "layer" else block.mlp
    sites = {"stream": "blocks.2.hook_resid_post"}
    with put.get(way, contextlib.nullcontext)():
        found = li.collect_features(vlm, examples, sites)["stream"].values
        alone = [li.collect_features(vlm, [x], sites)["stream"].values for x in examples]
        monkeypatch.setattr(features, "_by_position", lambda _: False)  # the control
        shifted = li.collect_features(vlm, examples, sites)["stream"].values
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-5)
    assert (shifted - found).abs().max() > 1e-3


@pytest.mark.parametrize("position", [3, 9, 13, 15, -2, -4])
def test_a_hook_at_the_embedding_finds_the_position(vlm, position):
    x, visible = tiny_inputs(vlm), coalitions(tiny_inputs(vlm))
    with hooked(vlm.model.get_input_embeddings(), without(position)):
        found, contrast = li.score(vlm, x, visible), li.contrast(vlm, x)
        expected = plain(vlm.model, x, visible)
    assert torch.allclose(found.logit, expected, atol=1e-4)
    assert contrast.provenance.edits == ("hook: model.language_model.embed_tokens",)


def test_a_pre_hook_at_the_embedding_finds_the_position(vlm):
    """Other tokens, by position: that of an answer too."""
    x, visible, embedding = tiny_inputs(vlm), coalitions(tiny_inputs(vlm)), vlm.model.get_input_embeddings()

    def other(module, args):
        return (args[0].index_fill(1, torch.tensor([9, 14]), 33),)

    handle = embedding.register_forward_pre_hook(other)
    found, expected = li.score(vlm, x, visible), plain(vlm.model, x, visible)
    handle.remove()
    assert torch.allclose(found.logit, expected, atol=1e-4)


def test_several_answers_under_a_hook_at_the_embedding(vlm):
    x, answers = tiny_inputs(vlm), [torch.tensor(ids) for ids in ([7, 8, 9], [7, 5], [5, 6, 7, 8])]
    with hooked(vlm.model.get_input_embeddings(), without(15, -2)):
        found = score_answers(vlm, x, x.everything[None, : x.answer_start], answers, reads=[3, 1, 2])
        for one, ids in zip(found, answers, strict=True):
            y = tiny_inputs(vlm, tuple(ids.tolist()))
            expected = plain(vlm.model, y, y.everything[None])[:, -one.logit.shape[1] :]
            assert torch.allclose(one.logit, expected, atol=1e-4)


def test_a_pre_hook_on_the_decoder_is_refused_by_name(vlm):
    """Scoring calls the decoder with what such a hook gave already."""
    x = tiny_inputs(vlm)

    def doubled(module, args, kwargs):
        return args, {**kwargs, "inputs_embeds": kwargs["inputs_embeds"] * 2}

    handle = vlm.decoder.register_forward_pre_hook(doubled, with_kwargs=True)
    for method in (li.contrast, li.credit, lambda vlm, x: li.score(vlm, x, x.everything)):
        with pytest.raises(ModelError, match=r"pre-hook of your own on 'model\.language_model'.*'hook_embed'"):
            method(vlm, x)
    lens = li.lens(vlm, x, layers=[3], k=1)  # the model's own pass: that hook runs in it, once
    expected = vlm.model(**x.model_inputs).logits[0].log_softmax(-1).amax(-1)
    handle.remove()
    assert torch.allclose(lens.top_logprobs[0, :, 0], expected, atol=1e-4)
    with vlm.visiting({"hook_embed": lambda value: value * 2}):  # what the message advises
        assert torch.allclose(li.lens(vlm, x, layers=[3], k=1).top_logprobs[0, :, 0], expected, atol=1e-4)


def test_a_pre_hook_on_the_first_block_is_refused_where_rows_are_taken_there():
    """Chameleon's decoder makes embeddings of the pictures itself."""
    vlm = li.wrap(tiny_model("chameleon"))
    x = tiny_example(vlm, "chameleon")
    handle = vlm.blocks[0].register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))
    with pytest.raises(ModelError, match=r"pre-hook of your own on 'model\.layers\.0'.*'hook_embed'"):
        li.score(vlm, x, x.everything)
    handle.remove()
    li.score(vlm, x, x.everything)


@pytest.mark.parametrize("name", ["chameleon", "gemma3", "gemma4", "mllama", "qwen2_5_vl"])
def test_a_hook_at_the_embedding_finds_the_position_in_other_families(name):
    """Whose decoders take the pictures, scale, or are given more than embeddings."""
    vlm = li.wrap(tiny_model(name))
    x = tiny_example(vlm, name)
    before = vlm.run(x)[0, x.answer_positions - 1]
    with hooked(vlm.model.get_input_embeddings(), without(-2, x.answer_start - 2)):
        expected = vlm.run(x)[0, x.answer_positions - 1]
        found = li.score(vlm, x, x.everything).logits(0)
    assert torch.allclose(found, expected, atol=1e-3) and not torch.allclose(expected, before, atol=1e-2)


def test_without_edits_rows_are_packed_as_before(vlm):
    """The last answer token has no row where nothing stands."""
    x = tiny_inputs(vlm)
    assert li.score(vlm, x, x.everything).rows == x.length - 1
    assert li.score(vlm, x, x.everything, edits={SITE: lambda value: value}).rows == x.length


# --- behind the last block --------------------------------------------------------------------------------------------

READERS = {
    "lens": lambda vlm, x: li.lens(vlm, x, positions=[9]),
    "lens, unnormed": lambda vlm, x: li.lens(vlm, x, norm=False),
    "direct": lambda vlm, x: li.direct(vlm, x),
    "tuned lens": lambda vlm, x: li.fit_tuned_lens(vlm, [x, x], Fitting(steps=1)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("part", ["scale", "normalized", "out"])
def test_an_edit_of_the_final_norm_is_refused_where_it_is_given_other_rows(vlm, reader, part):
    x, name = tiny_inputs(vlm), f"ln_final.hook_{part}"
    with vlm.visiting({name: without(9)}):
        with pytest.raises(ModelError, match=rf"'{name}' is edited, behind the last block.*blocks\.2\.hook_resid_post"):
            READERS[reader](vlm, x)
        vlm.run(x)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("path", ["model.language_model.norm", "model.language_model", "model", "lm_head", ""])
def test_a_hook_behind_the_last_block_is_refused_by_name(vlm, reader, path):
    x, module = tiny_inputs(vlm), vlm.model.get_submodule(path)
    named = path or "LlavaForConditionalGeneration"
    with (
        module.register_forward_hook(lambda *_: None),
        pytest.raises(ModelError, match=f"hook of your own on '{named}', behind the last block"),
    ):
        READERS[reader](vlm, x)
    READERS["lens"](vlm, x)


def test_several_streams_are_refused_and_read_too():
    """What mixes them stands behind the last block; the embedding, and the blocks, do not."""
    vlm = li.wrap(tiny_model("glm5_next"))
    x = tiny_example(vlm, "glm5_next")
    with vlm.visiting({"ln_final.hook_out": without(2)}):
        vlm.run(x)
        with pytest.raises(ModelError, match="behind the last block"):
            li.lens(vlm, x)
    with hooked(vlm.model.get_input_embeddings(), without(2)):
        found = li.lens(vlm, x, layers=-1, k=1)
        expected = vlm.run(x)[0].float().log_softmax(-1).amax(-1)
    assert torch.allclose(found.top_logprobs[0, :, 0], expected, atol=1e-3)


@pytest.mark.parametrize("way", ["edit", "hook"])
def test_the_last_block_is_read_as_the_model_reads_it(vlm, way):
    """What the refusals advise."""
    x, block = tiny_inputs(vlm), vlm.decoder.layers[2]

    def turned(value):
        return torch.cat([value[:, :9], value[:, 9:14].roll(1, -1), value[:, 14:]], 1)

    with hooked(block, turned), torch.no_grad():
        expected = vlm.model(**x.model_inputs).logits[0].log_softmax(-1)
        logits = plain(vlm.model, x, x.everything[None])
    with vlm.visiting({"blocks.2.hook_resid_post": turned}) if way == "edit" else hooked(block, turned):
        found, direct = li.lens(vlm, x, layers=-1, k=1), li.direct(vlm, x)
    assert torch.allclose(found.top_logprobs[0, :, 0], expected.amax(-1), atol=1e-4)
    assert torch.allclose(direct.logit, logits[0].double(), atol=1e-4)


def test_a_norm_behind_attention_is_taken_as_it_is():
    """Its weight is asked of it with rows that stand at no position: a hook by position would change numbers of it."""
    vlm = li.wrap(tiny_model("gemma3"))
    x, block = tiny_example(vlm, "gemma3"), vlm.decoder.layers[0]
    with hooked(block.self_attn, lambda output: (without(4)(output[0]), *output[1:])):
        expected = li.direct(vlm, x)  # 0 before a norm without a bias is 0 behind it
    with hooked(block.post_attention_layernorm, without(4)):
        found = li.direct(vlm, x)
    assert torch.allclose(found.heads, expected.heads, atol=1e-4)
    assert torch.allclose(found.biases, expected.biases, atol=1e-4)


# --- attention inside attention ---------------------------------------------------------------------------------------


def test_attention_of_one_part_is_read_while_that_of_another_is_edited(vlm):
    x = tiny_inputs(vlm)
    with vlm.visiting({"vision.blocks.0.attn.hook_z": lambda value: value * 0}):
        found = li.direct(vlm, x)
        own = [config._attn_implementation for config in (vlm.model.config, vlm.decoder.config)]
    with hooked(vlm.vision.get_submodule("encoder.layers.0.self_attn.out_proj"), lambda out: out * 0 + bias(vlm)):
        expected = plain(vlm.model, x, x.everything[None])[0]
    assert torch.allclose(found.logit, expected.double(), atol=1e-4)
    assert own == ["lvlm_interp_sdpa"] * 2 and vlm.decoder.config._attn_implementation == "sdpa"


def bias(vlm):
    return vlm.vision.get_submodule("encoder.layers.0.self_attn.out_proj").bias


def test_attention_that_is_edited_already_is_read_as_it_is(vlm):
    x = tiny_inputs(vlm)
    edit = {"blocks.1.attn.hook_z": without(9)}
    with vlm.visiting(edit):
        found = vlm.capture(x, ["blocks.1.attn.hook_z", "blocks.2.attn.hook_pattern"])
    at_once = vlm.capture(x, ["blocks.1.attn.hook_z", "blocks.2.attn.hook_pattern"], edits=edit)
    plain = vlm.capture(x, "blocks.2.attn.hook_pattern")
    assert all(torch.equal(found[name], at_once[name]) for name in at_once)
    assert not torch.allclose(found["blocks.2.attn.hook_pattern"], plain["blocks.2.attn.hook_pattern"], atol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("position", [3, -1, -2])
def test_generation_under_an_edit_by_position(family, position):
    """The edit finds the position at every token, as it does where all positions are computed."""
    vlm = li.wrap(tiny_model(family))
    x = tiny_example(vlm, family)

    def shifted(value):
        value = value.clone()
        value[:, position] += 3
        return value

    with vlm.visiting({"blocks.0.hook_resid_post": shifted}):
        said = vlm.generate(x, 4).ids
        ids = []
        for _ in range(4):
            y = x.with_answer([*ids, 0], [""] * (len(ids) + 1), "")
            prompt = {k: v[:, :-1] if k in y.along else v for k, v in y.model_inputs.items()}
            ids.append(int(vlm.call(prompt)[0, -1].argmax()))
    assert list(said) == ids[: len(said)] and len(said) >= 1


def test_a_picture_that_an_edit_lets_the_model_write_ends_its_answer(vlm):
    """What it would write behind is computed from all positions anew, and the model would look for a picture there."""
    x = tiny_inputs(vlm)
    towards = vlm.model.get_output_embeddings().weight[vlm.image_token_id].detach()
    edited = vlm.visiting({"ln_final.hook_out": lambda value: value * 0 + 100 * towards})
    with edited, pytest.raises(ModelError, match=r"writes .*, behind which it would look for a picture"):
        vlm.generate(x, 4)
    assert vlm.generate(x, 4).ids
