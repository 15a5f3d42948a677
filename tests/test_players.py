"""Credit among any players: exact, by the axioms, and each player is hidden as one."""

import inspect
import itertools

import pandas as pd
import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.attribution import players as module
from lvlm_interp.attribution import players as players_module
from lvlm_interp.attribution.players import players_of
from lvlm_interp.attribution.shapley import shapley_weights
from lvlm_interp.errors import InputError, VisibilityError
from tests import saved
from tests.test_score import naive
from tests.tiny import tiny_inputs, tiny_llava

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "It is red. Or is it blue?"},
    {"role": "assistant", "content": "I see. It is red!"},
    {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (28, 28), "red")}]},
]


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def chat():
    return li.wrap(tiny_llava(), saved.processor("llava"))


@pytest.fixture(scope="module")
def talk(chat):
    return chat.prepare_chat([*CHAT[:3], {"role": "user", "content": [*CHAT[3]["content"], ASK]}], answer="red")


ASK = {"type": "text", "text": "what is it?"}


def probability(vlm, x, visible):
    """Log-probability of each answer token by one naive pass."""
    logprobs = naive(vlm, x, visible[None])[0].double().log_softmax(-1)
    return logprobs.gather(-1, x.answer_ids[:, None])[:, 0]


def by_orders(vlm, x, players):
    """Shapley's definition on the model itself: over all orders of entry, what each player adds."""
    always = ~torch.stack([player.positions for player in players]).any(0)
    gains = torch.zeros(len(x.answer_ids), len(players), dtype=torch.float64)
    orders = list(itertools.permutations(range(len(players))))
    for order in orders:
        seen = always.clone()
        before = probability(vlm, x, seen)
        for player in order:
            seen |= players[player].positions
            now = probability(vlm, x, seen)
            gains[:, player] += now - before
            before = now
    return gains / len(orders)


def words_of(x, first, *more):
    """Masks of single positions, by name."""
    return {f"at {p}": [p] for p in (first, *more)}


def test_shapley_values_are_those_of_all_orders(vlm):
    x = tiny_inputs(vlm, images=2)
    question = x.where("question").nonzero().flatten().tolist()
    asked = ("images", {"first": question[:1], "rest": question[1:]})
    split = li.credit(vlm, x, ("template", "system"), "logprob", players=asked)
    assert split.players == ("first", "rest", "context", "image 0", "image 1")
    expected = by_orders(vlm, x, players_of(x, asked, ("system",)))
    assert torch.allclose(split.credits, expected, atol=1e-4)
    assert not torch.allclose(split.credits[:, [1, 0, 2, 3, 4]], expected, atol=1e-2)
    assert torch.allclose(split.prior + split.credits.sum(1), split.total, atol=1e-6)


def test_parts_of_the_question_that_are_named_are_players(vlm):
    """A question that is split, or merged with something else, does not ask: prior and total stay what they are."""
    x = tiny_inputs(vlm)
    first = x.where("question").nonzero().flatten()[:1].tolist()
    together = li.credit(vlm, x, value="full", asking=False)
    mixed = [*first, *x.where("context").nonzero().flatten()[:1].tolist()]
    for players in ({"first": first}, {"mixed": mixed}, {"all": x.where("question")}):
        split = li.credit(vlm, x, value="full", players=players)
        assert not split.asking and split.provenance.parameters["asking"] is False
        assert torch.allclose(split.prior, together.prior, atol=1e-5)
    kept = li.credit(vlm, x, ("template", "first"), "full", players={"first": first})
    again = li.credit(vlm, x, value="full", players={"first": first}).keeping("first")
    assert torch.allclose(kept.full, again.full, atol=1e-5)
    assert not kept.asking
    with pytest.raises(VisibilityError, match="is a mask or positions; got the text 'question'"):
        inspect.unwrap(players_module._where)(x, "first", "question")
    with pytest.raises(InputError, match="asking is True or False, got 'no'"):
        inspect.unwrap(li.credit)(vlm, x, asking="no")


