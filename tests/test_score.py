"""The engine promises the numbers of one masked forward pass per coalition."""

import dataclasses

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.engine import packed, plan
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.engine.score import score, score_answers
from lvlm_interp.errors import InputError, VisibilityError
from lvlm_interp.model import readout
from tests.tiny import PATCHES, tiny_inputs, tiny_llava


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def vlm(request):
    return li.wrap(tiny_llava(request.param))


def naive(vlm, x, visible, hide_from="all"):
    """The oracle: every row is computed, under a mask that says what it may see."""
    causal = torch.ones(x.length, x.length, dtype=torch.bool).tril()
    own, image, found = torch.eye(x.length, dtype=torch.bool), x.where("image"), []
    for seen in visible:
        see = causal & (seen[None] | own)
        if hide_from == "text":
            see |= causal & image[:, None] & image[None]
        mask = torch.zeros(1, 1, x.length, x.length, dtype=vlm.model.dtype)
        mask.masked_fill_(~see, torch.finfo(vlm.model.dtype).min)
        with torch.no_grad():
            logits = vlm.model(**{**x.model_inputs, "attention_mask": mask}).logits
        found.append(logits[0, x.answer_positions - 1])
    return torch.stack(found)


def random_coalitions(x, count, seed=0):
    visible = torch.rand(count, x.length, generator=torch.Generator().manual_seed(seed)) < 0.6
    return visible | x.where("answer", "template")


def one_patch_each(x):
    visible = x.everything.repeat(len(x.images[0].positions), 1)
    visible[torch.arange(len(visible)), x.images[0].positions] = False
    return visible


@pytest.mark.parametrize("hide_from", ["all", "text"])
def test_equals_one_masked_forward_per_coalition(vlm, hide_from):
    x = tiny_inputs(vlm)
    visible = torch.cat([random_coalitions(x, 24), one_patch_each(x), x.everything[None], x.hidden("image")[None]])
    scores, expected = li.score(vlm, x, visible, hide_from), naive(vlm, x, visible, hide_from)
    assert torch.allclose(scores.logits(), expected, atol=1e-5)
    label = expected.log_softmax(-1).gather(-1, x.answer_ids.expand(len(visible), -1)[..., None])[..., 0]
    assert torch.allclose(scores.logprob, label, atol=1e-5)
    # The check can fail: coalitions differ by far more than the tolerance.
    assert (expected[0] - expected[1]).abs().max() > 0.1


@pytest.mark.parametrize("hide_from", ["all", "text"])
def test_sharing_and_packing_change_no_number(vlm, hide_from, monkeypatch):
    x = tiny_inputs(vlm, images=2)
    visible = torch.cat([one_patch_each(x), random_coalitions(x, 6)])
    expected = naive(vlm, x, visible, hide_from)
    for lookahead, worth, rows in ((1, 1, 512), (2, 3, 20), (4, 1, 1), (32, 10**9, 512)):
        monkeypatch.setattr(plan, "LOOKAHEAD", lookahead)
        monkeypatch.setattr(packed, "WORTH_SHARING", worth)
        monkeypatch.setattr(packed, "ROWS_AT_ONCE", rows)
        assert torch.allclose(li.score(vlm, x, visible, hide_from).logits(), expected, atol=1e-5)


