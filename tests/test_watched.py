"""What was inside while an answer was written, beside captures of the finished answer in plain passes."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.engine.lockstep import Stream
from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.generation.watched import SINKS, _Pass
from lvlm_interp.report import figures
from tests.families import tiny_example, tiny_model
from tests.tiny import IMAGE_TOKEN, tiny_inputs, tiny_llava

EXACT = 1e-4
PATTERN, HEADS, STREAM = "blocks.*.attn.hook_pattern", "blocks.*.attn.hook_z", "blocks.*.hook_resid_post"


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


@pytest.fixture(scope="module")
def found(vlm, x):
    return li.trace(vlm, x, ["hidden", "noise"], max_new_tokens=6, seed=3, inside=True, sites=STREAM)


def written(x, found):
    return x.with_answer(found.ids.tolist(), found.tokens, found.answer)


def rows_of(x, found):
    return range(x.answer_start - 1, x.answer_start - 1 + len(found.ids))


def looked_at(vlm, x, found, positions):
    """By layer and step: the mean over heads of what rows pay to these positions, from whole patterns."""
    whole = vlm.capture(written(x, found), PATTERN)
    rows = list(rows_of(x, found))
    return torch.stack(
        [whole[f"blocks.{n}.attn.hook_pattern"][0].mean(0)[rows][:, positions].sum(-1) for n in range(3)]
    )


def test_attention_is_that_of_whole_patterns(vlm, x, found):
    inside = found.inside
    assert torch.allclose(inside.attention.sum(1), torch.ones(3, 6), atol=EXACT)
    roles = written(x, found).roles
    for name in ("question", "context", "system", "answer"):
        positions = [n for n, role in enumerate(roles) if role == name]
        got = inside.attention[:, inside.groups.index(name)]
        assert torch.allclose(got, looked_at(vlm, x, found, positions), atol=EXACT)
    both = inside.attention[:, inside.groups.index("image")] + inside.attention[:, inside.groups.index(SINKS)]
    positions = [0, *(n for n, role in enumerate(roles) if role == "image")]
    assert torch.allclose(both, looked_at(vlm, x, found, positions), atol=EXACT)


def test_a_row_later_is_another_number(vlm, x, found):
    """The row of a token, and not the one that predicts it, would be noticed."""
    question = [n for n, role in enumerate(x.roles) if role == "question"]
    right = looked_at(vlm, x, found, question)
    got = found.inside.attention[:, found.inside.groups.index("question")]
    assert not torch.allclose(got[:, :-1], right[:, 1:], atol=1e-3)


def test_heads_differ_as_in_plain_passes(vlm, x, found):
    """Of the stream with another picture; and of hidden tokens, which transformers' own mask hides."""
    full = vlm.capture(written(x, found), HEADS, positions=list(rows_of(x, found)))
    other = li.counterfactuals.applied(li.counterfactuals.named("noise"), vlm, x.prompt, 3)
    noisy = vlm.capture(written(other, found), HEADS, positions=list(rows_of(x, found)))
    answered = written(x, found)
    mask = answered.model_inputs["attention_mask"] * ~answered.where("image")
    blind = vlm.capture(answered.with_model_inputs(attention_mask=mask), HEADS, positions=list(rows_of(x, found)))
    for n, without in enumerate((blind, noisy)):
        for layer in range(3):
            name = f"blocks.{layer}.attn.hook_z"
            apart = (full[name] - without[name])[0].norm(dim=-1).T
            assert torch.allclose(found.inside.vision_heads[n, layer], apart, atol=EXACT)
    assert float(found.inside.vision_heads.min(-1).values.max()) > 0.01


def test_the_lens_reads_what_was_written(vlm, x, found):
    captured = vlm.capture(written(x, found), STREAM, positions=list(rows_of(x, found)))
    for n in range(3):
        chances = vlm.readout(captured[f"blocks.{n}.hook_resid_post"][0]).softmax(-1)
        assert torch.allclose(found.inside.lens[n], chances[range(6), found.ids], atol=EXACT)
        kept = found.inside.captured[f"blocks.{n}.hook_resid_post"]
        assert torch.allclose(kept, captured[f"blocks.{n}.hook_resid_post"][0], atol=EXACT)
    assert torch.allclose(found.inside.lens[-1].log(), found.logprob, atol=5e-4)


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "mllama", "granite4_vision"])
def test_in_families(family):
    vlm = li.wrap(tiny_model(family), name=family)
    x = tiny_example(vlm, family)
    found = li.trace(vlm, x, max_new_tokens=3, inside=True)
    if not len(found.ids):
        pytest.skip("it writes nothing")
    seen = ~found.inside.attention[:, 0, 0].isnan()
    assert torch.allclose(found.inside.attention[seen].sum(1), torch.ones(()), atol=5e-4) and seen.any()
    assert torch.allclose(found.inside.lens[-1].log(), found.logprob, atol=1e-3)


