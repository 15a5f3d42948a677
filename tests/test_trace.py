"""An answer while it is written: the tokens that the model writes, and at each what `contrast` says afterwards."""

import math

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.engine import lockstep
from lvlm_interp.engine.lockstep import Anew, Stream, Together
from lvlm_interp.errors import InputError, LvlmInterpError
from lvlm_interp.generation import CONTRASTIVE, Contrastive, Greedy, Sampled, Step
from lvlm_interp.generation.traced import compared
from tests.families import tiny_example, tiny_model
from tests.test_interventions import FAMILIES, MORE
from tests.tiny import tiny_inputs, tiny_llava

EXACT = 1e-5
BESIDE = ("mllama", "qwen3_5", "lfm2_vl")  # pictures that are not among the rows; layers that hand on a state


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


def afterwards(vlm, x, found):
    return x.with_answer(found.ids.tolist(), found.tokens, found.answer)


def test_it_writes_what_the_model_writes_and_says_what_contrast_says(vlm, x):
    found = li.trace(vlm, x, ["hidden", "noise"], max_new_tokens=20, seed=3)
    assert found.ids.tolist() == list(vlm.generate(x, 20).ids) and len(found.ids) == 20
    both = li.contrast(vlm, afterwards(vlm, x, found), ["hidden", "noise"], seed=3)
    for n, name in enumerate(found.streams):
        for one in ("delta", "delta_nats", "hellinger"):
            assert torch.allclose(getattr(found, one)[n], getattr(both[name], one), atol=EXACT)
    assert torch.allclose(found.logprob, both["hidden"].with_logprob, atol=EXACT)
    assert float(found.delta_nats.abs().max()) > 0.1


@pytest.mark.parametrize("family", [*FAMILIES, *MORE, *BESIDE])
def test_in_families_it_is_as_from_all_positions_anew(family, monkeypatch):
    vlm = li.wrap(tiny_model(family), name=family)
    x = tiny_example(vlm, family)
    found = li.trace(vlm, x, max_new_tokens=5)
    if {*found.ids.tolist()} & {*vlm.visual_token_ids}:
        pytest.skip("it writes what stands for a picture")
    made = []
    monkeypatch.setattr(
        lockstep, "Together", lambda vlm, streams, inputs, layers: made.append(1) or Anew(vlm, streams, layers)
    )
    slow = li.trace(vlm, x, max_new_tokens=5)
    assert bool(made) == (family not in BESIDE)
    assert found.ids.equal(slow.ids)
    if len(found.ids):
        assert torch.allclose(found.delta_nats, slow.delta_nats, atol=5e-5)
        after = li.contrast(vlm, afterwards(vlm, x.prompt, found))
        assert torch.allclose(found.delta_nats[0], after.delta_nats, atol=5e-5)


def test_streams_do_not_see_each_other(vlm, x):
    """A row that saw the other stream's keys would be told by this: whose keys they are matters."""
    streams = [Stream(x.prompt, x.prompt.everything), Stream(x.prompt, x.prompt.hidden("image"))]
    running = lockstep.lockstep(vlm, streams, 4)
    assert isinstance(running, Together)
    running.begin()
    right = running.step(7)
    again = lockstep.lockstep(vlm, streams, 4)
    again.begin()
    again._owned = torch.ones_like(again._owned)
    assert not torch.allclose(right, again.step(7), atol=1e-3)


