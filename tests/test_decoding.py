"""Logits that are changed before a token is taken of them: by hand, beside plain passes, and inside `generate`."""

import math

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.engine import lockstep
from lvlm_interp.engine.lockstep import Anew, Stream, Together
from lvlm_interp.errors import InputError
from lvlm_interp.generation import CONTRASTIVE, ChangedLogits, Contrastive, DeCo, DoLa, Greedy, Step
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

EXACT = 1e-5


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


@pytest.fixture
def step():
    last = torch.tensor([3.0, 2.9, 1.0, -6.0])
    return Step(last[None], (), {0: torch.tensor([3.0, 2.8, 1.1, -6.0]), 1: torch.tensor([4.0, -1.0, 0.0, 2.0])})


def shares(logits):
    return [math.exp(one) / sum(math.exp(other) for other in logits.tolist()) for one in logits.tolist()]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_dola_by_hand(step):
    """The layer that differs most is taken away, in log-probabilities; unlikely tokens are out."""
    p, far = shares(step.logits[0]), shares(step.layers[1])
    m = [(a + b) / 2 for a, b in zip(p, far, strict=True)]
    logs = [part.log_softmax(-1) for part in (step.logits[0], step.layers[1])]
    assert DoLa().distance(*logs) == pytest.approx((kl(p, m) + kl(far, m)) / 2, rel=1e-5)
    assert DoLa(reading="code").distance(*logs) == pytest.approx((kl(m, p) + kl(m, far)) / 2, rel=1e-5)
    found = DoLa().changed(step)
    assert torch.allclose(found[:3], (logs[0] - logs[1])[:3]) and found[3] == -torch.inf
    assert DoLa().choose(step, torch.Generator()) == 1 != Greedy().choose(step, torch.Generator())


def test_deco_by_hand(step):
    """The layer that is surest of a candidate is added, as much as it is sure."""
    rule = DeCo(layers=(0, 1), alpha=0.5, top_k=2)
    sure = max(shares(step.layers[1])[:2])
    assert sure > max(shares(step.layers[0])[:2])
    found = rule.changed(step)
    assert torch.allclose(found[:2], step.logits[0, :2] + 0.5 * sure * step.layers[1][:2], atol=1e-6)
    assert found[2:].tolist() == [-torch.inf] * 2
    p = shares(step.logits[0])
    assert p[0] < 0.52 < p[0] + p[1]
    assert DeCo(top_p=0.52).candidates(step.logits[0]).tolist() == [True, True, False, False]
    assert DeCo(top_p=0.3).candidates(step.logits[0]).tolist() == [True, False, False, False]


@pytest.mark.parametrize(("layers", "depth", "found"), [((0.0, 0.5), 32, range(16)), ((0.625, 0.9), 32, range(20, 29))])
def test_spans_of_the_depth(layers, depth, found):
    assert DoLa(layers=layers).layers_of(depth) == [*found]


def test_layers_by_number():
    assert DeCo(layers=(2, -1)).layers_of(6) == [2, 5]
    for wrong in ((7,), (0.9, 0.95)):
        with pytest.raises(InputError, match="no block"):
            DoLa(layers=wrong).layers_of(6)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "granite4_vision", "mllama", "lfm2_vl"])