def test_hiding_one_image_is_one_masked_pass(vlm):
    x = tiny_inputs(vlm, images=2)
    split = li.credit(vlm, x, value="logprob", players="images")
    assert split.players == ("question", "context", "system", "image 0", "image 1")
    without = x.everything
    without[x.images[1].positions] = False
    number = 0b01111  # all but the last player
    assert torch.allclose(split.values[:, number], probability(vlm, x, without), atol=1e-5)
    other = x.everything
    other[x.images[0].positions] = False
    assert not torch.allclose(split.values[:, number], probability(vlm, x, other), atol=1e-3)


def test_a_split_role_has_what_its_parts_have(vlm):
    x = tiny_inputs(vlm, images=2)
    split = li.credit(vlm, x, players="images")
    assert torch.allclose(split.image, split.of("image 0") + split.of("image 1"))
    assert (split.of("image 0") - split.of("image 1")).abs().max() > 1e-2
    frame = split.group(pictures=("image",), text=("question", "context", "system"))
    assert list(frame.columns) == ["token", "prior", "pictures", "text", "total"]
    assert frame["pictures"].tolist() == pytest.approx(split.image.tolist())
    with pytest.raises(VisibilityError, match=r"\['image 0'\] would count twice"):
        split.group(a=("image",), b=("image 0",))
    kept = split.keeping("image 0")
    assert kept.players == ("question", "context", "system", "image 1")
    again = li.credit(vlm, x, ("template", "image 0"), players="images")
    assert again.kept == kept.kept and torch.allclose(kept.full, again.full, atol=1e-5)


# --- axioms -----------------------------------------------------------------------------------------


def test_a_player_that_nobody_can_read_gets_nothing(vlm):
    x = tiny_inputs(vlm)
    mask = torch.ones_like(x.input_ids)
    hidden = int(x.where("context").nonzero()[1])
    mask[0, hidden] = 0
    pixels = x.model_inputs["pixel_values"]
    unread = vlm.inputs(x.input_ids, x.answer_start, x.roles, attention_mask=mask, pixel_values=pixels)
    asked = {"nobody": [hidden]}
    assert li.credit(vlm, unread, value="full", players=asked).of("nobody").abs().max() < 1e-6
    assert li.credit(vlm, x, value="full", players=asked).of("nobody").abs().max() > 1e-3


def test_players_that_are_alike_get_the_same(vlm):
    """A model that cannot tell order cannot tell equal tokens apart; one token is another, as the control."""

    def found(ids):
        roles = ("template", "question", "question", "question", "template", "answer")
        x = vlm.inputs(torch.tensor([ids]), 5, roles, position_ids=torch.zeros(1, 6, dtype=torch.long))
        return li.credit(vlm, x, value="full", players=words_of(x, 1, 2, 3)).credits[0]

    same, other = found([1, 40, 40, 40, 50, 7]), found([1, 40, 40, 41, 50, 7])
    assert torch.allclose(same, same[:1].expand(3), atol=1e-4)
    assert torch.allclose(other[0], other[1], atol=1e-4) and (other[2] - other[0]).abs() > 1e-2


# --- turns and sentences ----------------------------------------------------------------------------


def test_turns_and_sentences_of_a_chat(chat, talk):
    """Every position that the user wrote is of one player; what is not split stays with its role."""
    turns, sentences = players_of(talk, "turns"), players_of(talk, "sentences", decode=chat.prompter.text)
    assert [(p.name, p.text) for p in turns][:3] == [
        ("question", "what is it?"),
        ("turn 1", "It is red. Or is it blue?"),
        ("turn 2", "I see. It is red!"),
    ]
    assert [p.name for p in turns][3:] == ["system", "image"]
    texts = ["It is red.", "Or is it blue?", "I see.", "It is red!"]
    assert [p.text for p in sentences if p.role == "context"] == texts
    for found in (turns, sentences):
        counted = torch.stack([p.positions for p in found]).sum(0)
        assert torch.equal(counted == 1, talk.where("question", "context", "system", "image")) and counted.max() == 1
    split = li.credit(chat, talk, value="full", players="sentences")
    assert split.players == ("question", *(f"sentence {n}" for n in range(4)), "system", "image")
    assert split.player_texts[1:5] == tuple(texts)
    whole = li.credit(chat, talk, value="full")
    assert torch.allclose(whole.total, split.total, atol=1e-5) and torch.allclose(whole.prior, split.prior, atol=1e-5)