def test_distances_by_hand():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 1.0, 2.0, -3.0]])
    found = compared(logits, 0)
    p, q = logits.double().softmax(-1)
    m = (p + q) / 2
    kl = sum(float(a * math.log(a / b)) for a, b in zip(p, q, strict=True))
    js = sum(0.5 * float(a * math.log(a / c) + b * math.log(b / c)) for a, b, c in zip(p, q, m, strict=True))
    hellinger = math.sqrt(sum(0.5 * (math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in zip(p, q, strict=True)))
    assert float(found["kl"]) == pytest.approx(kl) and float(found["jensen_shannon"]) == pytest.approx(js)
    assert float(found["hellinger"]) == pytest.approx(hellinger) and found["rank"].tolist() == [2]
    assert float(found["entropy"]) == pytest.approx(-sum(float(a * math.log(a)) for a in p))
    apart = compared(torch.tensor([[0.0, -200.0], [-200.0, 0.0]]), 0)
    assert float(apart["jensen_shannon"]) == pytest.approx(math.log(2)) and float(apart["hellinger"]) == pytest.approx(
        1
    )
    same = compared(logits[:1].repeat(2, 1), 0)
    assert all(abs(float(same[name])) < 1e-12 for name in ("kl", "jensen_shannon", "hellinger", "delta"))


def test_what_is_drawn_is_drawn_from_the_seed(vlm, x):
    drawn = [li.trace(vlm, x, choosing=Sampled(), max_new_tokens=8, seed=seed).ids.tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    surest = li.trace(vlm, x, choosing=Sampled(top_p=1e-6), max_new_tokens=8)
    assert surest.ids.equal(li.trace(vlm, x, max_new_tokens=8).ids)
    counts = torch.zeros(4)
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for _ in range(2000):
        counts[Sampled(temperature=2.0, top_p=0.85).choose(Step(logits), generator)] += 1
    kept = (logits[0] / 2).softmax(-1)[:3]
    assert torch.allclose(counts[:3] / 2000, kept / kept.sum(), atol=0.04) and counts[3] == 0


def at(logits, number):
    """The choice of the token of this number, counted from 1."""
    return Step(logits, range(number - 1))


def test_contrastive_rules_by_hand():
    logits = torch.tensor([[3.0, 2.9, 2.0, -9.0], [3.0, 1.0, 2.5, -30.0]])
    seen, other = logits.double().log_softmax(-1)
    vcd = CONTRASTIVE["vcd"].changed(at(logits, 1))
    assert torch.allclose(vcd[:3], (2 * logits[0] - logits[1])[:3]) and vcd[3] == -torch.inf  # p < .1 max p
    crg = CONTRASTIVE["crg"].changed(at(logits, 1))
    assert torch.allclose(crg, 2 * logits[0] - logits[1])
    pai = CONTRASTIVE["pai"].changed(at(logits, 1))
    assert torch.allclose(pai[:3].double(), (1.1 * (seen - other) + other)[:3])
    for step, factor in ((1, 0.0202), (100, 6.389), (200, 53.6)):
        m3id = CONTRASTIVE["m3id"].changed(at(logits, step))
        assert torch.allclose(m3id[:3].double(), (seen + factor * (seen - other))[:3], rtol=1e-3, atol=1e-2)
    sure = Contrastive(gate=0.4)
    assert torch.allclose(sure.changed(at(logits, 1))[:3], logits[0, :3])  # .46 is surer than the gate
    assert not torch.allclose(Contrastive(gate=0.5).changed(at(logits, 1))[:3], logits[0, :3])
    generator = torch.Generator()
    assert CONTRASTIVE["vcd"].choose(Step(logits), generator) == 1 != Greedy().choose(Step(logits), generator)
    assert CONTRASTIVE["m3id"].choose(Step(logits), generator) == 0  # a factor of .02 moves no answer of one token
    with pytest.raises(InputError, match="no stream 1"):
        Contrastive(stream=1).changed(at(logits, 1))
    with pytest.raises(InputError, match="probability"):
        Contrastive(cut=2.0)


def test_no_contrast_is_greedy(vlm, x):
    plain, cut = li.trace(vlm, x, max_new_tokens=8), Contrastive(weight=0.0)
    assert li.trace(vlm, x, max_new_tokens=8, choosing=cut).ids.equal(plain.ids)
    other = li.trace(vlm, x, max_new_tokens=8, choosing=Contrastive(weight=5.0))
    assert not other.ids.equal(plain.ids) and "weight=5.0" in other.provenance.parameters["choosing"]


def test_it_stops_at_a_text(vlm, x):
    whole, told = li.trace(vlm, x, max_new_tokens=8), []
    end = whole.tokens[3]
    found = li.trace(vlm, x, max_new_tokens=8, stop=end, each=told.append)
    first = whole.tokens.index(end)
    assert len(found.tokens) == first + 1 and found.finished and not whole.finished
    assert found.answer == "".join(whole.tokens[:first]) and told[-1] == found.answer and len(told) == first + 1
    assert found.provenance.parameters["stop"] == [end]


def test_a_turn_that_ends_at_once_has_no_tokens(vlm, x, monkeypatch, tmp_path):
    first = int(li.trace(vlm, x, max_new_tokens=1).ids[0])
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", first)
    found = li.trace(vlm, x)
    assert found.finished and found.tokens == () and found.kl.shape == (1, 0) and found.answer == ""
    assert li.load_result(found.save(tmp_path / "none.safetensors")) == found and len(found.to_frame()) == 0


def test_under_interventions_every_position_is_computed_anew(vlm, x):
    cut = li.Knockout("predicting", "image")
    with li.intervening(vlm, x, cut):
        found, written = li.trace(vlm, x, "noise", max_new_tokens=4), vlm.generate(x, 4)
    assert found.ids.tolist() == list(written.ids)
    assert not torch.allclose(found.logprob, li.trace(vlm, x, "noise", max_new_tokens=4).logprob, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_new_tokens": 0}, "1 or more"),
        ({"stop": ""}, "no empty text"),
        ({"without": []}, "at least one"),
        ({"without": ["hidden", "hidden"]}, "different things"),
        ({"without": "nothing"}, "no counterfactual 'nothing'"),
    ],
)
def test_what_cannot_be_traced(vlm, x, options, told):
    with pytest.raises(InputError, match=told):
        li.trace(vlm, x, **options)
    with pytest.raises(LvlmInterpError):
        li.trace(vlm, vlm.inputs(torch.tensor([[1, 20, 21]])))


def test_a_stream_is_named_or_numbered(vlm, x):
    found = li.trace(vlm, x, ["hidden", "noise"], max_new_tokens=2)
    assert (found.number("noise"), found.number(0)) == (1, 0)
    with pytest.raises(InputError, match="no stream"):
        found.number("blank")
    with pytest.raises(InputError, match="temperature"):
        Sampled(temperature=0.0)
