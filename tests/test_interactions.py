"""Exact joint effects: equal to their definitions, to another package, to credit and to heatmaps; and they close."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.attribution.players import named_players
from lvlm_interp.attribution.shapley import dividends
from lvlm_interp.errors import InputError, LvlmInterpError, VisibilityError
from lvlm_interp.heatmaps.joint_effects import JointEffects
from tests import saved
from tests.made import about
from tests.test_score import naive
from tests.tiny import tiny_inputs, tiny_llava

# Made by shapiq 1.4.1, a package of its own, in an environment of its own; "made" in the file says how.
GOLDEN = json.loads((Path(__file__).parent / "goldens" / "shapiq.json").read_text(encoding="utf-8"))
HALVES = np.array([[0, 0], [1, 1]])
ASKED = {"unit": "answer", "value": "logprob"}


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


@pytest.fixture(scope="module")
def chat():
    return li.wrap(tiny_llava(), saved.processor("llava"))


@pytest.fixture(scope="module")
def talk(chat):
    picture = Image.linear_gradient("L").rotate(30).resize((28, 28)).convert("RGB")
    return chat.prepare("is it a cat with it?", picture, context="It was red.", answer="a cat")


def coalitions(count):
    """Every coalition as the set of its players, in the order of their numbers."""
    return [{i for i in range(count) if number >> i & 1} for number in range(1 << count)]


def game(values, image=2):
    """The effects of a game that is made up: v of every coalition, the first players of the image."""
    values = torch.atleast_2d(torch.as_tensor(values, dtype=torch.float64))
    count = values.shape[1].bit_length() - 1
    return JointEffects(
        tokens=tuple(f"part {n}" for n in range(len(values))),
        players=tuple(f"player {n}" for n in range(count)),
        kinds=("image",) * image + ("text",) * (count - image),
        player_texts=("",) * count,
        regions=torch.arange(image)[None],
        dividends=dividends(values),
        total=values[:, -1] - values[:, 0],
        value="logprob",
        unit="nats",
        hide_from="all",
        provenance=about("interactions"),
    )


def worth(vlm, x, visible, hide_from):
    """Log-probability of the answer in each of these coalitions, a masked pass each."""
    logprobs = naive(vlm, x, visible, hide_from).double().log_softmax(-1)
    return logprobs.gather(-1, x.answer_ids[None, :, None].expand(len(visible), -1, -1)).sum((1, 2))


# --- what they are ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hide_from", ["all", "text"])
def test_dividends_are_what_their_definition_says(vlm, x, hide_from):
    """Two halves of the picture, the question, and the system, in front of the picture; the context is of nobody."""
    found = li.interactions(vlm, x, ("question", "system"), regions=HALVES, hide_from=hide_from, **ASKED)
    places = x.images[0].positions
    masks = [x.visible() & False for _ in range(2)]
    masks[0][places[:2]] = masks[1][places[2:]] = True
    masks += [x.where("question"), x.where("system")]
    always = x.visible("context")
    sets = coalitions(4)
    seen = torch.stack([torch.stack([always, *(masks[i] for i in some)]).any(0) for some in sets])
    v = worth(vlm, x, seen, hide_from)
    for number, some in enumerate(sets):
        within = [(t, subset) for t, subset in enumerate(sets) if subset <= some]
        expected = sum((-1) ** (len(some) - len(subset)) * float(v[t]) for t, subset in within)
        assert float(found.dividends[0, number]) == pytest.approx(expected, abs=1e-3)
    assert found.players == ("region 0", "region 1", "question", "system")
    assert found.kinds == ("image", "image", "text", "text") and found.hide_from == hide_from
    assert found.dividends.abs().min() > 1e-3  # a wrong place would show


def test_the_two_ways_to_hide_are_different_experiments(vlm, x):
    one, other = (li.interactions(vlm, x, hide_from=way, **ASKED) for way in ("all", "text"))
    assert not torch.allclose(one.joint_shares, other.joint_shares, atol=1e-2)
    assert torch.allclose(one.joint, other.joint, atol=1e-4)  # of all regions or none, which is the same
    usual = li.interactions(vlm, x, **ASKED)
    assert usual.hide_from == "text" and torch.equal(usual.dividends, other.dividends)


def test_effects_close_in_float64():
    double = li.wrap(tiny_llava(dtype=torch.float64))
    found = li.interactions(double, tiny_inputs(double))
    kinds = found.image_only + found.text_only + found.joint
    assert found.residual.abs().max() <= 1e-6 and found.dividends.dtype == torch.float64
    for numbers in (
        found.dividends[:, 1:].sum(1),
        kinds,
        found.shapley.sum(1),
        found.shapley_taylor.triu().sum((1, 2)),
    ):
        assert torch.allclose(numbers, found.total, atol=1e-6)
    for kind in ("image", "text"):
        of_kind = [i for i, one in enumerate(found.kinds) if one == kind]
        assert torch.allclose(found.joint_shares[:, of_kind].sum(1), found.joint, atol=1e-6)
    assert found.joint.abs().max() > 1e-2
    wrong = dataclasses.replace(found, total=found.total + 1)
    assert torch.allclose(wrong.residual, torch.ones(3, dtype=torch.float64), atol=1e-5)


def test_indices_are_those_of_shapiq():
    found = game(GOLDEN["values"])
    for key, number in GOLDEN["Moebius"].items():
        coalition = sum(1 << int(i) for i in key.split())
        assert float(found.dividends[0, coalition]) == pytest.approx(number, abs=1e-10)
    for i in range(5):
        assert float(found.shapley[0, i]) == pytest.approx(GOLDEN["SV"][str(i)], abs=1e-10)
    for ours, theirs in ((found.pairs, GOLDEN["SII"]), (found.shapley_taylor, GOLDEN["STII"])):
        for i, j in itertools.combinations_with_replacement(range(5), 2):
            key = str(i) if i == j else f"{i} {j}"
            assert float(ours[0, i, j]) == pytest.approx(theirs[key], abs=1e-10)
            assert float(ours[0, j, i]) == pytest.approx(theirs[key], abs=1e-10)
    assert not torch.allclose(found.pairs, found.shapley_taylor, atol=1e-3)


def test_pairs_are_averages_over_what_else_is_seen():
    """Both indices once more, by their other definitions: means of second differences, not sums of dividends."""
    count = 5
    v = torch.tensor(GOLDEN["values"], dtype=torch.float64)
    found = game(v)
    for i, j in itertools.combinations(range(count), 2):
        index = taylor = 0.0
        for number, some in enumerate(coalitions(count)):
            if not some & {i, j}:
                step = float(v[number | 1 << i | 1 << j] - v[number | 1 << i] - v[number | 1 << j] + v[number])
                chosen = math.factorial(len(some)) * math.factorial(count - len(some) - 2)
                index += chosen / math.factorial(count - 1) * step
                taylor += 2 / count * step / math.comb(count - 1, len(some))
        assert float(found.pairs[0, i, j]) == pytest.approx(index, abs=1e-10)
        assert float(found.shapley_taylor[0, i, j]) == pytest.approx(taylor, abs=1e-10)


def test_a_planted_joint_effect_is_found():
    """A region and a phrase that are of use together only; another region is by itself."""
    both = game([3.0 * ({0, 2} <= some) + 2.0 * (1 in some) for some in coalitions(4)])
    assert (float(both.image_only), float(both.text_only), float(both.joint)) == (2, 0, 3)
    assert both.joint_shares[0].tolist() == [3, 0, 3, 0] and float(both.joint_of("player 0")) == 3
    assert both.shapley[0].tolist() == [1.5, 2, 1.5, 0]
    assert float(both.pairs[0, 0, 2]) == float(both.shapley_taylor[0, 2, 0]) == 3
    first = both.to_frame().iloc[0]
    assert (first["players"], first["order"], first["kind"], first["dividend"]) == (
        "player 0 + player 2",
        2,
        "joint",
        3,
    )


def test_a_joint_effect_is_shared_by_those_of_its_kind():
    all_three = game([6.0 * ({0, 1, 2} <= some) for some in coalitions(4)])
    assert all_three.joint_shares[0].tolist() == [3, 3, 6, 0] and all_three.shapley[0].tolist() == [2, 2, 2, 0]


def test_what_adds_up_has_no_joint_effect():
    found = game([sum((1.0, -2.0, 4.0, 0.5)[i] for i in some) for some in coalitions(4)])
    assert float(found.joint) == 0 and not found.joint_shares.any()
    assert (float(found.image_only), float(found.text_only)) == (-1, 4.5)
    assert found.shapley[0].tolist() == found.pairs[0].diagonal().tolist() == [1, -2, 4, 0.5]
    off = ~torch.eye(4, dtype=torch.bool)
    assert not found.pairs[0][off].any() and not found.shapley_taylor[0][off].any()
    within = game([1.0 * ({0, 1} <= some) for some in coalitions(4)])  # of two regions: together, but not joint
    assert float(within.joint) == 0 and float(within.image_only) == 1


# --- against what computes the same otherwise -------------------------------------------------------------------------


def test_shapley_values_are_those_of_credit(vlm, x):
    found = li.interactions(vlm, x, regions=HALVES, hide_from="all", value="logprob")
    places = x.images[0].positions.tolist()
    masks = {"top": places[:2], "bottom": places[2:]}
    split = li.credit(vlm, x, value="logprob", players=masks, asking=False)
    theirs = {name: split.of(name) for name in ("top", "bottom", "question", "context", "system")}
    assert torch.allclose(found.shapley, torch.stack([*theirs.values()], 1), atol=1e-4)
    together = split.interactions["question", "top"]
    number = sum(1 << found.players.index(name) for name in ("region 0", "question"))
    assert torch.allclose(found.dividends[:, number], together, atol=1e-4)


@pytest.mark.parametrize("asked", [{}, {"against": "the cat", "unit": "answer"}, {"value": "odds", "unit": "word"}])
def test_shapley_values_of_regions_alone_are_those_of_the_heatmap(chat, talk, asked):
    patches = li.attribute(chat, talk, "shapley", **asked)
    found = li.interactions(chat, talk, (), regions=None, **asked)
    assert torch.allclose(found.shapley.float(), patches.values.flatten(1), atol=1e-4)
    assert found.alternatives == patches.alternatives and found.alternative_ids == patches.alternative_ids
    assert (found.value, found.unit, found.tokens) == (patches.value, patches.unit, patches.tokens)
    assert torch.equal(found.joint, torch.zeros(len(found.tokens), dtype=torch.float64))


def test_eight_regions_and_four_phrases():
    """4096 coalitions; sums of kinds are four values, which the engine gives by themselves."""
    wide = li.wrap(tiny_llava(side=4))
    x = tiny_inputs(wide, side=4)
    first = x.where("question").nonzero().flatten().tolist()
    phrases = ({"first": first[:1], "second": first[1:2]}, "context", "system")
    found = li.interactions(wide, x, phrases, regions=np.arange(16).reshape(4, 4) // 2, **ASKED)
    assert found.dividends.shape == (1, 4096) and found.residual.abs().max() < 1e-3
    named = named_players(x, phrases)
    text = torch.stack([one.positions for one in named]).any(0)
    ends = torch.stack(
        [x.everything & ~text & ~x.where("image"), x.everything & ~text, x.hidden("image"), x.everything]
    )
    none, image, words, both = worth(wide, x, ends, "text")
    expected = [image - none, words - none, both - image - words + none]
    ours = torch.stack([found.image_only, found.text_only, found.joint])[:, 0]
    assert torch.allclose(ours, torch.stack(expected), atol=1e-3) and ours.abs().min() > 1e-2


def test_a_token_of_two_regions_is_hidden_with_either(vlm, x):
    """As a thumbnail's, which shows both: the last patch has its place over all of the first."""
    view = x.images[0]
    patches = ((0, 0, 1, 1), (1, 0, 2, 1), (0, 1, 1, 2), (0, 0, 2, 2))
    shown = dataclasses.replace(view, cells=torch.tensor([[0, 1]]), patches=patches)
    one = dataclasses.replace(x, images=(shown,))
    found = li.interactions(vlm, one, "question", regions=None, hide_from="all", **ASKED)
    seen = x.everything.repeat(2, 1)
    seen[0, view.positions[[0, 3]]] = False  # without region 0; the question is seen
    both = found.dividends[0, [s for s in range(8) if not s & 1]].sum()
    assert float(both) == pytest.approx(float(worth(vlm, x, seen, "all")[0]), abs=1e-4)


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("players", "options", "error", "message"),
    [
        ((), {"regions": 1}, InputError, "2 to 12 players .* these are 1, 1 regions"),
        ([{f"at {p}": [p] for p in (1, 2, 7, 8, 9, 10, 11, 12)}, "images"], {}, InputError, "these are 13"),
        ({"a": []}, {}, VisibilityError, "'a' covers no position"),
        ({"a": [7, 8], "b": [8]}, {}, VisibilityError, r"'a' and 'b' overlap at 1 positions, such as \[8\]"),
        (("question", {"a": [10]}), {}, VisibilityError, "'question' and 'a' overlap"),
        ({"a": [3]}, {}, VisibilityError, "'region 0' and 'a' overlap"),
        ("images", {}, VisibilityError, "'region 0' and 'image 0' overlap"),
        ({"region 1": [8]}, {}, VisibilityError, "two players are named 'region 1'"),
        ({"a": [6, 7]}, {"regions": [[0, 1], [1, -1]]}, VisibilityError, "'a' covers image and text"),
        ({"a": [0]}, {}, VisibilityError, "always visible"),
        ([3], {}, InputError, "players are 'roles'.*or texts of the prompt; got 3|takes str"),
        ("banana", {}, InputError, "'banana' is to be one place"),
        ("roles", {"image": 1}, InputError, "no image 1"),
        ("roles", {"hide_from": "image"}, VisibilityError, "hide_from is 'all' or 'text'"),
        ("roles", {"target": "banana"}, InputError, "no parts of the answer are 'banana'"),
    ],
)
def test_what_cannot_be_told(vlm, x, monkeypatch, players, options, error, message):
    """Refused before anything is run."""
    monkeypatch.setattr(type(vlm.model), "forward", None)
    options = {
        name: np.array(one) if name == "regions" and isinstance(one, list) else one for name, one in options.items()
    }
    with pytest.raises(error, match=message):
        plainly(li.interactions)(vlm, x, players, **options)