def test_spans_follow_the_example(chat, talk):
    """What was written is known of the prompt, whatever answer follows it."""
    assert [(piece.role, piece.turn) for piece in talk.written] == [
        ("system", 0),
        ("context", 1),
        ("context", 2),
        ("question", 3),
    ]
    assert chat.answered(talk, "blue").written == talk.written
    for piece in talk.written:
        assert set(talk.roles[piece.start : piece.stop]) == {piece.role}


def test_sentences_of_tensors_are_runs_of_context(vlm):
    x = tiny_inputs(vlm)  # tokens without a tokenizer are no sentences: the run is one
    found = [player for player in players_of(x, "sentences") if player.role == "context"]
    assert [player.name for player in found] == ["sentence 0"]
    assert torch.equal(found[0].positions, x.where("context"))
    with pytest.raises(InputError, match="which turn is which is not known"):
        players_of(x, "turns")


# --- what cannot be ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("players", "keep", "error", "message"),
    [
        ("words", (), InputError, "players are 'roles', 'images', 'turns', 'sentences'"),
        ({"a": [3, 4], "b": [4, 5]}, (), VisibilityError, r"'a' and 'b' overlap at 1 positions, such as \[4\]"),
        (("images", {"a": [3]}), (), VisibilityError, "'image 0' and 'a' overlap"),
        ({"a": []}, (), VisibilityError, "'a' covers no position"),
        ({"a": torch.zeros(17, dtype=torch.bool)}, (), VisibilityError, "'a' covers no position"),
        ({"a": torch.ones(3, dtype=torch.bool)}, (), VisibilityError, r"the mask of 'a' is \(3,\)"),
        ({"a": [99]}, (), VisibilityError, "'a' has no position 99"),
        ({"a": [-1]}, (), VisibilityError, "'a' has no position -1"),
        ({"a": [0, 1]}, (), VisibilityError, r"covers 1 positions that are always visible.*0 \(template"),
        ({"a": [16]}, (), VisibilityError, r"16 \(answer"),
        ({"image": [3]}, (), VisibilityError, "no player can be named 'image'"),
        ({"prior": [3]}, (), VisibilityError, "no player can be named 'prior'"),
        ({"a": [3]}, ("image",), VisibilityError, r"'a' stands in \['image'\], which keep= leaves always visible"),
        ("roles", ("images",), VisibilityError, "no role 'images'"),
        (("images", "images"), (), VisibilityError, "two players are named 'image 0'"),
    ],
)
def test_masks_that_cannot_be(vlm, monkeypatch, players, keep, error, message):
    """Refused before anything is run."""
    x = tiny_inputs(vlm)
    assert x.length == 17
    monkeypatch.setattr(type(vlm.model), "forward", None)
    with pytest.raises(error, match=message):
        li.credit(vlm, x, ("template", *keep), players=players)


def test_what_is_kept_and_is_no_player_is_told_from_those_that_are(chat, talk):
    with pytest.raises(VisibilityError, match=r"no player 'turn 9'; there are .*'turn 1'"):
        li.credit(chat, talk, ("template", "turn 9"), players="turns")
    with pytest.raises(VisibilityError, match="no role 'banana'"):
        li.credit(chat, talk, ("template", "banana"), players="turns")


def test_nothing_to_split(vlm):
    x = vlm.inputs(torch.tensor([[1, 20, 21, 50, 7]]), 4)
    with pytest.raises(InputError, match="no context to split into sentences: the example has template, question"):
        li.credit(vlm, x, players="sentences")
    with pytest.raises(InputError, match="no image"):
        li.credit(vlm, x, players="images")


