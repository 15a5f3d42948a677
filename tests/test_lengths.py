"""Layers that count rows, or know how long the whole is: limits are set so low that tiny examples cross them."""

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import lvlm_interp as li
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.engine.score import score_answers
from lvlm_interp.opening import checks
from lvlm_interp.opening.masked import masked_pass
from tests.families import tiny_example, tiny_model
from tests.families.shared.tiny import ROUNDING
from tests.tiny import tiny_inputs, tiny_llava

pytestmark = pytest.mark.filterwarnings("ignore:the example has")  # that it is longer than the model was made for
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 9.0, 27.0]}


@pytest.fixture
def llama4():
    """Queries are scaled from the fourth row on; in released models, from row 8,191 on."""
    vlm = li.wrap(tiny_model("llama4"))
    attentions = [block.self_attn for block in vlm.blocks]
    assert any(not attention.use_rope for attention in attentions)
    for attention in attentions:
        attention.floor_scale, attention.attn_scale = 4, 1.0
    return vlm, tiny_example(vlm, "llama4")


def turned(kind, limit=10):
    """A tiny LLaVA whose rotary embedding follows the length beyond `limit` positions."""
    model = tiny_llava()
    rotary, config = model.model.language_model.rotary_emb, model.config.text_config
    config.rope_parameters = {
        "rope_type": kind,
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": limit,
        **(FACTORS if kind == "longrope" else {}),
    }
    config.max_position_embeddings = limit
    type(rotary).__init__(rotary, config)
    assert kind in ROPE_INIT_FUNCTIONS
    return li.wrap(model)


@pytest.fixture(params=[("dynamic", 10), ("longrope", 44)], ids=["dynamic", "longrope"])
def following(request):
    """The prompt has 42 positions: with an answer of two it is within the second limit, and so are its beginnings."""
    vlm = turned(*request.param)
    return vlm, tiny_inputs(vlm, images=8)


def coalitions(x):
    first = x.everything
    first[x.images[0].positions[:2]] = False
    return torch.stack([x.everything, x.hidden("image"), x.hidden("question"), first])


def slowly(vlm, x, visible):
    return torch.stack([masked_pass(vlm, x, row) for row in visible])


def test_rows_that_are_left_out_count(llama4):
    vlm, x = llama4
    expected = slowly(vlm, x, coalitions(x))
    assert (li.score(vlm, x, coalitions(x)).logits() - expected).abs().max() < ROUNDING
    assert checks.positions(vlm, x).ok


def test_kept_prompts_and_packed_answers_count(llama4):
    vlm, x = llama4
    given = run_to_decoder(vlm, x, keep_prompt=True)
    for answer in ((7, 8, 9), (7, 8, 9, 11, 12), (30,)):
        y = x.with_answer(list(answer), [""] * len(answer), "")
        found = score_answers(vlm, y, y.everything[None], [y.answer_ids], decoder_inputs=given)[0]
        assert (found.logits(0) - masked_pass(vlm, y, y.everything)).abs().max() < ROUNDING


def test_a_row_of_a_batch_is_its_example(llama4):
    vlm, x = llama4
    longer = x.with_answer([7, 8, 9, 11, 12, 13], [""] * 6, "")
    batch = vlm.batch([x, longer])
    rows = vlm.run(batch)
    assert (batch.of(0, rows) - vlm.run(x)).abs().max() < ROUNDING
    assert (batch.of(1, rows) - vlm.run(longer)).abs().max() < ROUNDING


def test_the_length_is_that_of_the_whole(following):
    vlm, x = following
    expected = slowly(vlm, x, coalitions(x))
    assert (li.score(vlm, x, coalitions(x)).logits() - expected).abs().max() < ROUNDING
    assert (expected[0] - vlm.run(x)[0, x.answer_positions - 1]).abs().max() < ROUNDING
    assert checks.positions(vlm, x).ok


def test_answers_of_two_lengths_are_two_wholes(following):
    vlm, x = following
    given = run_to_decoder(vlm, x, keep_prompt=True)
    answers = [torch.tensor(ids) for ids in ((7, 8, 9), (7, 8, 9, 11, 12), (30,), (31,))]
    for _ in range(2):
        found = score_answers(vlm, x, x.hidden("image")[None], answers, decoder_inputs=given, reads=[1, 2, 1, 1])
        for ids, one in zip(answers, found, strict=True):
            y = x.with_answer(ids.tolist(), [""] * len(ids), "")
            expected = masked_pass(vlm, y, y.hidden("image"))[-len(one.ids) :]
            assert (one.logits(0) - expected).abs().max() < ROUNDING


def test_a_run_forgets_longer_runs(following):
    """Transformers goes on with the frequencies of the longest pass until one is within the original limit."""
    vlm, x = following
    fresh = vlm.run(x)
    longer = x.with_answer([7] * 30, [""] * 30, "")
    vlm.run(longer)
    assert torch.equal(vlm.run(x), fresh)
    vlm.model(**longer.model_inputs)
    assert torch.equal(vlm.capture(x, "blocks.0.hook_resid_post")["logits"], fresh)


def test_short_prompts_are_packed_as_before():
    vlm = turned("longrope", limit=64)
    x = tiny_inputs(vlm)
    assert run_to_decoder(vlm, x).within(vlm, x.length).last is None
    assert (li.score(vlm, x, coalitions(x)).logits() - slowly(vlm, x, coalitions(x))).abs().max() < ROUNDING