def test_layers_are_those_of_a_plain_pass(family):
    """In lockstep and anew: what is read behind a block is what a capture of the finished answer has there."""
    vlm = li.wrap(tiny_model(family), name=family)
    x = tiny_example(vlm, family).prompt
    streams = [Stream(x, x.everything), Stream(x, x.hidden("image"))]
    words = [30, 31]
    running = lockstep.lockstep(vlm, streams, 4, [0, 1])
    states = [running.begin(), *map(running.step, words)]
    written = x.with_answer([*words, 32], [""] * 3, "")
    plain = vlm.capture(written, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"])
    at = x.answer_start - 1 + len(words)
    for n in (0, 1):
        assert torch.allclose(running.behind[n], plain[f"blocks.{n}.hook_resid_post"][0, at], atol=5e-4)
    assert torch.allclose(vlm.readout.logits(states[-1][0]), vlm.run(written)[0, at], atol=5e-4)
    assert isinstance(running, Anew if family in ("mllama", "lfm2_vl") else Together)


def test_the_check_fails_for_another_row(vlm, x):
    """The stream that does not see the image has other states behind the same block."""
    prompt = x.prompt
    blind = Stream(prompt, prompt.hidden("image"))
    found = []
    for streams in ([Stream(prompt, prompt.everything), blind], [blind, Stream(prompt, prompt.everything)]):
        running = lockstep.lockstep(vlm, streams, 2, [1])
        running.begin()
        running.step(30)
        found.append(running.behind[1])
    assert not torch.allclose(*found, atol=1e-2)


RULES = {**CONTRASTIVE, "dola": DoLa(), "deco": DeCo(layers=(0, 1)), "strong": Contrastive(weight=5.0)}


@pytest.mark.parametrize("name", RULES)
def test_generate_writes_what_trace_writes(vlm, x, name):
    rule = RULES[name]
    traced = li.trace(vlm, x, "noise", choosing=rule, max_new_tokens=6, seed=3)
    processor = ChangedLogits(vlm, x, rule, "noise", seed=3)
    for _ in range(2):  # a processor is used for one answer after another
        ids = vlm.model.generate(
            **x.prompt.model_inputs, logits_processor=[processor], max_new_tokens=6, do_sample=False
        )
        assert ids[0, x.answer_start :].tolist()[: len(traced.ids)] == traced.ids.tolist()


def test_rules_write_other_answers(vlm, x):
    """Otherwise agreement would show nothing."""
    plain = li.trace(vlm, x, "noise", max_new_tokens=6, seed=3).ids
    for name in ("strong", "dola"):
        assert not li.trace(vlm, x, "noise", choosing=RULES[name], max_new_tokens=6, seed=3).ids.equal(plain)


def test_what_generate_cannot_be_asked_for(vlm, x):
    def write(processor, **options):
        told = {**x.prompt.model_inputs, "max_new_tokens": 4, "do_sample": False, **options}
        return vlm.model.generate(**told, logits_processor=[processor])

    with pytest.raises(InputError, match="one beam"):
        write(ChangedLogits(vlm, x, CONTRASTIVE["vcd"]), num_beams=2)
    with pytest.raises(InputError, match="max_new_tokens=2"):
        write(ChangedLogits(vlm, x, CONTRASTIVE["vcd"], max_new_tokens=2))
    other = x.prompt.input_ids.index_fill(1, torch.tensor([9]), 44)
    with pytest.raises(InputError, match="another prompt"):
        write(ChangedLogits(vlm, x, CONTRASTIVE["vcd"]), input_ids=other)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: DoLa(cut=1.5), "probability"),
        (lambda: DeCo(top_p=-0.1), "probability"),
        (lambda: DeCo(top_k=0), "at least one candidate"),
    ],
)
def test_parameters_that_cannot_be(make, told):
    with pytest.raises(InputError, match=told):
        make()


def test_another_instruction(reference, purple_banana):
    """ICD's stream: the same picture and question behind an instruction, from its own positions."""
    other = li.counterfactuals.instruction("Answer like a pirate.")
    changed = li.counterfactuals.applied(other, reference, purple_banana)
    assert changed.question == "Answer like a pirate. What color is the banana?"
    assert torch.equal(changed.model_inputs["pixel_values"], purple_banana.model_inputs["pixel_values"])
    found = li.trace(reference, purple_banana, other, max_new_tokens=3)
    assert found.streams == ("instruction",)
    after = li.contrast(reference, purple_banana.with_answer(found.ids.tolist(), found.tokens, found.answer), other)
    assert torch.allclose(found.delta_nats[0], after.delta_nats, atol=1e-4)
    for x, row in ((purple_banana, found.logprob), (changed.prompt, found.logprob - found.delta_nats[0])):
        written = x.with_answer(found.ids.tolist(), found.tokens, found.answer)
        assert torch.allclose(li.score(reference, written, written.everything[None]).logprob[0], row, atol=1e-4)


def test_an_instruction_needs_a_question_that_is_known(vlm, x):
    with pytest.raises(InputError, match="one turn"):
        li.trace(vlm, x, li.counterfactuals.instruction("Be vague."), max_new_tokens=2)
    with pytest.raises(InputError, match="a blank"):
        li.counterfactuals.instruction("  ")
