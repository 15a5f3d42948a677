"""Heatmaps of a greedy search, and of the few heads that look at one place."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

import lvlm_interp as li
from lvlm_interp.attribution.value import Value
from lvlm_interp.errors import InputError
from lvlm_interp.heatmaps.method import known
from lvlm_interp.heatmaps.methods.greedy import Greedy, Search
from lvlm_interp.heatmaps.methods.localization_heads import at_bottom, elbow, ranked, spatial_entropy
from tests.tiny import tiny_inputs, tiny_llava


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


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


@pytest.fixture(scope="module")
def scored(vlm):
    """Log-odds of the answer's tokens where text sees only these patches, each set scored by itself."""
    x = tiny_inputs(vlm)

    @functools.cache
    def of(members):
        visible = x.everything
        visible[x.images[0].positions[sorted({*range(4)} - members)]] = False
        return li.score(vlm, x, visible, hide_from="text").logodds[0].tolist()

    return of


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 2.0), (0.3, 1.7)])
def test_greedy_is_a_search_step_by_step(vlm, scored, weights):
    insight, necessity = weights
    found = li.attribute(vlm, tiny_inputs(vlm), "greedy", insight=insight, necessity=necessity)
    orders = found.provenance.parameters["order"]
    for part in range(3):
        gains, order = slowly(lambda members, part=part: scored(frozenset(members))[part], 4, insight, necessity)
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


def from_both_ends(worth, players, scope, update, pending):
    """The faster search in plain loops: insight and necessity weigh the same."""
    every = {*range(players)}

    def reached(members):
        return (worth(members) - worth(set()) + worth(every) - worth(every - members)) / 2

    left, first, last, found = [*range(players)], [], [], {}
    while left:
        if len(first) % update == 0:
            left.sort(key=lambda a: -reached({*first, a}))
            best = left[0]
        else:
            best = max(left[:scope], key=lambda a: reached({*first, a}))
        found[best] = reached({*first, best}) - reached({*first})
        first.append(best)
        left.remove(best)
        count = 1 if len(first) == 1 else pending if len(left) > pending else 0
        if pending and left and count:
            least = max(left[-count:], key=lambda a: reached(every - {*last, a}))
            found[least] = reached(every - {*last}) - reached(every - {*last, least})
            last.insert(0, least)
            left.remove(least)
    return [found[a] for a in range(players)], first + last


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("how", [(2, 3, 2), (3, 5, 8), (1, 2, 0), (4, 1, 3)])
def test_a_search_from_both_ends(how, seed):
    worth, (scope, update, pending) = drawn(9, seed), how
    gains, order = searched(worth, 9, scope=scope, update=update, pending=pending)
    expected, steps = from_both_ends(worth, 9, *how)
    assert order == steps and gains == pytest.approx(expected)
    assert sum(gains) == pytest.approx(worth({*range(9)}) - worth(set()))


def test_a_scope_of_all_regions_is_no_scope():
    worth = drawn(7)
    for scope in (7, 100):
        gains, order = searched(worth, 7, scope=scope, update=1, pending=0)
        expected, steps = searched(worth, 7)
        assert order == steps and gains == pytest.approx(expected)


def test_a_small_scope_misses_what_comes_late():
    """A region that tells nothing by itself, and much with the best: tried at first, and not again for long."""

    def worth(members):
        return sum((0, 1, 2, 3, 10)[one] for one in members) + 7 * ({0, 4} <= members)

    every, few = (searched(worth, 5, necessity=0.0, scope=scope, pending=0) for scope in (None, 2))
    assert every[1] == [4, 0, 3, 2, 1] and every[0][0] == 7
    assert few[1] == [4, 3, 2, 0, 1]  # 0 is tried again when it is among the last two
    assert sum(few[0]) == sum(every[0]) == 23


def test_a_scope_scores_fewer_sets():
    def counted(**how):
        asked = []
        searched(lambda members: asked.append(frozenset(members)) or float(len(members)), 8, **how)
        return len(asked)

    assert counted(scope=2) < 0.6 * counted() and counted() <= 8 * 9 + 2
    assert counted(insight=0.0) <= 8 * 9 / 2 + 2 >= counted(necessity=0.0)


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
        ({"scope": 2, "update": 0}, "update= is 1 step or more"),
        ({"scope": 2, "pending": -1}, "pending= 0 regions or more; got 5 and -1"),
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