def test_layers_that_hand_on_a_state():
    vlm = li.wrap(tiny_model("lfm2_vl"), name="lfm2_vl")
    x = tiny_example(vlm, "lfm2_vl")
    with pytest.raises(InputError, match="without='blank'"):
        li.trace(vlm, x, max_new_tokens=2, inside=True)
    found = li.trace(vlm, x, "noise", max_new_tokens=2, inside=True).inside
    assert found.attention[:, 0, 0].isnan().any() and not found.lens.isnan().any()


def test_sinks_are_looked_at_by_all(vlm, x):
    """One patch gets six times what the others do: that one, and the first position."""
    one = _Pass(vlm, x.prompt, 1)
    image = x.where("image").nonzero()[:, 0]
    row = torch.full((2, x.answer_start), 0.01)
    row[:, image[2]] = 0.06
    one.looked = {0: row}
    assert one._sinks(x.answer_start).nonzero()[:, 0].tolist() == [0, int(image[2])]
    row[:, image[2]] = 0.04
    assert one._sinks(x.answer_start).nonzero()[:, 0].tolist() == [0]


def test_a_prompt_that_ends_with_its_image(vlm):
    ids = torch.tensor([[1, 20, 21, *[IMAGE_TOKEN] * 4]])
    asked = vlm.inputs(ids, answer_start=7, pixel_values=torch.randn(1, 3, 28, 28))
    found = li.trace(vlm, asked, "noise", max_new_tokens=3, inside=True).inside
    assert torch.allclose(found.attention.sum(1), torch.ones(3, 3), atol=EXACT)


def test_interventions_are_seen_inside(vlm, x):
    with li.intervening(vlm, x, li.Knockout("predicting", "image")):
        found = li.trace(vlm, x, "noise", max_new_tokens=3, inside=True).inside
    assert float(found.attention[:, found.groups.index("image")].abs().max()) == 0


def test_what_cannot_be_watched(vlm, x):
    with pytest.raises(SiteError, match=r"blocks\.9"):
        li.trace(vlm, x, sites="blocks.9.hook_resid_post")
    with pytest.raises(InputError, match="positions of its own"):
        li.trace(vlm, x, sites="vision.*")


def test_it_is_kept_and_drawn(vlm, x, found, tmp_path):
    read = li.load_result(found.save(tmp_path / "a.safetensors"))
    assert read == found and read.inside == found.inside
    assert li.trace(vlm, x, max_new_tokens=2).inside is None
    frame = found.inside.to_frame()
    assert len(frame) == 18 and {"attention image", "attention sinks", "lens", "heads noise"} <= {*frame}
    assert frame["heads noise"][4] == pytest.approx(float(found.inside.vision_heads[1, 1, :, 1].mean()))
    drawn = figures.trace_layers(found.inside, "sinks").images[0].get_array()
    assert torch.allclose(torch.tensor(drawn), found.inside.attention[:, found.inside.groups.index(SINKS)])
    assert [*figures.trace_lines(found, "kl").lines[2].get_ydata()] == found.kl[1].tolist()
    for draw in (lambda: figures.trace_layers(found.inside, "sky"), lambda: figures.trace_lines(found, "sky")):
        with pytest.raises(InputError, match=r"sky|quantity"):
            draw()


def test_streams_are_told_apart(vlm, x):
    """A stream that saw everything would differ by nothing."""
    prompt = x.prompt
    seen = Stream(prompt, prompt.everything)
    one, other = _Pass(vlm, prompt, 2), _Pass(vlm, prompt, 2)
    for each in (one, other):
        each.keep(HEADS.replace("*", "{}"))
        each.run(seen, torch.tensor([30, 31]))
    assert all(torch.equal(one.rows[name], other.rows[name]) for name in one.rows)