def test_more_players_than_can_be_split_exactly(vlm):
    x = tiny_inputs(vlm, images=2)
    positions = x.where("question", "context", "system", "image").nonzero().flatten().tolist()
    with pytest.raises(InputError, match=r"16 players have 2\^16 coalitions; up to 12.*merge some.*at 3"):
        li.credit(vlm, x, players=words_of(x, *positions))
    many = words_of(x, *positions[:4]) | {"rest": positions[4:]}
    assert len(li.credit(vlm, x, players=many).players) == 5
    assert len(li.credit(vlm, x, ("template", "at 1", "at 2"), players=many).players) == 3


def test_twelve_players(vlm, tmp_path, monkeypatch):
    """4096 coalitions: exact, closing, its interactions in order, and back from a file."""
    x = tiny_inputs(vlm, answer=(7,), images=2)
    positions = x.where("question", "context", "system", "image").nonzero().flatten().tolist()
    asked = words_of(x, *positions[:11]) | {"rest": positions[11:]}
    split = li.credit(vlm, x, value="logprob", players=asked)
    assert split.values.shape == (1, 4096)
    for number in (0, 1, 1234, 4095):
        seen = x.visible()
        for i, player in enumerate(players_of(x, asked)):
            seen |= player.positions & bool(number >> i & 1)
        assert torch.allclose(split.values[:, number], probability(vlm, x, seen), atol=1e-4)
    found = split.interactions
    assert len(found) == 4096 - 13 and len(found.up_to(2)) == 66
    sizes = [float(values.abs().max()) for values in found.up_to(3).values()]
    assert sizes == sorted(sizes, reverse=True)
    frame = found.up_to(2).to_frame(split.tokens, largest=5)
    assert len(frame) == 5 and list(frame.columns) == ["players", "order", "0 <7>"]
    with pytest.raises(InputError, match="two or more players"):
        found.up_to(1)
    read = li.CreditSplit.load(split.save(tmp_path / "split.safetensors"))
    pd.testing.assert_frame_equal(read.to_frame(), split.to_frame())
    assert read.player_texts == split.player_texts and read.players == split.players


def test_players_are_told_in_the_provenance(vlm):
    x = tiny_inputs(vlm)
    assert "players" not in li.credit(vlm, x).provenance.parameters
    told = li.credit(vlm, x, players=("images", {"a": [1]})).provenance.parameters["players"]
    assert told == ["images", {"a": "1"}]
    told = [li.credit(vlm, x, players={"a": some}).provenance for some in ([3, 4, 6], [3, 4, 5])]
    assert told[0].parameters["players"] == [{"a": "3-4, 6"}] and told[0] != told[1]


def test_weights_of_twelve_players_share_everything():
    values = torch.randn(4096, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    credits = shapley_weights(12) @ values
    assert torch.allclose(credits.sum(), values[-1] - values[0])
    assert module.MOST == 12


@pytest.mark.parametrize("mask", [[1.5], None, 5, [None], [True, 1.5], object(), torch.tensor([11.7]), ["11"]])
def test_what_is_no_mask_is_refused(mask):
    with pytest.raises(VisibilityError, match="the player 'a' is a mask or positions"):
        module._numbers("a", mask)


def test_a_mask_of_0_and_1_is_no_list_of_positions():
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    with pytest.raises(VisibilityError, match="a position twice; a mask is of True and False"):
        li.credit(vlm, x, players={"a": x.where("question").long()})


def test_masks_and_positions_may_be_lists_and_arrays():
    mask = torch.tensor([False, False, True, True])
    for given in (mask, mask.numpy(), mask.tolist(), tuple(mask.tolist())):
        assert torch.equal(module._numbers("a", given), mask)
    for given in ([2, 3], (2, 3), range(2, 4), torch.tensor([2, 3]).numpy(), {2, 3}):
        assert module._numbers("a", given).tolist() == [2, 3]
