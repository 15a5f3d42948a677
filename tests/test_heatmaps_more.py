"""Heatmaps of a greedy search, of relevance handed on, and of the few heads that look at one place."""

import numpy as np
import pytest
import torch

import lvlm_interp as li
from lvlm_interp.attribution.asked import asked_of
from lvlm_interp.attribution.value import Value
from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.heatmaps.differentiable import Differentiable
from lvlm_interp.heatmaps.methods.greedy import Greedy, Search
from lvlm_interp.heatmaps.methods.relevance import Relevance, counting, of_rows, patterns_of
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def exact():
    return li.wrap(tiny_llava(dtype=torch.float64))


# --- a greedy search --------------------------------------------------------------------------------------------------


def slowly(worth, players, insight=1.0, necessity=1.0):
    """One search in plain loops; `worth` is of a set of numbers."""
    every, chosen, found = {*range(players)}, [], {}
    for _ in range(players):
        gains = {}
        for a in sorted(every - {*chosen}):
            kept = worth({*chosen, a}) - worth({*chosen})
            lost = worth(every - {*chosen}) - worth(every - {*chosen, a})
            gains[a] = (insight * kept + necessity * lost) / (insight + necessity)
        best = max(gains, key=lambda a: (gains[a], -a))
        found[best] = gains[best]
        chosen.append(best)
    return [found[a] for a in range(players)], chosen


def searched(worth, players, **how):
    """The method's own search in a game that is planted."""

    def of(sets):
        return torch.tensor([[worth({*row.nonzero().flatten().tolist()}) for row in sets]], dtype=torch.float64)

    ends = of(torch.tensor([[False] * players, [True] * players]))
    gains, order = Search(of, ends[:, 0], ends[:, 1], players, Greedy(**how)).run(lambda: None)
    return gains[0].tolist(), order[0].tolist()


def drawn(players, seed=0):
    """A game in which every set is worth something of its own."""
    values = torch.randn(1 << players, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).tolist()
    return lambda members: values[sum(1 << one for one in members)]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 2.0), (0.3, 1.7)])
def test_greedy_is_a_search_step_by_step(vlm, weights):
    x = tiny_inputs(vlm)
    insight, necessity = weights
    found = li.attribute(vlm, x, "greedy", insight=insight, necessity=necessity)
    orders = found.provenance.parameters["order"]
    for part in range(3):

        def worth(members, part=part):
            visible = x.everything
            visible[x.images[0].positions[sorted({*range(4)} - members)]] = False
            return float(li.score(vlm, x, visible, hide_from="text").logodds[0, part])

        gains, order = slowly(worth, 4, insight, necessity)
        assert found.values[part].flatten().tolist() == pytest.approx(gains, abs=1e-4) and orders[part] == order
    assert found.residual.abs().max() < 1e-4 and found.unit == "nats"
    assert torch.allclose(found.values.sum((1, 2)), found.image_total, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_in_drawn_games(seed):
    worth = drawn(6, seed)
    gains, order = searched(worth, 6, necessity=0.5)
    expected, steps = slowly(worth, 6, necessity=0.5)
    assert gains == pytest.approx(expected) and order == steps
    assert sum(gains) == pytest.approx(worth({*range(6)}) - worth(set()))


def test_of_equal_regions_the_first_comes_first():
    """Each is worth what two others are; the last is worth more."""
    gains, order = searched(lambda members: sum(3 if one == 4 else 1 for one in members), 5)
    assert order == [4, 0, 1, 2, 3] and gains == [1, 1, 1, 1, 3]


def test_regions_that_tell_the_same_share_the_credit():
    """One of two is enough: occlusion gives nothing to either; insight alone all to the first that comes."""

    def worth(members):
        return float(bool(members & {1, 2}))

    whole = worth({0, 1, 2, 3})
    assert [whole - worth({0, 1, 2, 3} - {one}) for one in range(4)] == [0, 0, 0, 0]
    assert searched(worth, 4)[0] == [0, 0.5, 0.5, 0]
    assert searched(worth, 4, necessity=0.0)[0] == [0, 1, 0, 0]
    assert sorted(searched(worth, 4, insight=0.0)[0]) == [0, 0, 0, 1]


def test_a_scope_of_all_regions_is_no_scope():
    worth = drawn(7)
    assert searched(worth, 7, scope=7) == searched(worth, 7) == searched(worth, 7, scope=100)


def test_a_small_scope_misses_what_comes_late():
    """A region that tells nothing by itself, and much with the best: tried at first, and not again for long."""

    def worth(members):
        return sum((0, 1, 2, 3, 10)[one] for one in members) + 7 * ({0, 4} <= members)

    every, few = (searched(worth, 5, necessity=0.0, scope=scope) for scope in (None, 2))
    assert every[1] == [4, 0, 3, 2, 1] and every[0][0] == 7
    assert few[1] == [4, 3, 2, 0, 1]  # 0 is tried again when it is among the last two
    assert sum(few[0]) == sum(every[0]) == 23


def test_a_scope_scores_fewer_sets():
    def counted(**how):
        asked = []
        searched(lambda members: asked.append(frozenset(members)) or float(len(members)), 8, **how)
        return len(asked)

    assert counted(scope=2) < 0.6 * counted() and counted() <= 8 * 9 + 2


def test_greedy_over_labels_and_of_other_values(vlm):
    side = 4
    wide, labels = li.wrap(tiny_llava(side=side)), np.arange(16).reshape(4, 4) // 4
    x = tiny_inputs(wide, side=side)
    found = li.attribute(wide, x, "greedy", regions=labels, unit="answer", value="odds")
    assert (found.values == found.values[:, :, :1]).all() and found.alternatives and found.residual.abs().max() < 1e-4
    assert found.provenance.parameters["regions"] == 4
    mean = Value("mean probability", "nats", lambda evidence: evidence.logprob.exp().mean(1))
    chances = li.attribute(wide, x, "greedy", regions=labels, unit="answer", value=mean)
    assert chances.value == "mean probability" and chances.image_total.abs() < 1 and chances.residual.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"insight": -1.0}, "0 or more"),
        ({"insight": 0.0, "necessity": 0.0}, "one of them above"),
        ({"insight": float("nan")}, "weights"),
        ({"scope": 0}, "1 or more"),
        ({"scope": 1.5}, "takes int"),
    ],
)
def test_searches_that_there_are_not(vlm, parameters, message):
    with pytest.raises(InputError, match=message):
        li.attribute(vlm, tiny_inputs(vlm), "greedy", **parameters)