# --- heads that look at one place -------------------------------------------------------------------------------------


def entropy_slowly(looked):
    """Places by a flood, patch after patch."""
    above = looked - looked.mean()
    left = {(r, c) for r in range(looked.shape[0]) for c in range(looked.shape[1]) if above[r, c] > 1e-3}
    masses = []
    while left:
        edge, place = [left.pop()], []
        while edge:
            row, column = edge.pop()
            place.append(float(above[row, column]))
            near = {(r, c) for r, c in left if abs(r - row) <= 1 and abs(c - column) <= 1}
            left, edge = left - near, [*edge, *near]
        masses.append(sum(place))
    return -sum(m / sum(masses) * np.log(m / sum(masses)) for m in masses) if masses else np.inf


def elbow_slowly(sums):
    """By the lengths of perpendiculars to the chord."""
    order = sorted(range(len(sums)), key=lambda n: sums[n])
    first, last = np.array([0, sums[order[0]]]), np.array([len(sums) - 1, sums[order[-1]]])
    along = (last - first) / np.linalg.norm(last - first)
    away = [np.array([n, sums[head]]) - first for n, head in enumerate(order)]
    far = [np.linalg.norm(point - (point @ along) * along) for point in away]
    return order[int(np.argmax(far))]


@pytest.mark.parametrize("seed", range(4))
def test_entropy_and_elbow_are_those_of_slow_ones(seed):
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(10):
        looked = torch.rand(9, 7, generator=generator, dtype=torch.float64).pow(12) / 10
        found.append(spatial_entropy(looked))
        assert found[-1] == pytest.approx(entropy_slowly(looked))
        sums = torch.rand(40, generator=generator, dtype=torch.float64).pow(3)
        assert elbow(sums) == elbow_slowly(sums.tolist())
    assert max(found) > 0.5


def planted(*spots, rows=5, columns=5):
    looked = torch.full((rows, columns), 0.001, dtype=torch.float64)
    for row, column, share in spots:
        looked[row, column] = share
    return looked


def test_entropy_counts_places_and_not_patches():
    one, corners, two = planted((1, 1, 0.2)), planted((1, 1, 0.1), (2, 2, 0.1)), planted((0, 0, 0.1), (2, 2, 0.1))
    assert spatial_entropy(one) == spatial_entropy(corners) == 0  # patches touch at corners
    assert spatial_entropy(two) == pytest.approx(np.log(2))
    assert spatial_entropy(torch.full((5, 5), 0.02)) == np.inf
    assert spatial_entropy(planted((1, 1, 0.0015))) == np.inf  # within 0.001 of the mean


def test_a_bottom_row():
    assert at_bottom(planted((4, 1, 0.2), (0, 0, 0.1))) and not at_bottom(planted((4, 1, 0.2), (0, 0, 0.3)))
    assert at_bottom(planted((4, 1, 0.06), (0, 0, 0.3)), "code") and not at_bottom(planted((4, 1, 0.04)), "code")
    assert not at_bottom(torch.tensor([[0.1, 0.3]])) and not at_bottom(torch.tensor([[0.1, 0.3]]), "code")


def test_heads_in_order_of_how_few_places_they_look_at():
    """Two look away from the image; of the others one looks at its bottom row, one nowhere more than elsewhere."""
    nowhere, bottom = torch.full((5, 5), 0.03), planted((4, 4, 0.7))
    few, many = planted((1, 1, 0.7)), planted((0, 0, 0.2), (0, 4, 0.2), (2, 2, 0.2))
    two = planted((0, 0, 0.4), (2, 2, 0.4))
    away = planted((1, 1, 0.01))
    maps = torch.stack([many, away, bottom, two, nowhere.double(), away, few])
    sums = torch.tensor([0.62, 0.03, 0.72, 0.82, 0.75, 0.03, 0.72], dtype=torch.float64)
    assert ranked(maps, sums) == [6, 3, 0]
    assert elbow(sums) == 0  # above it look all that look
    assert ranked(maps, sums, "code") == [1, 5, 6, 3, 0]  # those whose number is 0 or more, which are all
    later = torch.tensor([0.72, 0.03, 0.72, 0.82, 0.75, 0.03, 0.62], dtype=torch.float64)
    assert ranked(maps, later) == [6, 3, 0] and ranked(maps, later, "code") == [6]


