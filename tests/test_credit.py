"""A split adds up, is the textbook's Shapley value, and gives nothing for nothing."""

import dataclasses
import inspect
import itertools
import math

import pandas as pd
import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.attribution import alternatives, split
from lvlm_interp.attribution import credit as module
from lvlm_interp.attribution.shapley import dividends, ordered_weights, shapley_weights
from lvlm_interp.errors import InputError, VisibilityError
from lvlm_interp.inputs.words import by_word, split_words
from tests import saved
from tests.test_score import naive
from tests.tiny import tiny_inputs, tiny_llava


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


def by_orders(values, players, first=()):
    """Shapley's definition: the mean gain of each player over all orders of entry in which some come first."""
    gains = torch.zeros(players, dtype=torch.float64)
    orders = [o for o in itertools.permutations(range(players)) if set(o[: len(first)]) == set(first)]
    for order in orders:
        seen = 0
        for player in order:
            gains[player] += values[seen | 1 << player] - values[seen]
            seen |= 1 << player
    return gains / len(orders)


@pytest.mark.parametrize("players", [0, 1, 2, 3, 4])
def test_weights_are_shapleys(players):
    values = torch.randn(1 << players, dtype=torch.float64, generator=torch.Generator().manual_seed(players))
    assert torch.allclose(shapley_weights(players) @ values, by_orders(values, players))


@pytest.mark.parametrize("first", [(), (0,), (2,), (0, 3), (0, 1, 2, 3)])
def test_weights_in_order_are_those_of_orders_in_which_some_come_first(first):
    values = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = ordered_weights(4, first) @ values
    assert torch.allclose(ours, by_orders(values, 4, first)) and torch.allclose(ours.sum(), values[-1] - values[0])
    if 0 < len(first) < 4:
        assert not torch.allclose(ours, shapley_weights(4) @ values, atol=1e-2)


def test_players_that_come_first_are_players():
    with pytest.raises(InputError, match=r"0 to 1, got \[2\]"):
        ordered_weights(2, (2,))


def test_captum_agrees():
    """An independent implementation of the same value."""
    from captum.attr import ShapleyValues

    values = torch.randn(8, generator=torch.Generator().manual_seed(3))

    def value(mask):
        return values[(mask.long() * torch.tensor([1, 2, 4])).sum(1)]

    theirs = ShapleyValues(value).attribute(torch.ones(1, 3), baselines=0)[0]
    ours = shapley_weights(3) @ values.double()
    assert torch.allclose(ours.float(), theirs, atol=1e-6)


@pytest.mark.parametrize("players", [1, 4, 5])
def test_dividends_are_alternating_sums(players):
    """Harsanyi's definition, one coalition and one of its parts at a time."""
    count = 1 << players
    values = torch.randn(3, count, dtype=torch.float64, generator=torch.Generator().manual_seed(players))
    signs = [[(-1.0) ** (s & ~t).bit_count() if s & t == t else 0.0 for t in range(count)] for s in range(count)]
    naive = values @ torch.tensor(signs, dtype=torch.float64).T
    before = values.clone()
    assert torch.allclose(dividends(values), naive, atol=1e-12, rtol=0) and torch.equal(values, before)
    assert not torch.allclose(dividends(values.flip(-1)), naive, atol=1e-3)


@pytest.mark.parametrize("players", [2, 3])
def test_dividends_share_out_to_shapley_values(players):
    values = torch.randn(1 << players, dtype=torch.float64)
    found = dividends(values)
    shared = [sum(found[s] / s.bit_count() for s in range(1 << players) if s >> i & 1) for i in range(players)]
    assert torch.allclose(torch.stack(shared), shapley_weights(players) @ values)