def test_too_many_regions_for_all_to_be_tried(vlm, monkeypatch):
    monkeypatch.setattr("lvlm_interp.heatmaps.methods.greedy.MANY", 3)
    with pytest.raises(InputError, match=r"regions=8, or try fewer at a step, scope=10"):
        li.attribute(vlm, tiny_inputs(vlm), "greedy")
    assert li.attribute(vlm, tiny_inputs(vlm), "greedy", scope=1).residual.abs().max() < 1e-4


def test_other_weights_are_another_thing(vlm):
    x = tiny_inputs(vlm)
    one = li.attribute(vlm, x, "greedy")
    assert one - li.attribute(vlm, x, "greedy")
    for change in ({"insight": 0.5}, {"scope": 1}):
        with pytest.raises(InputError, match="cannot be subtracted"):
            one - li.attribute(vlm, x, "greedy", **change)


# --- relevance --------------------------------------------------------------------------------------------------------

PATTERN = "blocks.*.attn.hook_pattern"


def with_graph(vlm, x, value, sites=PATTERN):
    """All patterns of a pass, and their derivatives of what a function makes of the answer's logits."""
    found = vlm.capture(x, sites, grad=True)
    kept = [one for name, one in found.items() if name != "logits"]
    return kept, torch.autograd.grad(value(found["logits"][0, x.answer_start - 1 : -1].double()), kept)


def counted(pattern, derivative):
    return (derivative * pattern).relu().mean(1)[0]


def all_rows(kept, derivatives, counted=counted):
    """R, whole, layer after layer."""
    rows = torch.eye(kept[0].shape[-1], dtype=torch.float64)
    for pattern, derivative in zip(kept, derivatives, strict=True):
        rows = rows + counted(pattern, derivative).double() @ rows
    return rows.detach()


def logodds(x, part):
    def value(rows):
        chances = rows[part].log_softmax(-1)[x.answer_ids[part]]
        return chances - (1 - chances.exp()).log()

    return value


def flows_of(vlm, x, of=None, **how):
    of = of or Differentiable(asked_of(vlm, x))
    return Relevance(**how).handed_on(of, patterns_of(vlm), of_rows(of.asked), of.features)


