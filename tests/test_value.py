"""One room for the value to explain: each value is what naive forward passes say, for every part of an answer."""

import dataclasses
import inspect
import itertools
import math

import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.attribution import value as module
from lvlm_interp.attribution.alternatives import Beginnings
from lvlm_interp.attribution.players import coalitions
from lvlm_interp.attribution.value import VALUES, Evidence, Value, target_of, values_of
from lvlm_interp.errors import InputError
from lvlm_interp.inputs.words import parts_of, split_sentences
from lvlm_interp.model import readout
from tests import saved
from tests.test_score import naive
from tests.tiny import tiny_inputs, tiny_llava

UNITS = ["token", "word", "sentence", "answer", (0, 2), (1, 3)]


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def chat():
    """With a tokenizer of bytes, so that words, sentences and answers are texts of several tokens."""
    return li.wrap(tiny_llava(), saved.processor("llava"))


def passes(vlm, x, visible):
    """Logits and log-probabilities of the answer tokens, float64 `[coalition, answer]`, by naive passes."""
    logits = naive(vlm, x, visible).double()
    place = x.answer_ids.expand(len(visible), -1)[..., None]
    return logits.gather(-1, place)[..., 0], logits.log_softmax(-1).gather(-1, place)[..., 0]


def all_visible(x):
    return coalitions(x, [role for role in ("question", "context", "system", "image") if role in x.present], ())


def valued(vlm, x, name, unit, **options):
    visible = all_visible(x)
    return visible, values_of(vlm, x, visible, target_of(vlm, x, [name], unit, **options)).numbers[0]


@pytest.mark.parametrize("unit", UNITS)
def test_values_are_those_of_naive_passes(vlm, unit):
    x = tiny_inputs(vlm)
    parts = target_of(vlm, x, ["full"], unit).parts
    logit, logprob = passes(vlm, x, all_visible(x))
    each = {"logit": logit, "logprob": logprob}
    sums = {name: [t[:, p.start : p.stop].sum(1) for p in parts] for name, t in each.items()}
    expected = {name: torch.stack(some) for name, some in sums.items()}
    expected["full"] = expected["logprob"] + torch.tensor([[(p.stop - p.start) * math.log(200)] for p in parts])
    expected["logodds"] = expected["logprob"] - torch.log1p(-expected["logprob"].exp())
    found = {name: valued(vlm, x, name, unit)[1] for name in expected}
    for name, numbers in expected.items():
        assert torch.allclose(found[name], numbers, atol=1e-4), name
    # Each is another number: a value that is computed as another one would be noticed.
    apart = [(found[a] - found[b]).abs().max() for a, b in itertools.combinations(("logit", "logprob", "full"), 2)]
    assert min(apart) > 1e-2


def test_log_odds_do_not_lose_what_is_nearly_certain():
    """1 − p is a sum of small chances; p itself, in float32, is 1."""
    small = torch.tensor([[1e-12, 3e-12]], dtype=torch.float64)
    logprob, logodds = torch.log1p(-small), torch.log1p(-small) - small.log()
    none = torch.empty(1, 0, dtype=torch.float64)
    found = module.logodds(Evidence(logprob, logprob, logodds, none, 200))
    assert float(found) == pytest.approx(-math.log(4e-12), rel=1e-9)
    one = module.logodds(Evidence(logprob[:, :1], logprob[:, :1], logodds[:, :1], none, 200))
    assert torch.equal(one, logodds[:, 0])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("value", list(VALUES))
def test_prior_and_credits_add_up_for_every_value_and_unit(vlm, value, unit):
    split = li.credit(vlm, tiny_inputs(vlm), value=value, unit=unit, alternatives=3)
    assert split.value == value and split.unit == VALUES[value].unit
    for name in split.computed:
        by = split.with_value(name)
        assert torch.allclose(by.prior + by.credits.sum(1), by.total, atol=1e-6)
        assert not torch.allclose(by.prior + by.credits[:, :-1].sum(1), by.total, atol=1e-4)  # one is missing