@pytest.mark.parametrize("value", ["odds", "full"])
@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize(
    "keep", [("template",), ("template", "question"), ("template", "question", "context", "system")]
)
def test_prior_and_credits_add_up_to_the_total(vlm, value, unit, keep):
    split = li.credit(vlm, tiny_inputs(vlm), keep, value, unit=unit)
    assert torch.allclose(split.prior + split.credits.sum(1), split.total, atol=1e-6)
    frame = split.to_frame()
    assert list(frame.columns) == ["token", "prior", *(f"credit[{role}]" for role in split.roles), "total", "example"]
    assert set(split.roles) == {"question", "context", "system", "image"} - set(keep)
    assert split.credits.abs().max() > 1e-2


def test_a_split_that_does_not_add_up_is_refused(vlm, monkeypatch):
    monkeypatch.setattr(split, "ordered_weights", lambda k, _: torch.ones(k, 1 << k, dtype=torch.float64))
    with pytest.raises(ArithmeticError, match="miss their total"):
        li.credit(vlm, tiny_inputs(vlm))


def test_values_are_those_of_masked_forward_passes(vlm):
    """v(S) by the oracle of the engine's tests, for both values and every coalition."""
    x = tiny_inputs(vlm)
    split = li.credit(vlm, x, alternatives=5)
    visible = module.coalitions(x, split.roles, ("template",))
    logprobs = naive(vlm, x, visible).double().log_softmax(-1)
    asked = torch.tensor([bool(s & 1) for s in range(16)])  # question is the first player
    for j, token in enumerate(x.answer_ids.tolist()):
        full = logprobs[:, j, token] + math.log(200)
        assert torch.allclose(split.full[j], full, atol=1e-5)
        best = logprobs[asked, j].max(0).values
        best[[token, *vlm.visual_token_ids]] = -math.inf
        others = best.topk(5).indices
        others = others[best[others] >= math.log(alternatives.PLAUSIBLE)]
        assert set(split.alternatives[j]) == {f"<{i}>" for i in others.tolist()}
        mean = logprobs[:, j][:, others].exp().mean(1).log()
        assert torch.allclose(split.odds[j], logprobs[:, j, token] - mean, atol=1e-5)


def test_full_with_the_question_kept_is_cals_contrast_in_nats(vlm):
    x = tiny_inputs(vlm)
    keep = ("template", "question", "context", "system")
    split, contrast = li.credit(vlm, x, keep, "full"), li.contrast(vlm, x)
    assert torch.allclose(split.image.float(), contrast.delta_nats, atol=1e-5)
    # With less kept, the image's credit is an average over more, and differs; of a question that asks it is none.
    assert not torch.allclose(li.credit(vlm, x, value="full").image.float(), contrast.delta_nats, atol=1e-2)


# --- the question asks ------------------------------------------------------------------------------------------------


def answering(vlm, answer, asking=True):
    """An example whose question is the tokens 10 and 11, credited by word."""
    roles = ("template", "question", "question", "context", "template", *("answer" for _ in answer))
    x = vlm.inputs(torch.tensor([[1, 10, 11, 40, 50, *answer]]), 5, roles)
    return li.credit(vlm, x, asking=asking, unit="token")


def test_what_the_question_brings_is_the_priors(vlm):
    asked, together = answering(vlm, [7, 8]), answering(vlm, [7, 8], asking=False)
    assert asked.quoting == (False, False) and asked.asking and not together.asking
    assert torch.equal(asked.question, torch.zeros(2, dtype=torch.float64))
    seen = asked.values[:, 1]  # the question is the first player
    assert torch.allclose(asked.prior, seen) and torch.equal(asked.prior, asked.keeping("question").prior)
    assert torch.allclose(asked.context, asked.keeping("question").context)
    assert torch.equal(together.prior, together.values[:, 0]) and together.question.abs().min() > 1e-3
    assert not torch.allclose(together.prior, asked.prior, atol=1e-3)
    assert torch.equal(asked.together().credits, together.credits)
    assert asked.together().provenance.parameters == together.provenance.parameters