@pytest.mark.parametrize("at_once", [None, 1, 2])
def test_relevance_is_that_of_whole_matrices(exact, at_once):
    x = tiny_inputs(exact)
    found, flows = li.attribute(exact, x, "relevance"), flows_of(exact, x, layers_at_once=at_once)
    for part in range(3):
        kept, derivatives = with_graph(exact, x, logodds(x, part))
        expected = all_rows(kept, derivatives)[x.answer_start - 1 + part]
        assert (flows[part] - expected).abs().max() < 1e-8
        image = expected[x.images[0].positions]
        assert torch.allclose(found.values[part].flatten(), image.float(), rtol=1e-6) and image.std() > 1e-3
        assert float(found.image_total[part]) == pytest.approx(float(image.sum()))


def test_negative_products_and_means_before_them_are_another_thing(exact):
    """Controls: without relu, with relu behind the mean over heads, and with the other order of layers."""
    x = tiny_inputs(exact)
    kept, derivatives = with_graph(exact, x, logodds(x, 1))
    row = x.answer_start
    flow = flows_of(exact, x)[1]
    for other in (lambda a, d: (d * a).mean(1)[0], lambda a, d: (d * a).mean(1)[0].relu(), lambda a, d: a.mean(1)[0]):
        assert (all_rows(kept, derivatives, other)[row] - flow).abs().max() > 1e-3
    assert (all_rows(kept[::-1], derivatives[::-1])[row] - flow).abs().max() > 1e-3


def test_what_speaks_against_the_value_does_not_count():
    pattern = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[1.0, 0.0], [0.5, 0.5]]])
    derivative = torch.tensor([[[-2.0, 2.0], [-4.0, -4.0]], [[1.0, 9.0], [-1.0, 2.0]]])
    assert counting(pattern, derivative).tolist() == [[0.5, 0.5], [0.0, 0.5]]
    assert counting(pattern.half(), derivative.half()).dtype == torch.float32


@pytest.mark.parametrize("value", ["odds", "difference", "logit"])
def test_relevance_of_other_values_and_parts(exact, value):
    """A part of several tokens: the derivative of their value, and the mean of their rows."""
    x = tiny_inputs(exact)
    one = li.attribute(exact, x, "relevance", value=value)
    assert one.value == value and one.values.min() >= 0 and bool(one.alternatives) == (value != "logit")
    kept, derivatives = with_graph(exact, x, lambda rows: rows[[0, 1, 2], x.answer_ids].sum())
    rows = all_rows(kept, derivatives)[x.answer_start - 1 : -1]
    whole = li.attribute(exact, x, "relevance", value="logit", unit="answer")
    assert torch.allclose(whole.values.flatten(), rows.mean(0)[x.images[0].positions].float(), rtol=1e-6)


def test_relevance_of_alternatives_that_have_a_pass_of_their_own(exact):
    with pytest.raises(InputError, match=r"has 3 tokens, so a pass of its own.*'integrated_gradients'"):
        li.attribute(exact, tiny_inputs(exact), "relevance", value="odds", unit="answer")


def test_relevance_needs_every_layer_s_attention(vlm):
    hybrid = li.wrap(tiny_model("qwen3_5"))
    with pytest.raises(ModelError, match=r"carries a state from position to position beside it; 'integr"):
        li.attribute(hybrid, tiny_example(hybrid, "qwen3_5"), "relevance")
    with pytest.raises(InputError, match="1 or more"):
        li.attribute(vlm, tiny_inputs(vlm), "relevance", layers_at_once=0)


def test_relevance_of_an_unreadable_layer(monkeypatch):
    vlm = li.wrap(tiny_llava())
    reason = "LlamaAttention computes attention by itself"
    monkeypatch.setitem(vlm.missing, "blocks.1.attn.hook_pattern", reason)
    with pytest.raises(ModelError, match=rf"every layer's attention, and {reason}; 'integrated_gradients'"):
        li.attribute(vlm, tiny_inputs(vlm), "relevance")


def test_relevance_where_weights_are_frozen_and_nothing_is_recorded(vlm):
    x = tiny_inputs(vlm)
    plain = li.attribute(vlm, x, "relevance", unit="answer").values
    frozen = li.wrap(tiny_llava().requires_grad_(False))
    assert torch.equal(li.attribute(frozen, x, "relevance", unit="answer").values, plain)
    assert all(weight.grad is None for weight in vlm.model.parameters())
    with torch.inference_mode():
        within = li.attribute(vlm, tiny_inputs(vlm), "relevance", unit="answer").values
    assert torch.equal(within, plain)
    half = li.wrap(tiny_llava(dtype=torch.bfloat16))
    assert torch.allclose(li.attribute(half, tiny_inputs(half), "relevance", unit="answer").values, plain, rtol=0.3)
