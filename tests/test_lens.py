"""The logit lens against a naive loop over layers and positions, and against the model itself."""

import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.inside import lens as module
from lvlm_interp.model import readout
from tests import tokenizers
from tests.families import FAMILIES, tiny_example, tiny_model


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    vlm = li.wrap(tiny_model(request.param))
    return vlm, tiny_example(vlm, request.param)


@pytest.fixture(scope="module")
def llava():
    vlm = li.wrap(tiny_model("llava"))
    return vlm, tiny_example(vlm, "llava")


def test_the_last_layer_is_the_model(family):
    """Log-probabilities of every position, to 1e-5; one layer earlier they are others."""
    vlm, x = family
    own = vlm.run(x)[0].float().log_softmax(-1)
    found = li.lens(vlm, x, [-2, -1], target=7, k=3)
    assert torch.allclose(found.target_logprob[0, 1], own[:, 7], atol=1e-5)
    assert torch.allclose(found.top_logprobs[1], own.topk(3, 1).values, atol=1e-5)
    assert (found.target_logprob[0, 0] - own[:, 7]).abs().max() > 1e-3
    assert found.kl[1].abs().max() < 1e-5 < found.kl[0].abs().max()


@torch.no_grad()
def naive(vlm, x, norm):
    """Log-probabilities `[layer][position][vocabulary]`, one position at a time, from transformers' own states."""
    states = vlm.model(**x.model_inputs, use_cache=False, output_hidden_states=True).hidden_states
    residual = vlm.capture(x, "blocks.*.hook_resid_post")
    layers = [states[0], *residual.values()][:-1]  # the last of transformers' states is after the norm
    norm_of = vlm.decoder.norm if norm else torch.nn.Identity()
    return [[vlm.model.lm_head(norm_of(row)).log_softmax(-1) for row in layer[0]] for layer in layers]


@pytest.mark.parametrize("norm", [True, False])
def test_every_layer_and_position_against_a_loop(llava, norm):
    vlm, x = llava
    layers, found = naive(vlm, x, norm), li.lens(vlm, x, target=[7, 8], k=4, norm=norm)
    assert found.layers == tuple(range(len(layers)))
    final = layers[-1]
    for n, layer in enumerate(layers):
        for p, logprobs in enumerate(layer):
            assert torch.allclose(found.top_logprobs[n, p], logprobs.topk(4).values, atol=1e-5)
            assert torch.isclose(found.target_logprob[1, n, p], logprobs[8], atol=1e-5)
            assert found.target_rank[0, n, p] == (logprobs > logprobs[7]).sum() + 1
            assert torch.isclose(found.entropy[n, p], -(logprobs.exp() * logprobs).sum(), atol=1e-4)
            assert torch.isclose(found.kl[n, p], (final[p].exp() * (final[p] - logprobs)).sum(), atol=1e-4)


def test_the_norm_makes_a_difference(llava):
    vlm, x = llava
    with_norm, without = li.lens(vlm, x, 1), li.lens(vlm, x, 1, norm=False)
    assert (with_norm.top_logprobs - without.top_logprobs).abs().max() > 1e-2


def test_a_few_positions_at_a_time_change_no_number(llava, monkeypatch):
    """What is held at once decides the memory and nothing else."""
    vlm, x = llava
    whole = li.lens(vlm, x, target=7)
    largest = []
    logprobs = module._logprobs

    def noted(*args):
        found = logprobs(*args)
        largest.append(found.numel())
        return found

    monkeypatch.setattr(module, "_logprobs", noted)
    monkeypatch.setattr(readout, "LOGITS_AT_ONCE", 2 * vlm.readout.vocabulary)
    streamed = li.lens(vlm, x, target=7)
    assert max(largest) == 2 * vlm.readout.vocabulary
    for name in ("top_ids", "top_logprobs", "entropy", "kl", "target_logprob", "target_rank"):
        assert torch.allclose(getattr(whole, name), getattr(streamed, name), atol=1e-5), name


def test_image_positions_have_their_place(llava):
    vlm, x = llava
    found = li.lens(vlm, x, positions="image")
    assert found.positions.tolist() == x.where("image").nonzero().flatten().tolist()
    assert set(found.roles) == {"image"}
    frame = found.to_frame()
    assert len(frame) == len(found.layers) * len(found.positions)
    row = frame[(frame["layer"] == 2) & (frame["position"] == int(found.positions[1]))].iloc[0]
    assert row["word"] == found.top_words[2][1][0]


def test_words_of_several_tokens(reference, purple_banana):
    """The likeliest token of a word, after Jiang et al.; or its first."""
    ids = reference.prompter.answer_ids((), "Purple")
    assert len(ids) > 1
    best = li.lens(reference, purple_banana, [-1], target="Purple")
    first = li.lens(reference, purple_banana, [-1], target="Purple", pieces="first")
    singles = li.lens(reference, purple_banana, [-1], target=ids)
    assert torch.equal(best.of("Purple"), singles.target_logprob.amax(0))
    assert torch.equal(first.of("Purple"), singles.target_logprob[0])
    at = purple_banana.answer_start - 1
    assert first.target_rank[0, 0, at] == 1  # the model says "Purple"


def test_it_saves_and_shows(llava, tmp_path):
    vlm, x = llava
    found = li.lens(vlm, x, target=7)
    again = li.Lens.load(found.save(tmp_path / "lens.safetensors"))
    assert again.to_frame().equals(found.to_frame()) and again.provenance.parameters["norm"] is True
    assert "likeliest word" in found._repr_html_()


def test_what_cannot_be_read(llava):
    vlm, x = llava
    with pytest.raises(InputError, match=r"not in the vocabulary of 200"):
        li.lens(vlm, x, target=200)
    with pytest.raises(SiteError, match=r"no layer 9: this model has 0 .* to 3"):
        li.lens(vlm, x, 9)
    with pytest.raises(InputError, match="no visual codes"):
        li.lens(vlm, x, vocabulary="image")
    with pytest.raises(InputError, match="between 1 and"):
        li.lens(vlm, x, k=0)
    with pytest.raises(InputError, match="read the same"):
        li.lens(vlm, x, target=[7, 7])
    with pytest.raises(InputError, match="was not a target"):
        li.lens(vlm, x, 1).of("banana")


def test_no_more_words_than_a_part_of_the_vocabulary_has():
    vlm = li.wrap(tiny_model("chameleon"))
    x, codes = tiny_example(vlm, "chameleon"), int(module.visual_codes(vlm).sum())
    assert li.lens(vlm, x, vocabulary="image", k=codes).top_logprobs.isfinite().all()
    with pytest.raises(InputError, match=f"between 1 and the vocabulary's {codes}"):
        li.lens(vlm, x, vocabulary="image", k=codes + 1)


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback", "few merges"])
def test_blanks_around_a_target_are_none_of_it(kind, monkeypatch):
    """Any word may stand behind a blank that is a token of its own."""
    chatty = tokenizers.chat(kind, monkeypatch)
    x = chatty.prepare("what color is it?", Image.new("RGB", (28, 28)), answer="purple")
    plain = li.lens(chatty, x, [-1], target="cat")
    for target in ("cat ", "cat\n", "cat  "):
        assert torch.equal(li.lens(chatty, x, [-1], target=target).target_logprob, plain.target_logprob)
    two = chatty.prompter.lettered_ids("a c")
    assert all(chatty.prompter.read(token).strip() for token in two)
