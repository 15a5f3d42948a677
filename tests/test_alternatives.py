"""What a part of an answer is compared with: found, given, of each part, of an earlier result."""

import dataclasses
import math

import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.attribution import alternatives, rivals
from lvlm_interp.attribution.players import coalitions
from lvlm_interp.errors import InputError
from lvlm_interp.inputs.spelling import LOST
from lvlm_interp.inputs.words import split_words
from tests import saved
from tests.test_score import naive
from tests.tiny import tiny_inputs, tiny_llava
from tests.tokenizers import KINDS, chat

PICTURE = Image.new("RGB", (28, 28), "red")


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


def surer(scale):
    """A model that is surer of what it says, so that answers that begin alike are likelier than others."""
    model = tiny_llava()
    with torch.no_grad():
        model.lm_head.weight *= scale
    return li.wrap(model)


@pytest.fixture(scope="module")
def sure():
    return surer(4)


def ids_of(name):
    return [int(i) for i in name.strip("<>").split("><")]


def visible_of(x):
    return coalitions(x, [role for role in ("question", "context", "system", "image") if role in x.present], ())


def likely(vlm, x, ids):
    """Log-probability of an answer's tokens in the coalitions that see the question `[coalition, token]`."""
    logprobs = passes(vlm, x, ids)[visible_of(x)[:, x.where("question")].all(1)]
    return logprobs[:, range(len(ids)), ids], logprobs


def scored(vlm, x, ids):
    """The same in all coalitions."""
    return passes(vlm, x, ids)[:, range(len(ids)), ids]


def passes(vlm, x, ids):
    """Log-probabilities of all tokens by naive passes `[coalition, token, vocabulary]`."""
    y = x.with_answer(ids, [""] * len(ids), "")
    return naive(vlm, y, visible_of(y)).double().log_softmax(-1)


def test_alternatives_may_begin_as_the_answer_does():
    """Ten euros for ten dollars: whatever is likelier as a beginning, at whichever token it leaves the answer."""
    shared = {found for scale in (4, 12) for found in found_beginnings(surer(scale))}
    assert shared == {True, False}  # the control: both are found


def found_beginnings(sure):
    x = tiny_inputs(sure)
    x = x.with_answer(own := likeliest(sure, x, 3), [f"<{i}>" for i in own], "")
    logprob, each = likely(sure, x, own)
    begun = []
    for n in range(3):
        best = (logprob[:, :n].sum(1)[:, None] + each[:, n]).amax(0)
        best[own[n]] = -math.inf
        begun += [(float(value), [*own[:n], token]) for token, value in enumerate(best.tolist())]
    begun = [ids for value, ids in sorted(begun, reverse=True)[:10] if value >= math.log(alternatives.PLAUSIBLE)]
    found = [ids_of(name) for name in li.credit(sure, x, unit="answer").alternatives[0]]
    assert [ids[: len(start)] for ids, start in zip(found, begun, strict=True)] == begun
    assert own not in found and all(len(ids) <= 3 for ids in found)
    return [ids[0] == own[0] for ids in found]


def likeliest(vlm, x, count):
    ids = []
    for _ in range(count):
        y = x.with_answer([*ids, 5], [""] * (len(ids) + 1), "")
        ids.append(int(naive(vlm, y, y.everything[None])[0, -1].argmax()))
    return ids


@pytest.mark.parametrize(("limit", "name"), [(0.001, "<7><12>"), (0.01, "<11>")])
def test_where_none_is_plausible_the_likeliest_begins_otherwise(limit, name, vlm, monkeypatch):
    """What begins as the answer does is lost with it, so that their odds would not tell who knew the beginning."""
    x = tiny_inputs(vlm)
    x = x.with_answer([7, 8], ["<7>", "<8>"], "")
    chances = {7: (0.001, 11), 8: (0.002, 12)}

    def likely(self, asked, without, count, before):
        chance, other = chances[without[0]]
        return torch.tensor([chance]).log(), torch.tensor([other])

    monkeypatch.setattr(alternatives.Beginnings, "likely", likely)
    monkeypatch.setattr(alternatives, "_branches", lambda *_: [0, 1])
    monkeypatch.setattr(alternatives, "PLAUSIBLE", limit)
    (found,) = li.credit(vlm, x, unit="answer").alternatives[0]
    assert found.startswith(name)