def test_localization_heads_step_by_step(vlm):
    """On a grid of 4 × 4: from the whole pattern, in plain loops."""
    wide = li.wrap(tiny_llava(side=4))
    x = tiny_inputs(wide, side=4)
    at = x.images[0].positions
    found = li.attribute(wide, x, "localization_heads", count=2)
    whole = wide.capture(x, "blocks.*.attn.hook_pattern")
    for part in range(3):
        row = x.answer_start - 1 + part
        looked = [
            whole[f"blocks.{layer}.attn.hook_pattern"][0, head, row, at].double()
            for layer in range(3)
            for head in range(4)
        ]
        sums = [float(one.sum()) for one in looked]
        least = sums[elbow_slowly(sums)]
        grids = [one.view(4, 4) for one in looked]
        kept = [n for n in range(12) if sums[n] >= least and int(grids[n].argmax()) < 12]
        best = sorted(kept, key=lambda n: entropy_slowly(grids[n]))[:2]
        assert found.provenance.parameters["chosen"][part] == [[*divmod(n, 4)] for n in best]
        assert torch.allclose(found.values[part].double(), torch.stack([grids[n] for n in best]).mean(0), atol=1e-6)
        assert float(found.image_total[part]) == pytest.approx(np.mean([sums[n] for n in best]), abs=1e-5)
    assert found.unit == "shares of attention" and found.provenance.parameters["count"] == 2


def test_heads_that_are_named(vlm):
    x = tiny_inputs(vlm)
    found = li.attribute(vlm, x, "localization_heads", heads=[[-1, 2], [0, 3]])
    assert found.provenance.parameters["chosen"] == [[[2, 2], [0, 3]]] * 3
    both = [li.attribute(vlm, x, "attention", layers=layer, heads=head).values for layer, head in ((2, 2), (0, 3))]
    assert torch.allclose(found.values, (both[0] + both[1]) / 2, atol=1e-6)
    same = li.attribute(vlm, x, "localization_heads", heads=np.array([[2, 2], [0, 3]]))
    assert same == found
    with pytest.raises(InputError, match="cannot be subtracted"):
        found - li.attribute(vlm, x, "localization_heads", heads=((0, 3),))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"heads": ((7, 0),)}, r"no head \(7, 0\).*layers are 0 to 2; layer 2 has heads 0 to 3"),
        ({"heads": ((-4, 0),)}, r"no head \(-1, 0\)"),
        ({"heads": ((0, 1), (-3, 1))}, "named twice"),
        ({"heads": ()}, "1 head or more"),
        ({"heads": ((0, 1, 2),)}, r"a \(layer, head\) for each"),
        ({"heads": (3, 1)}, r"heads=….* takes Sequence"),
        ({"heads": np.array([["a", "b"]])}, r"a \(layer, head\) for each"),
        ({"heads": np.array([[0.5, 1.0]])}, r"a \(layer, head\) for each"),
        ({"heads": np.array([3, 1])}, r"a \(layer, head\) for each"),
        ({"count": 0}, "1 head or more"),
        ({"reading": "both"}, r"Literal\['paper', 'code'\]"),
    ],
)
def test_heads_that_there_are_not(vlm, parameters, message):
    with pytest.raises(InputError, match=message):
        li.attribute(vlm, tiny_inputs(vlm), "localization_heads", **parameters)


def test_no_head_that_looks_at_one_place(vlm, monkeypatch):
    monkeypatch.setattr("lvlm_interp.heatmaps.methods.localization_heads.ABOVE", 1.0)
    with pytest.raises(InputError, match=r"none of the 12 heads looks at one place.*heads=.*'attention'"):
        li.attribute(vlm, tiny_inputs(vlm), "localization_heads")


def test_readings_are_different_things(vlm):
    wide = li.wrap(tiny_llava(side=4))
    x = tiny_inputs(wide, side=4)
    one = li.attribute(wide, x, "localization_heads")
    for change in ({"count": 1}, {"heads": ((0, 0),)}, {"reading": "code"}):
        with pytest.raises(InputError, match="cannot be subtracted"):
            one - li.attribute(wide, x, "localization_heads", **change)


# --- all of them ------------------------------------------------------------------------------------------------------


def test_every_method_is_in_the_guide():
    page = (Path(__file__).parent.parent / "docs" / "heatmaps.md").read_text("utf-8")
    assert not [name for name in known() if f"\n| `{name}` | " not in page]
