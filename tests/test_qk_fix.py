"""What queries and keys do goes through a softmax: patterns are computed anew, and what follows is linear."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.interventions import attribution_patching, circuits
from lvlm_interp.interventions.nodes import MLP, Node, exchange, node_named, nodes_of
from lvlm_interp.interventions.patching import _Effects
from lvlm_interp.interventions.tracing import target_of_pair
from tests.tiny import tiny_inputs, tiny_llava

READ = ("q", "k", "v")
HEADS, SHARED, WIDTH = 4, 2, 8


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava(dtype=torch.float64))


@pytest.fixture(scope="module")
def pairs(vlm):
    return [(tiny_inputs(vlm, (7, 8), seed=n), tiny_inputs(vlm, (9, 8), seed=n + 10)) for n in range(2)]


@pytest.fixture(scope="module")
def plain():
    """Its last block's MLP gives nothing and its last norm divides by next to a constant: the lead is linear in what
    the last block's heads write."""
    model = tiny_llava(dtype=torch.float64)
    language = model.model.language_model
    with torch.no_grad():
        language.layers[-1].mlp.down_proj.weight.zero_()
        language.norm.weight.fill_(1e6)
    language.norm.variance_epsilon = 1e12
    return li.wrap(model)


def effects_of(vlm, pair, kinds, qk_fix=True):
    target = target_of_pair(vlm, pair, ["difference"], "token", None)
    return _Effects(vlm, pair, target, nodes_of(vlm, pair[0], kinds), qk_fix)


def lead(logits, x):
    row = logits[0, x.answer_start - 1].double()
    return row[7] - row[9]


def lost(vlm, pair, node):
    """What the lead is with a node exchanged, its sign turned."""
    clean, corrupt = pair[0], pair[1].with_answer([7, 8], ["", ""], "")
    with li.intervening(vlm, clean, exchange([node], corrupt)):
        return -float(lead(vlm.run(clean), clean))


def test_where_the_lead_is_linear_in_a_pattern_effects_are_exchanges(plain, pairs):
    pair, last = pairs[0], plain.depth - 1
    of, without = effects_of(plain, pair, READ), effects_of(plain, pair, READ, qk_fix=False)
    told, guessed = of.found(1, drop=False)[0], without.found(1, drop=False)[0]
    own, missed = float(lead(plain.run(pair[0]), pair[0])), []
    for number, node in enumerate(of.nodes):
        if node.layer == last:
            true = own + lost(plain, pair, node)
            assert float(told[number]) == pytest.approx(true, abs=1e-5), node.name
            missed.append(abs(float(guessed[number]) - true) if node.kind != "v" else 0.0)
    assert len(missed) == HEADS + 2 * SHARED and max(missed) > 0.05  # without the fix they are not


def by_hand(q, k):
    """Causal attention of a head."""
    scores = q @ k.T / WIDTH**0.5
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)


def test_what_is_multiplied_is_the_difference_of_patterns(vlm, pairs):
    """The sum over rows and keys of (clean − exchanged) times the derivative by the pattern, all of it by hand."""
    clean, corrupt = pairs[0][0], pairs[0][1].with_answer([7, 8], ["", ""], "")
    of = effects_of(vlm, pairs[0], ("q", "k"))
    told = dict(zip(of.nodes, of.found(1, drop=False)[0].tolist(), strict=True))
    names = [f"blocks.{n}.attn.hook_{part}" for n in range(vlm.depth) for part in ("rot_q", "rot_k")]
    before, after = (vlm.capture(x, names) for x in (clean, corrupt))
    graph = vlm.capture(clean, "blocks.*.attn.hook_pattern", grad=True)
    for layer in range(vlm.depth):
        (by,) = torch.autograd.grad(
            lead(graph["logits"], clean), graph[f"blocks.{layer}.attn.hook_pattern"], retain_graph=True
        )
        q, q_other = (run[f"blocks.{layer}.attn.hook_rot_q"][0] for run in (before, after))
        k, k_other = (run[f"blocks.{layer}.attn.hook_rot_k"][0] for run in (before, after))
        of_keys = [0.0] * SHARED
        for head in range(HEADS):
            key, own = head // (HEADS // SHARED), by_hand(q[:, head], k[:, head // (HEADS // SHARED)])
            by_query = ((own - by_hand(q_other[:, head], k[:, key])) * by[0, head]).sum()
            assert told[Node(layer, head, "q")] == pytest.approx(float(by_query), abs=1e-7)
            of_keys[key] += float(((own - by_hand(q[:, head], k_other[:, key])) * by[0, head]).sum())
        for key in range(SHARED):
            assert told[Node(layer, key, "k")] == pytest.approx(of_keys[key], abs=1e-7)