@pytest.mark.parametrize("unit", ["sentence", "answer"])
def test_log_probabilities_of_tokens_add_up(chat, unit):
    x = chat.prepare("what is it?", answer="It is a cat. It sits!")
    tokens = li.credit(chat, x, value="logprob")
    whole = li.credit(chat, x, value="logprob", unit=unit)
    assert whole.tokens == (("It is a cat.", "It sits!") if unit == "sentence" else ("It is a cat. It sits!",))
    assert torch.allclose(tokens.values.sum(0), whole.values.sum(0), atol=1e-9)
    if unit == "sentence":  # each by itself, too, and not the other's
        first = parts_of(x, "sentence")[0]
        assert torch.allclose(tokens.values[: first.stop].sum(0), whole.values[0], atol=1e-9)
        assert not torch.allclose(tokens.values[: first.stop - 1].sum(0), whole.values[0], atol=1e-3)


def test_difference_of_two_answers(chat):
    """Of their log-probabilities by separate passes; the other way round, the other sign."""
    yes, no = (chat.prepare("is it?", answer=text) for text in ("a red cat", "no"))
    visible = all_visible(yes)
    scores = [passes(chat, x, all_visible(x))[1].sum(1) for x in (yes, no)]
    one = li.credit(chat, yes, value="difference", against=["no"], unit="answer")
    other = li.credit(chat, no, value="difference", against=["a red cat"], unit="answer")
    assert len(visible) == one.values.shape[1] and one.alternatives == (("no",),)
    assert torch.allclose(one.values[0], scores[0] - scores[1], atol=1e-4)
    assert torch.allclose(one.values, -other.values, atol=1e-4)
    assert one.values.abs().min() > 1e-2  # so that the sign is told
    assert torch.allclose(one.odds, one.values, atol=1e-9)  # the mean of one is that one


def test_difference_is_against_the_likeliest_where_none_is_given(vlm):
    x = tiny_inputs(vlm)
    split = li.credit(vlm, x, value="difference", alternatives=4)
    logprobs = naive(vlm, x, all_visible(x)).double().log_softmax(-1)
    for n, (token, names) in enumerate(zip(x.answer_ids.tolist(), split.alternatives, strict=True)):
        (name,) = names  # no other takes part in the number
        first = int(name.strip("<>"))
        assert torch.allclose(split.values[n], logprobs[:, n, token] - logprobs[:, n, first], atol=1e-4)


def test_longer_parts_are_compared_with_as_many_tokens(vlm):
    """What the model would have said, had it begun otherwise: each goes on greedily to the length of the part."""
    x = tiny_inputs(vlm)
    split = li.credit(vlm, x, unit="answer", alternatives=3)
    assert len(split.alternatives[0]) == 3
    others = []
    for text in split.alternatives[0]:
        ids = [int(i) for i in text.strip("<>").split("><")]
        y = x.with_answer(ids, [""] * 3, "")
        assert len(ids) == 3
        likely = naive(vlm, y, y.everything[None])[0].argmax(-1)
        assert likely[1:].tolist() == ids[1:]
        others.append(passes(vlm, y, all_visible(y))[1].sum(1))
    own = passes(vlm, x, all_visible(x))[1].sum(1)
    assert torch.allclose(split.odds[0], own - torch.stack(others).exp().mean(0).log(), atol=1e-4)


def test_a_value_of_ones_own_has_a_name_of_its_own(vlm):
    """By its name it would be taken for the other one."""
    with pytest.raises(InputError, match="give a Value of your own another name"):
        li.credit(vlm, tiny_inputs(vlm), value=Value("full", "nats", lambda found: found.logprob[:, 0]))


def test_a_value_of_ones_own(vlm):
    """A value is an object: nothing else has to know of it."""
    first = Value("first token", "nats", lambda found: found.logprob[:, 0])
    x = tiny_inputs(vlm)
    split = li.credit(vlm, x, value=first, unit="answer")
    assert split.value == "first token" and "odds" not in split.computed
    assert torch.equal(split.values[0], li.credit(vlm, x, value="logprob").values[0])
    by_token = li.attribute(vlm, x, value="logprob").values
    assert torch.equal(li.attribute(vlm, x, value=first, unit="answer").values[0], by_token[0])