def test_what_follows_a_shared_beginning_is_scored(sure):
    x = tiny_inputs(sure)
    x = x.with_answer(own := likeliest(sure, x, 3), [f"<{i}>" for i in own], "")
    split = li.credit(sure, x, unit="answer", alternatives=4)
    label, *others = (scored(sure, x, ids).sum(1) for ids in (own, *map(ids_of, split.alternatives[0])))
    assert torch.allclose(split.odds[0], label - torch.stack(others).exp().mean(0).log(), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ["紫色的。", "केला है।", "a cat"])
@pytest.mark.parametrize("unit", ["word", "answer", (0, 2)])
def test_found_alternatives_are_whole_characters(kind, answer, unit, monkeypatch):
    """A random model says bytes at random; what comes of it is whole, or is left out."""
    vlm = chat(kind, monkeypatch)
    x = vlm.prepare("what?", answer=answer)
    split = li.credit(vlm, x, unit=unit, alternatives=6)
    for part, names in zip(split.tokens, split.alternatives, strict=True):
        assert names and part not in names
        assert len(names) == 1 or not any(LOST in name for name in names)
    by_token = li.credit(vlm, x, alternatives=6)
    assert not any(LOST in name for names in by_token.alternatives for name in names)


def test_words_are_spelt_to_their_end(monkeypatch):
    """As splitting the whole of what the model would say tells."""
    vlm = chat("bytes", monkeypatch)
    x = vlm.prepare("what?", answer="cat")
    for name in li.credit(vlm, x, unit="word", alternatives=8).alternatives[0]:
        ids = vlm.prompter.word_ids(name, False)
        assert len(split_words(vlm.token_strings(ids), ids, vlm.decode)) == 1


def test_where_all_read_as_the_part_the_next_likely_takes_their_place(vlm, monkeypatch):
    """What is compared with itself would have odds of 1, whatever is hidden."""
    x = tiny_inputs(vlm)
    first = li.credit(vlm, x, unit="answer", alternatives=1).alternatives[0]
    same = {tuple(ids_of(first[0])), (7, 8, 9)}
    monkeypatch.setattr(rivals, "_reading", lambda vlm, ids, exact: "same" if tuple(ids) in same else str(ids))
    other = li.credit(vlm, x, unit="answer", alternatives=1).alternatives[0]
    assert len(other) == 1 and other != first and other[0] != "<7><8><9>"


# --- given ----------------------------------------------------------------------------------------


@pytest.fixture
def said(monkeypatch):
    vlm = chat("bytes", monkeypatch)
    return vlm, vlm.prepare("what?", PICTURE, answer="a red cat")


def test_the_same_alternative_weighs_once(said):
    vlm, x = said
    with pytest.warns(UserWarning, match=r"same first token, and are compared with once: \['b', 'g'\]"):
        split = li.credit(vlm, x, against=["blue", "black", "green"])
    once = li.credit(vlm, x, against=["blue", "green"])
    assert torch.equal(split.odds, once.odds) and split.alternatives == once.alternatives
    with pytest.warns(UserWarning, match="same tokens, and weigh once"):
        words = li.credit(vlm, x, unit="word", against=["blue", "green", " blue"], word=1)
    assert words.alternatives[1] == (" blue", " green")


