"""Attribution patching is a derivative; circuits keep what they say they keep."""

import functools
import math

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError
from lvlm_interp.interventions import Patch, attribution_patching, circuits
from lvlm_interp.interventions.nodes import MLP, Node, exchange, nodes_of
from lvlm_interp.interventions.patching import _Effects
from lvlm_interp.interventions.tracing import target_of_pair
from lvlm_interp.report import figures
from tests.tiny import tiny_inputs, tiny_llava


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava(dtype=torch.float64))


@pytest.fixture(scope="module")
def pairs(vlm):
    return [(tiny_inputs(vlm, (7, 8), seed=n), tiny_inputs(vlm, (9, 8), seed=n + 10)) for n in range(3)]


@pytest.fixture(scope="module")
def ranked(vlm, pairs):
    return attribution_patching(vlm, pairs, exact=15)


def lead(logits, x):
    row = logits[0, x.answer_start - 1].double()
    return row[7] - row[9]


def effects_of(vlm, pair):
    target = target_of_pair(vlm, pair, ["difference"], "token", None)
    return _Effects(vlm, pair, target, nodes_of(vlm, pair[0]))


def pushed(gap, head, by):
    """A site's states, a little on their way to the corrupt run's."""

    def edit(value):
        new = value.clone()
        if head == MLP:
            return new - by * gap
        new[:, :, head] -= by * gap[:, :, head]
        return new

    return edit


def test_effects_are_derivatives_by_finite_differences(vlm, pairs):
    x, of, by = pairs[0][0], effects_of(vlm, pairs[0]), 2e-3
    found = of.found(1, drop=False)[0]
    for number, place in enumerate(of.nodes):
        site = f"blocks.{place[0]}.{'hook_mlp_out' if place[1] == MLP else 'attn.hook_z'}"
        ends = [
            lead(vlm.capture(x, "hook_embed", edits={site: pushed(of._gap[site], place[1], sign * by)})["logits"], x)
            for sign in (1, -1)
        ]
        assert float(found[number]) == pytest.approx(float(ends[1] - ends[0]) / (2 * by), rel=5e-3, abs=5e-3)


def test_along_a_way_effects_of_everything_add_up_to_the_lead(vlm, pairs):
    """Integrated over the embeddings alone, where nothing else differs: the sum closes as steps grow."""
    clean, corrupt = pairs[0]
    of = effects_of(vlm, pairs[0])
    start, end = of.leads.after["hook_embed"], of.leads.before["hook_embed"]
    gaps, steps = (end - start).double(), 64
    total = 0.0
    for n in range(steps):
        at = start + (n + 0.5) / steps * (end - start)
        found = vlm.capture(clean, ["hook_embed"], grad=True, edits={"hook_embed": lambda value, at=at: at.to(value)})
        (by,) = torch.autograd.grad(lead(found["logits"], clean), found["hook_embed"])
        total += float((by * gaps).sum()) / steps
    answered = corrupt.with_answer([7, 8], ["", ""], "")
    assert total == pytest.approx(float(lead(vlm.run(clean), clean) - lead(vlm.run(answered), answered)), abs=5e-3)


def test_what_goes_back_through_a_layer_is_left_out(vlm, pairs):
    """Without the derivative through all later layers a head's effect is what it writes straight into the lead."""
    of = effects_of(vlm, pairs[0])
    without = [*of._derivatives(1.0)]
    assert len(without) == 1 + vlm.depth
    last = vlm.depth - 1
    plain, less = without[0], without[1 + last]
    at = [n for n, site in enumerate(of._sites) if site.startswith(f"blocks.{last}.attn")]
    assert float(less[at[0]].abs().max()) == 0 < float(plain[at[0]].abs().max())  # all that a head writes is left out
    below = next(n for n, site in enumerate(of._sites) if site.startswith("blocks.0.attn"))
    assert float((less[below] - plain[below]).abs().max()) > 1e-6


def test_strengths_are_means_without_each_other_layer(vlm, pairs, ranked):
    of = effects_of(vlm, pairs[0])
    strength = of.found(1, drop=True)[1]
    sizes = torch.stack([of._products(one).abs() for one in [*of._derivatives(1.0)][1:]])
    for number, (layer, *_) in enumerate(of.nodes):
        others = [n for n in range(vlm.depth) if n != layer]
        assert float(strength[number]) == pytest.approx(float(sizes[others, number].mean()), rel=1e-9)
    assert bool((ranked.strength >= 0).all())