def test_values_that_were_not_computed(vlm):
    split = li.credit(vlm, tiny_inputs(vlm), value="logprob")
    assert split.alternatives == ((),) * 3  # nothing was looked for
    with pytest.raises(InputError, match="'odds' is not in this split"):
        split.with_value("odds")
    assert split.with_value("logit").unit == "logits"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": "probability"}, "value is 'odds', 'full'"),
        ({"value": "difference", "against": ["a", "b"]}, "against is one text"),
        ({"unit": "sentence", "against": ["a"], "word": 2}, r"the answer has 1 sentences; there is no sentence 2"),
        ({"unit": "answer", "against": ["a"], "word": 1}, "the answer has 1 part"),
    ],
)
def test_what_cannot_be_explained(chat, options, message):
    x = chat.prepare("is it?", answer="a red cat")
    with pytest.raises(InputError, match=message):
        inspect.unwrap(li.credit)(chat, x, **options)


# --- never coalitions times vocabulary at once ----------------------------------------------------


def test_distributions_come_a_few_at_a_time(vlm, monkeypatch):
    x = tiny_inputs(vlm)
    whole = li.credit(vlm, x, unit="answer")
    sizes = []
    plain = readout.Readout.logits

    def counting(self, normalized):
        sizes.append(normalized.reshape(-1, normalized.shape[-1]).shape[0])
        return plain(self, normalized)

    monkeypatch.setattr(readout.Readout, "logits", counting)
    monkeypatch.setattr(readout, "LOGITS_AT_ONCE", 3 * 200)
    few = li.credit(vlm, x, unit="answer", alternatives=3)
    assert max(sizes) <= 3
    few = li.credit(vlm, x, unit="answer")
    assert few.alternatives == whole.alternatives and torch.allclose(few.odds, whole.odds, atol=1e-5)
    monkeypatch.undo()
    sizes.clear()
    monkeypatch.setattr(readout.Readout, "logits", counting)
    li.credit(vlm, x, unit="answer")
    assert max(sizes) > 3  # the control: with room, more at once


def test_only_coalitions_that_know_the_question_find_alternatives(vlm):
    states = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    found = Beginnings(vlm.readout, states)
    asked = torch.tensor([True, False, True, False])
    best = vlm.readout.logits(states[asked]).double().log_softmax(-1).amax(0)
    best[7] = -math.inf
    assert set(found.likely(asked, [7], 3)[1].tolist()) == set(best.topk(3).indices.tolist())


# --- heatmaps ---------------------------------------------------------------------------------------


def occluded(vlm, x, value):
    """What hiding each patch costs, by naive passes; `value` makes a number of each coalition."""
    visible = x.everything.repeat(1 + len(x.images[0].positions), 1)
    visible[1 + torch.arange(len(x.images[0].positions)), x.images[0].positions] = False
    found = value(visible)
    return (found[0] - found[1:]).view(2, 2)


def test_a_map_against_another_answer(chat):
    """Why this answer rather than that, with answers of different lengths; the other way round, the other sign."""
    picture = Image.new("RGB", (28, 28), "red")
    yes, no = (chat.prepare("is it?", picture, answer=text) for text in ("a red cat", "no"))
    found = li.attribute(chat, yes, against="no", unit="answer", hide_from="all")
    back = li.attribute(chat, no, against="a red cat", unit="answer", hide_from="all")

    def difference(visible):
        start, scores = yes.answer_start, []
        for x in (yes, no):
            seen = torch.cat([visible[:, :start], torch.ones(len(visible), x.length - start, dtype=torch.bool)], 1)
            scores.append(passes(chat, x, seen)[1].sum(1))
        return scores[0] - scores[1]

    assert found.value == "difference" and found.tokens == ("a red cat",) and found.alternatives == (("no",),)
    assert torch.allclose(found.values[0].double(), occluded(chat, yes, difference), atol=1e-4)
    assert torch.allclose(found.values, -back.values, atol=1e-4) and found.values.abs().max() > 1e-2
    alone = li.attribute(chat, yes, unit="answer", value="logprob", hide_from="all")
    assert not torch.allclose(found.values, alone.values, atol=1e-2)