def test_values_need_no_fix(vlm, pairs):
    of, without = effects_of(vlm, pairs[0], ("v", "z")), effects_of(vlm, pairs[0], ("v", "z"), qk_fix=False)
    assert torch.equal(of.found(1, drop=True), without.found(1, drop=True))


def test_a_layer_s_own_derivative_is_no_part_of_a_query_s_strength(vlm, pairs):
    of = effects_of(vlm, pairs[0], ("q",))
    sizes = torch.stack([of._products(one).abs() for one in [*of._derivatives(1.0)][1:]])
    for number, node in enumerate(of.nodes):
        others = [n for n in range(vlm.depth) if n != node.layer]
        assert float(sizes[node.layer, number]) == 0
        assert float(of.found(1, drop=True)[1, number]) == pytest.approx(float(sizes[others, number].mean()), rel=1e-9)


def test_components_of_every_kind_are_exchanged_in_earnest(vlm, pairs):
    found = attribution_patching(vlm, pairs, nodes=("q", "k", "v", "z", "mlp"), exact=100)
    assert len(found.names) == vlm.depth * (2 * HEADS + 2 * SHARED + 1) == found.agreement()["tried"]
    assert found.provenance.parameters["nodes"] == ("q", "k", "v", "z", "mlp")
    for number in range(0, len(found.names), 5):
        node = node_named(found.names[number])
        assert node == Node(int(found.layers[number]), int(found.heads[number]), found.kinds[number])
        true = [float(lead(vlm.run(pair[0]), pair[0])) + lost(vlm, pair, node) for pair in pairs]
        assert float(found.exact[number]) == pytest.approx(sum(true) / len(true), abs=1e-5)
    frame = found.to_frame()
    assert {*frame["kind"]} == {"q", "k", "v", "z", "mlp"} and frame["component"].is_unique


def test_the_fix_guesses_nearer_to_exchanges(vlm, pairs):
    both = [attribution_patching(vlm, pairs, nodes=("q", "k"), qk_fix=fix, exact=100) for fix in (True, False)]
    assert both[0].exact.allclose(both[1].exact)
    missed = [float((one.effect - one.exact).abs().mean()) for one in both]
    assert missed[0] < 0.7 * missed[1]


def test_circuits_of_queries_keys_and_values(vlm, pairs):
    ranked = attribution_patching(vlm, pairs, nodes=("q", "k", "v", "mlp"), exact=0)
    heads = attribution_patching(vlm, pairs, exact=0)
    found = circuits(vlm, pairs, ranked, [0.5], samples=2)
    assert found.nothing == pytest.approx(circuits(vlm, pairs, heads, [0.5], samples=2).nothing, abs=1e-6)
    with pytest.raises(InputError, match="Of one alone"):
        circuits(vlm, pairs, {"one": ranked, "other": heads})


def test_names():
    for node in (Node(1, 0, "q"), Node(1, 0, "k"), Node(0, 1, "v"), Node(12, 3, "z"), Node(2, MLP, "mlp")):
        assert node_named(node.name) == node
    for wrong in ("L1", "H2", "L1H2 k", "L1KV0 q", "L1KV0", "l1h2", "embed"):
        with pytest.raises(InputError, match="no node is called"):
            node_named(wrong)


@pytest.mark.parametrize("nodes", [(), ("q", "q"), ("w",), "z"])
def test_kinds_that_are_none(vlm, pairs, nodes):
    with pytest.raises(InputError, match="nodes="):
        attribution_patching(vlm, pairs, nodes=nodes)


def test_a_model_without_queries_that_can_be_seen(vlm, pairs, monkeypatch):
    unseen = {name: site for name, site in vlm.sites.items() if not name.endswith("rot_q")}
    monkeypatch.setattr(type(vlm), "sites", unseen)
    monkeypatch.setattr(type(vlm), "missing", {"blocks.0.attn.hook_rot_q": "it is hidden"})
    with pytest.raises(SiteError, match="it is hidden"):
        nodes_of(vlm, pairs[0][0], ("q",))