def test_exact_effects_are_exchanges(vlm, pairs, ranked):
    for number in range(0, 15, 4):
        layer, head = int(ranked.layers[number]), int(ranked.heads[number])
        lost = []
        for clean, corrupt in pairs:
            site, where = ("blocks.*.hook_mlp_out", {"layers": layer}) if head == MLP else ("blocks.*.attn.hook_z", {})
            source = corrupt.with_answer([7, 8], ["", ""], "")
            patch = Patch(site, source=source, **where, **({} if head == MLP else {"heads": [(layer, head)]}))
            with li.intervening(vlm, clean, patch):
                lost.append(lead(vlm.run(clean), clean))
        before = torch.stack([lead(vlm.run(clean), clean) for clean, _ in pairs]).mean()
        assert float(ranked.exact[number]) == pytest.approx(float(before - torch.stack(lost).mean()), abs=1e-5)


def test_a_result_tells_how_far_it_can_be_trusted(ranked):
    told = ranked.agreement()
    assert told["tried"] == 15 and -1 <= told["rank correlation"] <= 1
    assert "exchanged in earnest" in ranked.note
    assert ranked.to_frame()["component"].iloc[0] == ranked.names[ranked.order[0]]
    assert Node(2, 3, "z").name == "L2H3" and Node(2, MLP, "mlp").name == "L2 MLP"


def test_a_circuit_is_what_is_not_exchanged(vlm, pairs, ranked):
    found = circuits(vlm, pairs, {"mine": ranked}, [0.2, 0.6])
    places, kept = nodes_of(vlm, pairs[0][0]), int(found.kept[1])
    assert kept == 9
    gone = [places[n] for n in ranked.order.tolist()[kept:]]
    leads = torch.zeros(3, dtype=torch.float64)  # with the circuit, with everything, with nothing
    for clean, corrupt in pairs:
        source = corrupt.with_answer([7, 8], ["", ""], "")
        leads[1] += lead(vlm.run(clean), clean) / 3
        for n, some in ((0, gone), (2, places)):
            with li.intervening(vlm, clean, exchange(some, source)):
                leads[n] += lead(vlm.run(clean), clean) / 3
    share = (leads[0] - leads[2]) / (leads[1] - leads[2])
    assert float(found.faithfulness[0, 1]) == pytest.approx(float(share), abs=1e-4)
    assert found.whole == pytest.approx(float(leads[1]), abs=1e-5)
    assert found.nothing == pytest.approx(float(leads[2]), abs=1e-5)
    assert found.orders == ("mine", "random") and bool((found.low <= found.high).all())


def test_an_order_of_ones_own(vlm, pairs, ranked):
    """Names do as components do that are ranked alike; another order keeps another circuit."""
    names = [ranked.names[n] for n in ranked.order.tolist()]
    found = circuits(vlm, pairs, {"told": ranked, "names": names, "backwards": names[::-1]}, [0.4])
    assert torch.equal(found.faithfulness[0], found.faithfulness[1])
    assert not torch.allclose(found.faithfulness[0], found.faithfulness[2], atol=1e-3)


CLASSES = ("template", "system", "context", "question", "image", "answer")


def test_classes_of_positions_add_up_to_all_of_them(vlm, pairs, ranked):
    found = attribution_patching(vlm, pairs, positions=CLASSES, exact=0)
    frame = found.to_frame()
    summed = frame.assign(node=frame["component"].str.split(" at ").str[0]).groupby("node")["effect"].sum()
    for name, effect in zip(ranked.names, ranked.effect.tolist(), strict=True):
        assert summed[name] == pytest.approx(effect, abs=1e-5)
    fewer = attribution_patching(vlm, pairs, positions=["image", "last"], exact=0)
    alone = fewer.to_frame().groupby("component")["effect"].first()
    whole = dict(zip(ranked.names, ranked.effect.tolist(), strict=True))
    gaps = [abs(alone[f"{name} at image"] + alone[f"{name} at last"] - effect) for name, effect in whole.items()]
    assert max(gaps) > 1e-3  # what is carried elsewhere is missed