def test_words_that_stand_in_the_question_are_the_questions(vlm):
    """Of two tokens, the first stands there; what the question brings to it stays the question's."""
    asked = answering(vlm, [11, 8])
    brought = asked.values[:, 1] - asked.values[:, 0]
    assert asked.quoting == (True, False)
    assert torch.allclose(asked.question, torch.stack([brought[0], torch.tensor(0.0)]).double())
    assert torch.equal(asked.prior[0], asked.values[0, 0]) and torch.allclose(asked.prior[1], asked.values[1, 1])
    assert torch.allclose(asked.prior + asked.credits.sum(1), asked.total.double())
    with pytest.raises(InputError, match="quoting is of each of 2 parts"):
        dataclasses.replace(asked, quoting=(True,))


def test_alternatives_of_what_stands_in_the_question_are_those_without_it_too(vlm):
    """What only those say who know the question would make the word likely before it is asked."""
    roles = ("template", "question", "question", "context", "template", "answer", "answer")
    x = vlm.inputs(torch.tensor([[1, 10, 11, 40, 50, 11, 8]]), 5, roles)
    visible = torch.stack([x.everything, x.hidden("context"), x.hidden("question"), x.hidden("question", "context")])
    probabilities = li.score(vlm, x, visible).logits().softmax(-1)

    def likely(part, coalitions):
        best = probabilities[:coalitions, part].amax(0)
        best[x.answer_ids[part]] = 0
        return {vlm.text_of([i]) for i in best.topk(10).indices.tolist() if best[i] >= 0.01}

    found = [set(one) for one in answering(vlm, [11, 8]).alternatives]
    assert found == [likely(0, 4), likely(1, 2)] and likely(0, 4) != likely(0, 2)


def test_a_question_that_is_always_visible_asks_nothing(vlm):
    kept = answering(vlm, [11, 8]).keeping("question")
    assert kept.quoting == () and kept.players == ("context",)
    assert answering(vlm, [11, 8]).keeping("context").quoting == (True, False)


def test_a_role_that_nobody_can_read_gets_nothing(vlm):
    """Padding is never attended to: what stands there cannot matter."""
    x = tiny_inputs(vlm)
    mask = torch.ones_like(x.input_ids)
    mask[0, x.where("context")] = 0
    unread = vlm.inputs(
        x.input_ids, x.answer_start, x.roles, attention_mask=mask, pixel_values=x.model_inputs["pixel_values"]
    )
    for value in ("odds", "full"):
        split = li.credit(vlm, unread, value=value)
        assert split.context.abs().max() < 1e-6
        assert li.credit(vlm, x, value=value).context.abs().max() > 1e-3


def test_two_roles_that_are_alike_get_the_same(vlm):
    """A model that cannot tell order (all at one position) cannot tell two equal one-token roles apart."""
    ids = torch.tensor([[1, 40, 40, 50, 7]])
    roles = ("template", "question", "context", "template", "answer")
    x = vlm.inputs(ids, 4, roles, position_ids=torch.zeros(1, 5, dtype=torch.long))
    same = li.credit(vlm, x, value="full", asking=False)
    assert torch.allclose(same.question, same.context, atol=1e-4)
    y = vlm.inputs(torch.tensor([[1, 40, 41, 50, 7]]), 4, roles)
    other = li.credit(vlm, y, value="full", asking=False)
    assert (other.question - other.context).abs().max() > 1e-2


@pytest.mark.parametrize("kept", [("question",), ("question", "system"), ("image", "context")])
def test_keeping_is_what_credit_with_keep_gives(vlm, kept):
    """Alternatives are found where the question is seen, so that they are the same if it is seen throughout."""
    x = tiny_inputs(vlm)
    split, again = li.credit(vlm, x).keeping(*kept), li.credit(vlm, x, ("template", *kept))
    assert split.roles == again.roles and split.kept == again.kept
    assert split.provenance.parameters == again.provenance.parameters
    assert torch.allclose(split.full, again.full, atol=1e-5)
    if "question" in kept and len(kept) == 1:
        pd.testing.assert_frame_equal(split.to_frame(), again.to_frame(), atol=1e-5)
    with pytest.raises(VisibilityError, match="no credit here"):
        split.keeping(*kept)
    with pytest.raises(VisibilityError, match="'prior' has no credit here"):
        split.keeping("prior")


