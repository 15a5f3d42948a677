"""What was set or put in after a model was opened: settings of generation, training mode, attention, adapters."""

import dataclasses

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.errors import ModelError, SiteError
from tests.tiny import tiny_inputs, tiny_llava

SITE = "blocks.1.hook_resid_post"


@pytest.fixture
def vlm():
    return li.wrap(tiny_llava())


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 3.0},
        {"num_beams": 3},
        {"no_repeat_ngram_size": 1},
        {"do_sample": True, "temperature": 5.0},
        {"return_dict_in_generate": True},
        {"suppress_tokens": list(range(100))},
        {"min_new_tokens": 8},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_generation_is_greedy_whatever_the_model_is_set_to(vlm, settings):
    x = tiny_inputs(vlm)
    plain = vlm.generate(x, 12)
    for name, value in settings.items():
        setattr(vlm.model.generation_config, name, value)
    own = vlm.model.generation_config
    assert vlm.generate(x, 12).ids == plain.ids and vlm.model.generation_config is own
    y = x.with_answer(plain.ids, [""] * len(plain.ids), "")
    assert vlm.run(y)[0, y.answer_start - 1 : -1].argmax(-1).tolist() == list(plain.ids)


def test_generation_needs_evaluation_mode(vlm):
    vlm.model.train()
    with pytest.raises(ModelError, match="training mode"):
        vlm.generate(tiny_inputs(vlm))


def in_training(vlm):
    part = vlm.blocks[1].self_attn
    part.attention_dropout = 0.5
    part.train()


def adapted(vlm):
    peft = pytest.importorskip("peft")
    vlm.model.add_adapter(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, lora_dropout=0.5))


def put_in(vlm):
    vlm.blocks[1].mlp = torch.nn.Sequential(vlm.blocks[1].mlp, torch.nn.Dropout(0.5))


def over_a_batch(vlm):
    vlm.model.model.multi_modal_projector.norm = torch.nn.BatchNorm1d(3)


@pytest.mark.parametrize("change", [in_training, adapted, put_in, over_a_batch], ids=lambda change: change.__name__)
def test_a_part_in_training_mode_is_refused_and_named(vlm, change):
    x = tiny_inputs(vlm)
    kept = dataclasses.replace(run_to_decoder(vlm, x), weights=None)
    change(vlm)
    for run in (lambda: vlm.run(x), lambda: li.score(vlm, x, x.everything[None], decoder_inputs=kept)):
        with pytest.raises(ModelError, match=r"'model\.\S+' \(\w+\) is in training mode"):
            run()
    vlm.model.eval()
    vlm.run(x)


def test_training_mode_that_changes_nothing_is_let_be(vlm):
    """Layers without dropout compute the same in either mode: no reason to refuse them."""
    x = tiny_inputs(vlm)
    expected = li.contrast(vlm, x).delta
    vlm.decoder.train()
    assert vlm.decoder.training and torch.equal(li.contrast(vlm, x).delta, expected)


# --- what is set after the model was opened ---------------------------------------------------------------------------


def test_an_attention_function_of_ones_own_is_run_or_refused(vlm):
    """Scores come of it, as of the plain model; its steps are nobody's to read."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    def doubled(module, query, *rest, **options):
        return sdpa_attention_forward(module, query * 2, *rest, **options)

    x = tiny_inputs(vlm)
    before = vlm.run(x)
    AttentionInterface.register("doubled", doubled)
    ALL_MASK_ATTENTION_FUNCTIONS.register("doubled", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    vlm.model.set_attn_implementation("doubled")
    plain = vlm.run(x)
    assert not torch.allclose(plain, before, atol=1e-2)
    assert torch.equal(vlm.capture(x, SITE)["logits"], plain)
    logprobs = plain[0, x.answer_start - 1 : -1].log_softmax(-1).gather(-1, x.answer_ids[:, None])[:, 0]
    assert torch.allclose(li.score(vlm, x, x.everything[None]).logprob[0], logprobs, atol=1e-5)
    with pytest.raises(ModelError, match="of your own"):
        vlm.capture(x, "blocks.*.hook_pattern")


def test_a_configuration_that_runs_fewer_layers_is_named(vlm):
    x = tiny_inputs(vlm)
    vlm.model.config.text_config.num_hidden_layers = 2
    with pytest.raises(SiteError, match=r"num_hidden_layers=2, and only so many of 3 layers"):
        vlm.capture(x, "blocks.2.hook_resid_post")


def test_a_weight_made_in_inference_mode_is_told(vlm):
    """torch counts none of its changes, and the parameter says that it is no tensor of that mode."""
    norm, before = vlm.decoder.layers[0].input_layernorm, vlm.identity
    with torch.inference_mode():
        norm.weight = torch.nn.Parameter(norm.weight * 2, requires_grad=False)
    assert vlm.identity == vlm.fingerprint != before
    vlm.capture(tiny_inputs(vlm), SITE).provenance  # noqa: B018
    norm.weight.data = norm.weight.data.clone()
    assert vlm.identity == vlm.fingerprint != before


def test_another_weight_in_the_memory_of_one_is_read(vlm):
    """As where an allocator gives a place again: alike in each page, and as often counted."""
    vlm.model.big = torch.nn.Linear(256, 256)
    for at in (3, 5):  # in one of them it may be its turn to be read
        before, held = vlm.identity, vlm.model.big.weight.data
        other = torch.nn.Parameter(held)
        other.data.view(-1)[at] += 1
        vlm.model.big.weight = other
        assert vlm.identity == vlm.fingerprint != before


def test_the_end_of_a_weight_is_looked_at(vlm):
    """Though it fills no whole page."""
    vlm.model.big = torch.nn.Linear(2, 10239, bias=False)  # 81,912 bytes: five pages less a number
    for _ in range(2):
        before = vlm.identity
        vlm.model.big.weight.data.view(-1)[12290:] += 1
        assert vlm.identity == vlm.fingerprint != before


def test_a_storage_in_the_place_of_another_is_read(vlm):
    """An allocator gives a place again; of what is set through `.data`, torch counts nothing."""
    vlm.model.big = torch.nn.Linear(256, 256)
    weight, memory = vlm.model.big.weight, bytearray(4 * 256 * 256)
    places, seen = set(), set()
    for number in range(1, 4):
        held = torch.frombuffer(memory, dtype=torch.float32).view(256, 256)
        held.numpy()[number] = 1  # no first number of a page, which sixteen rows fill
        weight.data = held
        del held
        places.add(weight.data_ptr())
        seen.add(vlm.identity)
        assert vlm.identity == vlm.fingerprint
        weight.data = torch.zeros(256, 256)  # not asked here
    assert len(seen) == 3 and len(places) == 1