def test_a_rival_for_each_word(said):
    vlm, x = said
    each = li.credit(vlm, x, unit="word", against=[["the"], ["blue", "green"], ["dog"]])
    assert each.alternatives == (("the",), (" blue", " green"), (" dog",))
    named = li.credit(vlm, x, unit="word", against={1: "blue"})
    single = li.credit(vlm, x, unit="word", against="blue", word=1)
    assert named.alternatives == single.alternatives and torch.equal(named.odds, single.odds)
    assert len(named.alternatives[0]) > 1  # found
    maps = li.attribute(vlm, x, unit="word", against=["the", ["blue"], ["dog"]], value="difference")
    alone = li.attribute(vlm, x, target=1, against="blue")
    assert torch.allclose(maps.values[1], alone.values[0], atol=1e-4) and maps.tokens == ("a", "red", "cat")
    assert each.provenance.parameters["against"] == [["the"], ["blue", "green"], ["dog"]]


@pytest.mark.parametrize("kind", ["bytes", "byte fallback"])
@pytest.mark.parametrize("unit", ["token", "word", "answer"])
def test_the_alternatives_of_an_earlier_result(kind, unit, monkeypatch):
    """Two models are compared on the same; asked again, a model gives the same numbers."""
    vlm = chat(kind, monkeypatch)
    x = vlm.prepare("what?", PICTURE, answer="a red cat")
    options = {"unit": unit, "alternatives": 3}
    first = li.credit(vlm, x, **options)
    assert li.credit(vlm, x, unit=unit, against=first).alternatives == first.alternatives or unit != "token"
    given = [[f"x{n}"] for n in range(len(first.tokens))] if unit != "token" else first.alternatives
    first = li.credit(vlm, x, unit=unit, against=given)
    for earlier in (first, first.alternatives):
        again = li.credit(vlm, x, unit=unit, against=earlier)
        assert again.alternatives == first.alternatives and torch.equal(again.odds, first.odds)
    other = chat(kind, monkeypatch, seed=1)
    compared = li.credit(other, other.prepare("what?", PICTURE, answer="a red cat"), unit=unit, against=first)
    assert compared.alternatives == first.alternatives and not torch.equal(compared.odds, first.odds)


@pytest.mark.parametrize("unit", ["word", "answer"])
def test_alternatives_that_no_text_is_read_back_as(unit, monkeypatch):
    """Pieces of "and" are another answer than the token: an earlier result has them as the tokens that they are."""
    vlm = chat("byte-level", monkeypatch)
    x = vlm.prepare("what?", PICTURE, answer="a red cat")
    first = li.credit(vlm, x, unit=unit)
    letters = [vlm.prompter.tokenizer.convert_tokens_to_ids(letter) for letter in "and"]
    odd = tuple((*ids, tuple(letters)) for ids in first.alternative_ids)
    texts = tuple(tuple(map(vlm.text_of, ids)) for ids in odd)
    earlier = dataclasses.replace(first, alternatives=texts, alternative_ids=odd)
    assert li.credit(vlm, x, unit=unit, against=earlier).alternative_ids == odd
    assert li.attribute(vlm, x, unit=unit, value="odds", against=earlier).alternative_ids == odd
    by_text = li.credit(vlm, x, unit=unit, against=dataclasses.replace(earlier, alternative_ids=()))
    assert by_text.alternative_ids != odd  # the control


def test_tokens_of_another_model_are_none_of_this_ones(said):
    """Where they read as something else here, or there are none of their number, the texts decide."""
    vlm, x = said
    first = li.credit(vlm, x)
    for shift in (1, 10**6, -(10**6)):
        ids = tuple(tuple((token + shift,) for (token,) in some) for some in first.alternative_ids)
        again = li.credit(vlm, x, against=dataclasses.replace(first, alternative_ids=ids))
        assert again.alternative_ids == first.alternative_ids and torch.equal(again.numbers, first.numbers)
    with pytest.raises(InputError, match="alternative_ids is of each of"):
        dataclasses.replace(first, alternative_ids=((),))


def test_no_piece_of_a_picture_is_an_alternative():
    """However likely its token is; a model would look for pixels to it."""
    model = tiny_llava()
    vlm, token = li.wrap(model), model.config.image_token_id
    x = tiny_inputs(vlm)
    states = li.score(vlm, x, x.everything[None]).states[:, 0]
    with torch.no_grad():
        model.lm_head.weight[token] = 50 * states[0] / states[0].square().sum()
    best = alternatives.Beginnings(vlm.readout, states).likely(torch.ones(1).bool(), [], 1)
    assert best[1].tolist() == [token]  # the control
    for unit in ("token", "answer"):
        found = li.credit(vlm, x, unit=unit).alternative_ids
        assert found and not any(token in ids for some in found for ids in some)