def plainly(function):
    """Without the checks of annotations that tests make, which users have not."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def test_no_image(vlm):
    x = vlm.inputs(torch.tensor([[1, 20, 21, 50, 7]]), 4)
    with pytest.raises(InputError, match="no image"):
        li.interactions(vlm, x)


def test_another_picture_is_a_player_of_the_image(vlm):
    x = tiny_inputs(vlm, images=2)
    found = li.interactions(vlm, x, ({"other": x.images[1].positions}, "question"), regions=1, **ASKED)
    assert found.kinds == ("image", "image", "text") and found.regions.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ("image",)}, "4 players have 2\\^4 coalitions"),
        ({"players": ("a", "b")}, "2 players have 2\\^2 coalitions"),
        ({"regions": torch.tensor([[0, 2]])}, "numbers of players of the image, or -1; got 2"),
        ({"tokens": ("a", "b")}, "tokens has 2 members"),
    ],
)
def test_results_that_cannot_be(changes, message):
    with pytest.raises(LvlmInterpError, match=message):
        dataclasses.replace(game(torch.zeros(16)), **changes)


# --- maps against the truth -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth(vlm, x):
    return li.interactions(vlm, x, regions=2, **ASKED)


def test_maps_are_scored_against_the_truth(vlm, x, truth):
    """The truth itself ranks as it does, and its contrary the other way round; what does not vary ranks nothing."""
    base = li.attribute(vlm, x, unit="answer")

    def like(numbers):
        return dataclasses.replace(base, values=numbers[:, :4].reshape(1, 2, 2).float())

    maps = {"shapley": like(truth.shapley), "joint": like(truth.joint_shares), "contrary": like(-truth.joint_shares)}
    maps |= {"flat": like(torch.ones(1, 4)), "occlusion": base}
    found = truth.scored(maps).set_index("map")
    assert found.loc["shapley", "shapley"] == pytest.approx(1) and found.loc["joint", "joint"] == pytest.approx(1)
    assert found.loc["contrary", "joint"] == pytest.approx(-1) and found.loc["flat"].isna().sum() == 2
    ranks = [one.argsort().argsort().double() for one in (base.values.flatten(), truth.joint_shares[0, :4])]
    by_hand = float(torch.corrcoef(torch.stack(ranks))[0, 1])
    assert found.loc["occlusion", "joint"] == pytest.approx(by_hand)
    assert truth.scored(base)["joint"].tolist() == [pytest.approx(by_hand)]


def test_a_map_s_number_of_a_region_is_the_sum_over_its_patches(vlm, x):
    """Labels in any order, one patch in no region."""
    labels = np.array([[5, 2], [2, -3]])
    found = li.interactions(vlm, x, "question", regions=labels, **ASKED)
    assert found.regions.tolist() == [[1, 0], [0, -1]] and found.players == ("region 0", "region 1", "question")
    base = li.attribute(vlm, x, unit="answer")
    mapped = dataclasses.replace(base, values=torch.tensor([[[3.0, 2.0], [2.0, 9.0]]]))
    sign = 1 if found.shapley[0, 0] > found.shapley[0, 1] else -1  # 4 against 3
    assert found.scored(mapped)["shapley"].tolist() == [pytest.approx(sign)]


def test_maps_of_something_else(vlm, x, truth):
    base = li.attribute(vlm, x, unit="answer")
    with pytest.raises(InputError, match="make both with the same unit"):
        truth.scored(dataclasses.replace(base, tokens=("another",)))
    with pytest.raises(InputError, match=r"the map 'one' has \[1, 2\] patches"):
        truth.scored({"one": dataclasses.replace(base, values=base.values[:, :1], boxes=base.boxes[:1])})
    with pytest.raises(InputError, match="at least one map"):
        truth.scored({})
    with pytest.raises(InputError, match="no token 3"):
        truth.scored(base, 3)
    with pytest.raises(InputError, match="there is no player 'banana'"):
        truth.joint_of("banana")


# --- kept and shown ---------------------------------------------------------------------------------------------------


def test_saved_and_shown(truth, tmp_path):
    assert li.load_result(truth.save(tmp_path / "j.safetensors")) == truth
    frame = truth.to_frame()
    assert list(frame.columns) == ["token", "players", "order", "kind", "dividend", "example"]
    assert len(frame) == 127 and frame["dividend"].abs().is_monotonic_decreasing
    by_kind = frame.groupby("kind")["dividend"].sum()
    expected = {"image": truth.image_only, "text": truth.text_only, "joint": truth.joint}
    assert {kind: pytest.approx(float(one)) for kind, one in expected.items()} == by_kind.to_dict()
    printed = repr(truth)
    assert len(printed.splitlines()) < 6 and "image only + text only + joint = total" in printed
    assert "<table" in truth._repr_html_() and "logprob, in nats" in truth.note


def test_pairs_are_drawn(vlm):
    from lvlm_interp.report import figures

    found = li.interactions(vlm, tiny_inputs(vlm), {"one": [1], "two": [2]}, regions=1, unit="answer")
    ax = figures.joint_pairs(found)
    assert np.allclose(ax.images[0].get_array(), found.pairs[0].numpy())
    names = [f"{name}  {n}" for n, name in enumerate(found.players)]
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    with pytest.raises(InputError, match="above 0"):
        figures.joint_pairs(found, limit=-1.0)