@pytest.mark.parametrize("hide_from", ["all", "text"])
def test_no_pass_holds_more_rows_than_it_may(vlm, hide_from, monkeypatch):
    """Coalitions that part only before the shared prefix have no row in common behind it."""
    x, sizes, kind = tiny_inputs(vlm), [], type(vlm.decoder)
    forward = kind.forward

    def counted(*args, **kwargs):
        sizes.append(kwargs["inputs_embeds"].shape[1])
        return forward(*args, **kwargs)

    visible = one_patch_each(x)
    monkeypatch.setattr(kind, "forward", counted)  # that of an object would count as an edit
    li.score(vlm, x, visible, hide_from)
    at_once = max(sizes)
    monkeypatch.setattr(packed, "ROWS_AT_ONCE", x.length)
    li.score(vlm, x, visible, hide_from)
    assert max(sizes[len(sizes) // 2 :]) <= x.length < at_once


def test_hiding_from_text_is_not_hiding_from_all(vlm):
    x = tiny_inputs(vlm)
    visible = one_patch_each(x)[:1]
    by_all, by_text = li.score(vlm, x, visible).logit, li.score(vlm, x, visible, "text").logit
    assert (by_all - by_text).abs().max() > 1e-3
    nobody = x.hidden("image")[None]  # where no image row is read, who it is hidden from cannot matter
    assert torch.allclose(li.score(vlm, x, nobody).logit, li.score(vlm, x, nobody, "text").logit, atol=1e-6)


def test_hidden_rows_are_not_computed_and_prefixes_are_shared(vlm, monkeypatch):
    x = tiny_inputs(vlm)
    assert li.score(vlm, x, x.hidden("image")[None]).rows == x.length - PATCHES - 1
    twice = torch.stack([x.hidden("image")] * 2)
    assert li.score(vlm, x, twice).rows == x.length - PATCHES - 1  # equal coalitions are one
    monkeypatch.setattr(plan, "LOOKAHEAD", 1)
    monkeypatch.setattr(packed, "WORTH_SHARING", 1)
    question = torch.stack([x.everything, x.hidden("question")])
    behind = x.length - 1 - x.roles.index("question")  # rows that differ, and those that only stand behind them
    assert li.score(vlm, x, question).rows == x.length - 1 + behind - 3


def test_another_image_behind_the_mask_changes_nothing(vlm):
    x = tiny_inputs(vlm)
    other = x.with_model_inputs(pixel_values=torch.randn_like(x.model_inputs["pixel_values"]))
    hidden = x.hidden("image")[None]
    assert torch.equal(li.score(vlm, x, hidden).logit, li.score(vlm, other, hidden).logit)
    assert not torch.equal(li.score(vlm, x, x.everything[None]).logit, li.score(vlm, other, x.everything[None]).logit)


def test_visible_text_keeps_its_positions(vlm):
    """Dropping image rows leaves a gap; closing it would be another prompt."""
    x = tiny_inputs(vlm)
    keep = ~x.where("image")
    closed = vlm.inputs(x.input_ids[:, keep], x.answer_start - PATCHES)
    gap = li.score(vlm, x, x.hidden("image")[None]).logit
    assert (gap - li.score(vlm, closed, closed.everything[None]).logit).abs().max() > 1e-3


def test_several_answers_are_scored_as_each_alone(vlm):
    x, answers = tiny_inputs(vlm), [torch.tensor(ids) for ids in ([5], [6], [7, 8, 9], [7, 8, 10], [11, 12])]
    visible = random_coalitions(x, 5)
    together = score_answers(vlm, x, visible, answers)
    for ids, scores in zip(answers, together, strict=True):
        alone = tiny_inputs(vlm, tuple(ids.tolist()))
        seen = torch.cat([visible[:, : x.answer_start], torch.ones(5, len(ids), dtype=torch.bool)], 1)
        assert torch.allclose(scores.logits(), naive(vlm, alone, seen), atol=1e-5)


def test_later_calls_go_on_from_what_was_computed(vlm, monkeypatch):
    """The same decoder inputs handed in again: fewer rows, the same numbers, also for a longer prompt."""
    monkeypatch.setattr(plan, "LOOKAHEAD", 1)
    monkeypatch.setattr(packed, "WORTH_SHARING", 1)
    x = tiny_inputs(vlm)
    given, visible = (
        run_to_decoder(vlm, x, keep_prompt=True),
        torch.cat([x.everything[None], random_coalitions(x, 4)]),
    )
    answers = [torch.tensor(ids) for ids in ([5, 6], [7, 8], [9, 10])]
    first = score_answers(vlm, x, visible, answers, decoder_inputs=given)
    again = score_answers(vlm, x, visible, answers, decoder_inputs=given)
    assert again[0].rows < first[0].rows and given.kept
    longer = dataclasses.replace(
        x,
        model_inputs={k: v[:, :-1] if v.shape == x.input_ids.shape else v for k, v in x.model_inputs.items()},
        roles=x.roles[:-1],
        answer_start=x.length - 1,
    )
    behind = score_answers(vlm, longer, visible[:, :-1], answers, decoder_inputs=given)
    for ids, *found in zip(answers, first, again, behind, strict=True):
        short = tiny_inputs(vlm, tuple(ids.tolist()))
        long = tiny_inputs(vlm, (7, 8, *ids.tolist()))
        for scores, y in ((found[0], short), (found[1], short), (found[2], long)):
            seen = torch.ones(5, y.length, dtype=torch.bool)
            seen[:, : x.answer_start] = visible[:, : x.answer_start]
            assert (scores.logits() - naive(vlm, y, seen)[:, -2:]).abs().max() < 5e-5


@pytest.mark.parametrize("hide_from", ["all", "text"])
def test_a_prompt_kept_by_one_call_serves_the_others(vlm, hide_from, monkeypatch):
    """Also those that hide parts of it, and those in which image rows see what is hidden from text."""
    monkeypatch.setattr(packed, "WORTH_SHARING", 1)
    x = tiny_inputs(vlm)
    visible = torch.cat([one_patch_each(x), random_coalitions(x, 6)])
    given = run_to_decoder(vlm, x, keep_prompt=True)
    li.score(vlm, x, x.everything[None], decoder_inputs=given)
    assert [len(prompt.rows) for prompt in given.kept] == [x.answer_start]
    found = li.score(vlm, x, visible, hide_from, decoder_inputs=given)
    assert torch.allclose(found.logits(), naive(vlm, x, visible, hide_from), atol=1e-5)
    assert li.score(vlm, x, x.everything[None], decoder_inputs=given).rows == len(x.answer_ids)


def test_methods_share_what_is_computed(vlm):
    x = tiny_inputs(vlm)
    given = run_to_decoder(vlm, x, keep_prompt=True)
    for method, number in ((li.contrast, "delta"), (li.credit, "full"), (li.attribute, "values")):
        alone, shared = getattr(method(vlm, x), number), getattr(method(vlm, x, decoder_inputs=given), number)
        assert torch.allclose(alone, shared, atol=2e-5), method


def test_what_was_taken_down_for_another_example_is_refused(vlm):
    """Without the check its numbers would be returned as those of this one."""
    x = tiny_inputs(vlm)
    given = run_to_decoder(vlm, x)
    other = x.with_model_inputs(pixel_values=torch.randn_like(x.model_inputs["pixel_values"]))
    ids = x.input_ids.clone()
    ids[0, 0] += 1
    for y in (other, dataclasses.replace(x, model_inputs={**x.model_inputs, "input_ids": ids})):
        with pytest.raises(InputError, match="another example"):
            li.contrast(vlm, y, decoder_inputs=given)
    li.contrast(vlm, tiny_inputs(vlm, (9, 9)), decoder_inputs=given)  # another answer is fine


def test_a_prompt_that_goes_on_beyond_what_was_taken_down_is_another(vlm):
    """What stands there was filled in; a later turn of the same chat begins alike."""
    first = tiny_inputs(vlm, answer=())
    given, x = run_to_decoder(vlm, first), tiny_inputs(vlm, (7, 8, 9, 10))
    roles = (*first.roles, "context", "template", "answer", "answer")
    later = dataclasses.replace(x, answer_start=first.length + 2, roles=roles)
    with pytest.raises(InputError, match="another example"):
        li.score(vlm, later, later.everything[None], decoder_inputs=given)


def test_what_was_taken_down_with_another_mask_or_model_is_refused(vlm):
    x = tiny_inputs(vlm)
    given, mask = run_to_decoder(vlm, x), torch.ones_like(x.input_ids)
    mask[0, 1] = 0
    with pytest.raises(InputError, match="another example"):
        li.score(vlm, x.with_model_inputs(attention_mask=mask), x.everything[None], decoder_inputs=given)
    with pytest.raises(InputError, match="another model"):
        li.score(li.wrap(tiny_llava(seed=5)), x, x.everything[None], decoder_inputs=given)
    same = li.wrap(vlm.model)  # the same model, opened again
    assert torch.equal(
        li.score(same, x, x.everything[None], decoder_inputs=given).logit,
        li.score(vlm, x, x.everything[None]).logit,
    )


def test_padding_is_never_seen(vlm):
    x = tiny_inputs(vlm)
    mask = torch.ones_like(x.input_ids)
    mask[0, 1] = 0
    padded = dataclasses.replace(x, model_inputs={**x.model_inputs, "attention_mask": mask})
    without = x.everything
    without[1] = False
    assert torch.allclose(li.score(vlm, padded, x.everything[None]).logit, li.score(vlm, x, without[None]).logit)


def test_position_ids_that_are_given_go_on_in_the_answer(vlm):
    """As a left-padding tokenizer's user would give them."""
    x = tiny_inputs(vlm)
    padded = {k: torch.cat([v.new_zeros(1, 2), v], 1) for k, v in x.model_inputs.items() if k in x.along}
    given = {**x.model_inputs, **padded, "position_ids": (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    longer = vlm.inputs(answer_start=x.answer_start + 2, roles=["template"] * 2 + list(x.roles), **given)
    expected = vlm.run(x)[0, x.answer_positions - 1]
    assert torch.allclose(vlm.run(longer)[0, longer.answer_positions - 1], expected, atol=1e-5)
    assert torch.allclose(li.score(vlm, longer, longer.everything[None]).logits(0), expected, atol=1e-5)


def test_memory_that_runs_out_makes_packs_smaller(vlm, monkeypatch):
    x, calls = tiny_inputs(vlm), []
    visible = random_coalitions(x, 12)
    expected = li.score(vlm, x, visible).logit
    forward = packed.Runner.forward

    def short_of_memory(self, pack, prefix):
        calls.append(len(pack))
        if len(pack) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, pack, prefix)

    monkeypatch.setattr(packed.Runner, "forward", short_of_memory)
    assert torch.allclose(li.score(vlm, x, visible).logit, expected, atol=1e-5)
    assert max(calls) > 2 >= calls[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, x: v.float(), "bool tensor"),
        (lambda v, x: v[:, 1:-1], "positions"),
        (lambda v, x: v[:0], "no coalition"),
        (lambda v, x: v & ~x.where("template"), "predicts the first answer token"),
        (lambda v, x: v & ~x.where("answer"), "answer so far"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(vlm, change, message):
    x = tiny_inputs(vlm)
    with pytest.raises(VisibilityError, match=message):
        li.score(vlm, x, change(x.everything[None], x))


def test_there_must_be_an_answer(vlm):
    x = tiny_inputs(vlm, answer=())
    with pytest.raises(InputError, match="no answer"):
        li.score(vlm, x, x.everything[None])


def test_float64_agrees_to_float64(vlm):
    """What float32 leaves as noise is noise: in double precision engine and oracle agree to 1e-10."""
    double = li.wrap(tiny_llava(dtype=torch.float64))
    x = tiny_inputs(double)
    visible = random_coalitions(x, 8)
    states = li.score(double, x, visible).states
    exact = naive(double, x, visible)
    assert torch.allclose(double.readout.logits(states), exact, atol=1e-10)


# --- half precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_are_read_in_float32(dtype, monkeypatch):
    """Whatever a model computes in: logits in bfloat16 have three digits, fewer than a patch may change."""
    vlm = li.wrap(tiny_llava(dtype=dtype))
    x = tiny_inputs(vlm)
    scores = score(vlm, x, x.everything[None])
    states, weight = scores.states.double(), vlm.readout.weight.double()
    expected = states @ weight.T
    assert torch.allclose(scores.logits().double(), expected, atol=1e-5)
    own = expected.gather(-1, x.answer_ids[None, :, None])[..., 0]
    assert torch.allclose(scores.logit.double(), own, atol=1e-5)
    rounded = vlm.readout.unembed(scores.states).double()
    assert (rounded - expected).abs().max() > 1e-3  # the control
    residual = vlm.capture(x, "blocks.2.hook_resid_post")["blocks.2.hook_resid_post"]
    wide = li.wrap(tiny_llava(dtype=dtype).float()).readout
    assert torch.allclose(vlm.readout(residual), wide(residual.float()), atol=1e-5)
    whole = scores.logits()
    monkeypatch.setattr(readout, "WEIGHTS_AT_ONCE", 7 * weight.shape[1])
    assert torch.allclose(scores.logits(), whole, atol=1e-6)  # a part of the vocabulary at a time
    called = []
    with vlm.readout.unembed.register_forward_hook(lambda *_: called.append(1)):
        scores.logits()
    assert called  # what a user hooks runs


def test_position_ids_that_jump_are_followed():
    """Without a mask transformers would take the jump for the start of another packed sequence."""
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    counted = torch.arange(x.length)[None]
    for positions in (counted + 3 * (counted > 5), counted + counted.clamp(max=x.answer_start - 1)):
        y = vlm.inputs(**{**x.model_inputs, "position_ids": positions}, answer_start=x.answer_start, roles=x.roles)
        plain = vlm.model(**y.model_inputs).logits[0, x.answer_start - 1 : -1].log_softmax(-1)
        expected = plain.gather(1, y.answer_ids[:, None])[:, 0]
        for rows in (1, 2):
            found = li.score(vlm, y, y.everything.expand(rows, -1)).logprob
            assert torch.allclose(found, expected.expand(rows, -1), atol=1e-4)


def test_an_answer_stands_where_answers_stand():
    """Methods put other answers behind the prompt; one that stands otherwise would be another one for each of them."""
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    at = torch.arange(x.length)[None] >= x.answer_start
    for name, value in {"position_ids": torch.arange(x.length)[None] + 5 * at, "attention_mask": (~at).long()}.items():
        with pytest.raises(InputError, match=f"{name} of the answer are"):
            vlm.inputs(**{**x.model_inputs, name: value}, answer_start=x.answer_start, roles=x.roles)