def test_an_alternative_has_a_blank_before_it_where_it_would(said):
    """Of an earlier result, where it had one; of the user, where writing has one, whatever stands there now."""
    vlm, x = said
    x = vlm.answered(x, "a red, cat")
    found = (("the",), (" blue", ","), (";", " it"), (" dog", "!"))
    earlier = dataclasses.replace(li.credit(vlm, x, unit="word"), alternatives=found)
    assert earlier.tokens == ("a", "red", ",", "cat")
    assert li.credit(vlm, x, unit="word", against=earlier).alternatives == found
    glued = (("the",), ("blue", " ,"), (" ;", "it"), ("dog", " !"))
    again = dataclasses.replace(earlier, alternatives=glued)
    assert li.credit(vlm, x, unit="word", against=again).alternatives == glued
    given = [["the"], ["blue", ","], [";", "it"], ["dog", "!"]]
    assert li.credit(vlm, x, unit="word", against=given).alternatives == found


def test_results_that_do_not_fit_are_refused(said):
    vlm, x = said
    words, tokens = li.credit(vlm, x, unit="word"), li.attribute(vlm, x)
    with pytest.raises(InputError, match="fit the same answer, by the same unit"):
        li.credit(vlm, x, unit="answer", against=words)
    with pytest.raises(InputError, match=r"\(3\), and here .* \(2\); they differ from number 1 on"):
        li.credit(vlm, vlm.answered(x, "a cat"), unit="word", against=words)
    with pytest.raises(InputError, match="compared with nothing"):
        li.credit(vlm, x, against=tokens)


def test_a_blank_that_is_a_token_is_no_alternative(monkeypatch):
    """Llama's tokenizers write digits behind a blank of their own, which any digit may follow."""
    vlm = chat("byte fallback", monkeypatch)
    x = vlm.prepare("what?", PICTURE, answer="a red cat")
    assert vlm.token_strings(vlm.prompter.word_ids(" 猫"))[0] == " "
    with pytest.raises(InputError, match="begins with a blank that is a token of its own"):
        li.credit(vlm, x, against=["猫"], word=1)
    assert li.credit(vlm, x, unit="word", against=["猫"], word=1).alternatives[1] == (" 猫",)


def test_ones_own_words_are_a_unit(said):
    vlm, x = said

    def halves(text):
        return [text[:5], text[5:]]

    split = li.credit(vlm, x, unit=halves)
    assert split.tokens == ("a red", "cat") and "halves" in split.provenance.parameters["unit"]
    words = li.credit(vlm, x, unit="word", value="logprob")
    assert torch.allclose(split.with_value("logprob").values.sum(0), words.values.sum(0), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("one", "other"), [("cat", "<loc0012> cat"), ("dog", "猫"), ("12", "cat naps")])
def test_two_answers_compared_are_two_answers(kind, one, other, monkeypatch):
    """Each as it is prepared, whatever its first token is; and the other way round it is the negative."""
    monkeypatch.setattr(saved, "TEMPLATE", saved.TEMPLATE.replace("assistant: ", "[/INST]"))
    vlm = chat(kind, monkeypatch)

    def logprob(answer):
        x = vlm.prepare("what?", PICTURE, answer=answer)
        return x, li.score(vlm, x, x.everything).logprob.double().sum().item()

    (x, first), (y, second) = logprob(one), logprob(other)
    split, back = (
        li.credit(vlm, z, unit="answer", value="difference", against=[text]) for z, text in ((x, other), (y, one))
    )
    assert split.total[0].item() == pytest.approx(first - second, abs=1e-3)
    assert back.total[0].item() == pytest.approx(second - first, abs=1e-3)