def test_tokens_of_a_word_add_up_under_full(vlm):
    x = tiny_inputs(vlm)
    tokens, words = li.credit(vlm, x, value="full"), li.credit(vlm, x, value="full", unit="word")
    grouped = split_words(x.answer_tokens)
    assert torch.allclose(by_word(tokens.full, grouped), words.full, atol=1e-4)


def test_groups(vlm):
    split = li.credit(vlm, tiny_inputs(vlm))
    frame = split.group(text=("question", "context", "system"))
    assert list(frame.columns) == ["token", "prior", "image", "text", "total"]
    assert frame[["prior", "image", "text"]].sum(axis=1).to_numpy() == pytest.approx(frame["total"].to_numpy())
    with pytest.raises(VisibilityError, match="cannot group"):
        split.group(text=("questions",))
    for groups in ({"a": ("image", "context"), "b": ("image",)}, {"a": ("image", "image")}):
        with pytest.raises(VisibilityError, match=r"\['image'\] would count twice"):
            split.group(**groups)
    with pytest.raises(VisibilityError, match="named 'total'"):
        split.group(total=("image",))
    assert split.group(image=("image", "system"))["image"].tolist() == (split.image + split.system).tolist()


def test_interactions_are_reported(vlm):
    split = li.credit(vlm, tiny_inputs(vlm), asking=False)
    assert len(split.interactions) == 2**4 - 4 - 1
    singles = dividends(split.values)
    own = torch.stack([singles[:, 1 << i] for i in range(4)]).sum(0)
    assert torch.allclose(split.prior + own + sum(split.interactions.values()), split.total)


def test_results_survive_a_file(vlm, tmp_path):
    split = li.credit(vlm, tiny_inputs(vlm))
    read = li.CreditSplit.load(split.save(tmp_path / "split.safetensors"))
    pd.testing.assert_frame_equal(read.to_frame(), split.to_frame())
    assert read.provenance == split.provenance
    assert read.alternatives == split.alternatives


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"value": "both"}, InputError, "value is"),
        ({"unit": "letter"}, InputError, "unit is"),
        ({"unit": (1, 1)}, InputError, "no span"),
        ({"unit": (2, 9)}, InputError, "the answer has 3"),
        ({"alternatives": 0}, InputError, "alternatives is between"),
        ({"alternatives": 200}, InputError, "alternatives is between 1 and 199"),
        ({"keep": ("answers",)}, VisibilityError, "no role 'answers'"),
        ({"against": ["x"], "word": 99}, InputError, "no word 99"),
        ({"against": [["x"], ["y"]]}, InputError, "alternatives to 2 parts, and the answer has 3"),
        ({"against": {3: ["x"]}}, InputError, "there is no part 3"),
    ],
)
def test_what_cannot_be_is_refused(vlm, options, error, message):
    with pytest.raises(error, match=message):
        inspect.unwrap(module.credit)(vlm, tiny_inputs(vlm), **options)  # without the tests' own type checks