@pytest.mark.parametrize("value", ["logit", "logprob", "logodds", "full"])
def test_maps_of_other_values(vlm, value):
    x = tiny_inputs(vlm)
    found = li.attribute(vlm, x, value=value, unit="answer", hide_from="all")

    def naively(visible):
        logit, logprob = (t.sum(1) for t in passes(vlm, x, visible))
        return {"logit": logit, "logodds": logprob - torch.log1p(-logprob.exp())}.get(value, logprob)

    assert found.unit == ("logits" if value == "logit" else "nats")
    assert torch.allclose(found.values[0].double(), occluded(vlm, x, naively), atol=1e-4)


def test_a_map_of_one_part(vlm):
    x = tiny_inputs(vlm)
    everything = li.attribute(vlm, x)
    for target in (1, "<8>"):
        one = li.attribute(vlm, x, target=target)
        assert one.tokens == ("<8>",) and torch.equal(one.values[0], everything.values[1])
    with pytest.raises(InputError, match="no parts of the answer are 'Purple'"):
        li.attribute(vlm, x, target="Purple")
    with pytest.raises(InputError, match="no parts of the answer are 3"):
        li.attribute(vlm, x, target=3)
    twice = dataclasses.replace(x, tokens=(*x.tokens[:-1], x.tokens[-3]))
    with pytest.raises(InputError, match="2 parts of the answer are '<7>'"):
        li.attribute(vlm, twice, target="<7>")


def test_maps_survive_a_file(vlm, tmp_path):
    found = li.attribute(vlm, tiny_inputs(vlm), value="odds", unit="answer")
    read = li.PatchMap.load(found.save(tmp_path / "map.safetensors"))
    assert read.alternatives == found.alternatives and read.value == "odds" and torch.equal(read.values, found.values)


# --- sentences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "texts"),
    [
        (("Yes", ".", " A", " cat", "!", " So", "…"), ["Yes.", "A cat!", "So…"]),
        (("It", " is", " 3", ".", "5", " cm", "."), ["It is 3.5 cm."]),
        (("One", ".\n\n", "Two"), ["One.", "Two"]),
        (("猫", "。", "犬", "。"), ["猫。", "犬。"]),
        ((" ", "A", "."), ["A."]),
        (("no", " end"), ["no end"]),
        ((), []),
    ],
)
def test_tokens_make_sentences(tokens, texts):
    found = split_sentences(tokens)
    assert [one.text for one in found] == texts
    assert [i for one in found for i in range(one.start, one.stop)] == list(range(len(tokens)))


def test_characters_of_several_tokens_end_sentences_too():
    """A full stop whose bytes are in three tokens is read from the text as a whole."""
    pieces = [bytes([b]) for b in "猫。犬。".encode()]
    ids = list(range(len(pieces)))

    def decode(some):
        return b"".join(pieces[i] for i in some).decode(errors="replace")

    tokens = [piece.decode(errors="replace") for piece in pieces]
    found = split_sentences(tokens, ids, decode)
    assert [(one.text, one.start, one.stop) for one in found] == [("猫。", 0, 6), ("犬。", 6, 12)]
    assert len(split_sentences(tokens)) == 1  # the control: without it, the stop is not seen


# --- on the reference model -----------------------------------------------------------------------


def test_why_purple_rather_than_yellow(reference, purple_banana):
    """The map of the difference points at the banana; of whole words, each of several tokens."""
    found = li.attribute(reference, purple_banana, against="Yellow")
    assert found.tokens == ("Purple",) and found.alternatives == (("Yellow",),) and found.value == "difference"
    left, top, right, bottom = found.peak_box(0)
    assert 50 - 14 < (left + right) / 2 < 91 + 14 and (top + bottom) / 2 < 51 + 14
    answers = li.attribute(reference, purple_banana, against="Yellow.", unit="answer")
    assert answers.tokens == ("Purple.",) and answers.peak(0) == found.peak(0)