def test_exchanges_at_a_class_are_there_alone(vlm, pairs):
    found = attribution_patching(vlm, pairs[:1], positions=["image", "last"], exact=1000)
    clean, source = pairs[0][0], pairs[0][1].with_answer([7, 8], ["", ""], "")
    before = lead(vlm.run(clean), clean)
    for n in (0, 1, len(found.names) - 1):
        number, head, at = int(found.layers[n]), int(found.heads[n]), found.positions[n]
        site = f"blocks.{number}.hook_mlp_out" if head == MLP else f"blocks.{number}.attn.hook_z"
        theirs = vlm.capture(source, site)[site]
        rows = clean.where("image") if at == "image" else torch.arange(clean.length) == clean.answer_start - 1

        def edit(value, theirs=theirs, rows=rows, head=head):
            new = value.clone()
            here = (slice(None), rows) if head == MLP else (slice(None), rows, head)
            new[here] = theirs[here]
            return new

        after = lead(vlm.capture(clean, "hook_embed", edits={site: edit})["logits"], clean)
        assert float(found.exact[n]) == pytest.approx(float(before - after), abs=1e-5)


def test_a_circuit_at_classes_of_positions(vlm, pairs):
    """Kept where it is told to be kept; what no class covers is as it is in the clean run."""
    ranked = attribution_patching(vlm, pairs, positions=["image", "last"], exact=0)
    found = circuits(vlm, pairs, ranked, [0.5])
    source, clean = pairs[0][1].with_answer([7, 8], ["", ""], ""), pairs[0][0]
    assert len(ranked.names) == 2 * len(nodes_of(vlm, clean)) and int(found.kept[0]) == len(ranked.names) // 2
    theirs = vlm.capture(source, [node.site for node in nodes_of(vlm, clean)])
    rows = clean.where("image") | (torch.arange(clean.length) == clean.answer_start - 1)

    def edit(value, site):
        new = value.clone()
        new[:, rows] = theirs[site][:, rows]
        return new

    edits = {site: functools.partial(edit, site=site) for site in theirs if site.startswith("blocks")}
    nothing = lead(vlm.capture(clean, "hook_embed", edits=edits)["logits"], clean)
    alone = circuits(vlm, pairs[:1], ranked, [0.5], samples=2)
    assert alone.nothing == pytest.approx(float(nothing), abs=1e-5)


def test_areas_are_of_a_curve_from_nothing_to_everything(vlm, pairs, ranked):
    found = circuits(vlm, pairs, ranked, [0.5])
    f = float(found.faithfulness[0, 0])
    areas = found.areas().iloc[0]
    assert areas["CPR"] == pytest.approx((0 + f) / 4 + (f + 1) / 4, abs=1e-6)
    assert areas["CMD"] == pytest.approx((1 + abs(1 - f)) / 4 + abs(1 - f) / 4, abs=1e-6)
    assert not math.isnan(found.areas(log=True).iloc[0]["CPR"])


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda vlm, pairs, ranked: attribution_patching(vlm, []), "0 pairs"),
        (lambda vlm, pairs, ranked: attribution_patching(vlm, pairs, steps=0), "steps=0"),
        (lambda vlm, pairs, ranked: attribution_patching(vlm, [(pairs[0][0], pairs[0][0])]), "no difference to trace"),
        (lambda vlm, pairs, ranked: circuits(vlm, [], ranked), "0 pairs"),
        (lambda vlm, pairs, ranked: circuits(vlm, pairs, ranked, [1.0]), "between 0 and 1"),
        (lambda vlm, pairs, ranked: circuits(li.wrap(tiny_llava(seed=4)), pairs, ranked), "in another model"),
        (
            lambda vlm, pairs, ranked: circuits(vlm, pairs, ["L0H0", "L0H1"]),
            r"2 names; .* alone: \['L0H2'",
        ),
        (lambda vlm, pairs, ranked: circuits(vlm, pairs, [*ranked.names[1:], *ranked.names[1:2]]), "Of one alone"),
        (lambda vlm, pairs, ranked: circuits(vlm, pairs, "L0H0"), "no node is called 'L'"),
        (lambda vlm, pairs, ranked: attribution_patching(vlm, pairs, positions="image"), "each once; got 'image'"),
        (lambda vlm, pairs, ranked: attribution_patching(vlm, pairs, positions=["image", "lamp"]), "'predicting'"),
    ],
)
def test_what_is_asked_wrongly_is_told(vlm, pairs, ranked, ask, said):
    with pytest.raises(InputError, match=said):
        ask(vlm, pairs, ranked)


def test_curves(vlm, pairs, ranked):
    ax = figures.circuit_curves(circuits(vlm, pairs, ranked, [0.2, 0.5]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["components", "random"]
    with pytest.raises(InputError, match="'cost'"):
        figures.circuit_curves(circuits(vlm, pairs, ranked, [0.5]), "cost")