def test_words_of_a_tokenizer_that_drops_blanks(monkeypatch):
    """Llama 2's tokenizer reads a token that begins with a blank without it if the token stands alone."""
    monkeypatch.setattr(saved, "tokenizer", saved.llama_tokenizer)
    vlm = li.wrap(tiny_llava(), saved.processor("llava"))
    x = vlm.prepare("what", Image.new("RGB", (28, 28), "red"), answer="a red cat")
    assert "".join(x.answer_tokens) == " a red cat"
    split = li.credit(vlm, x, unit="word", against=["blue"], word=1)
    assert split.tokens == ("a", "red", "cat") and split.alternatives[1] == (" blue",)
    ids = x.answer_ids.tolist()
    other = vlm.answered(x, "a blue cat").answer_ids.tolist()[1:5]  # ▁b l u e, as it stands in an answer
    assert vlm.prompter.word_ids(" blue") == vlm.prompter.word_ids("blue", blank=True) == other
    visible = module.coalitions(x, split.roles, ("template",))
    y = x.with_answer([*ids[:1], *other], [""] * 5, "")
    seen = torch.cat([visible[:, : x.answer_start], torch.ones(len(visible), 5, dtype=torch.bool)], 1)
    logprobs = naive(vlm, y, seen).double().log_softmax(-1)
    blue = logprobs.gather(-1, y.answer_ids.expand(len(seen), -1)[..., None])[:, 1:, 0].sum(1)
    red = naive(vlm, x, visible).double().log_softmax(-1)[:, range(1, 4), ids[1:4]].sum(1)
    assert torch.allclose(split.odds[1], red - blue, atol=1e-4)


# --- on the reference model ------------------------------------------------------------------------


def whole_word(vlm, x, visible, ids):
    """Log-probability of a continuation, by one masked forward pass per coalition."""
    y = x.with_answer(ids, vlm.token_strings(ids), "")
    seen = torch.cat([visible[:, : x.answer_start], torch.ones(len(visible), len(ids), dtype=torch.bool)], 1)
    logprobs = naive(vlm, y, seen).double().log_softmax(-1)
    return logprobs.gather(-1, y.answer_ids.expand(len(seen), -1)[..., None])[..., 0].sum(1)


def test_whole_words_against_whole_words(reference, purple_banana):
    x, colors = purple_banana, ["Yellow", "Red"]
    split = li.credit(reference, x, unit="word", against=colors)
    visible = module.coalitions(x, split.roles, ("template",))
    label, *others = (
        whole_word(reference, x, visible, reference.answered(x, c).answer_ids.tolist()) for c in ["Purple", *colors]
    )
    expected = label - torch.stack(others).exp().mean(0).log()
    assert split.tokens[0] == "Purple" and split.alternatives[0] == tuple(colors)
    assert torch.allclose(split.odds[0], expected, atol=1e-3)
    assert torch.allclose(split.full[0], label + 2 * math.log(49152), atol=1e-3)


def test_what_nobody_would_say_is_no_alternative(vlm, monkeypatch):
    """A token without a chance in any coalition that knows the question does not dilute the mean."""
    x = tiny_inputs(vlm)
    monkeypatch.setattr(alternatives, "PLAUSIBLE", 0.1)
    plausible = li.credit(vlm, x)
    monkeypatch.setattr(alternatives, "PLAUSIBLE", 1e-30)
    everything = li.credit(vlm, x)
    assert all(len(names) == 10 for names in everything.alternatives)
    pairs = list(zip(plausible.alternatives, everything.alternatives, strict=True))
    assert all(few == many[: len(few)] for few, many in pairs)
    assert any(len(few) < len(many) for few, many in pairs)


def test_found_alternatives_are_words(reference, purple_banana):
    split = li.credit(reference, purple_banana, unit="word")
    assert "Yellow" in split.alternatives[0]
    assert "Purple" not in split.alternatives[0] and len(set(split.alternatives[0])) == len(split.alternatives[0])


def test_the_image_says_purple(reference, purple_banana):
    split = li.credit(reference, purple_banana, unit="word")
    assert split.image[0] == max(split.prior[0], split.question[0], split.image[0])


def test_alternatives_must_be_others(reference, purple_banana):
    with pytest.raises(InputError, match="must be others than 'Purple'"):
        li.credit(reference, purple_banana, unit="word", against=["Purple", "Red"])
