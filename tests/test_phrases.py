"""Phrases of the prompt as players: where they stand is told by their text, as whole words and whole tokens."""

import dataclasses

import pytest
from PIL import Image

import lvlm_interp as li
from lvlm_interp.attribution.players import named_players
from lvlm_interp.errors import InputError
from tests import saved
from tests.tiny import tiny_inputs, tiny_llava


@pytest.fixture(scope="module")
def chat():
    return li.wrap(tiny_llava(), saved.processor("llava"))


@pytest.fixture(scope="module")
def talk(chat):
    picture = Image.new("RGB", (28, 28), "red")
    return chat.prepare("is it a cat with it?", picture, context="It was red.", answer="a cat")


def test_phrases_are_where_they_stand(chat, talk):
    found = named_players(talk, ("a cat", {"is": "is", "said": "It was red"}), chat.decode)
    assert [(one.name, one.role, one.text) for one in found] == [
        ("a cat", "question", "a cat"),
        ("is", "question", "is"),
        ("said", "context", "It was red"),
    ]
    assert all(talk.tokens[p] in "a cat" for p in found[0].positions.nonzero().flatten().tolist())
    effects = li.interactions(chat, talk, ("a cat", "sentences"), unit="answer")
    assert effects.players[4:] == ("a cat", "sentence 0") and effects.player_texts[4:] == ("a cat", "It was red.")
    assert effects.provenance.parameters["players"]["a cat"]
    named = named_players(talk, "roles")
    assert [one.name for one in named] == ["question", "context"]


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        ("it", r"'it'.*stands there 2 times.*by role: .*question 'is it a cat with it\?'"),
        ("wit", "stands nowhere there as whole words"),
        ("banana", "stands nowhere there.*context 'It was red.'"),
        ("", "stands nowhere"),
        ("system", "no system to be a player: the example has"),
    ],
)
def test_phrases_that_are_not_there(chat, talk, phrase, message):
    with pytest.raises(InputError, match=message):
        li.interactions(chat, talk, [phrase])


def test_a_phrase_is_of_whole_tokens():
    """Tokens of several letters: half of one is nobody's place."""
    vlm = li.wrap(tiny_llava())
    x = dataclasses.replace(tiny_inputs(vlm), tokens=(*[""] * 10, "the", " red-hot", " iron", *[""] * 4))
    assert x.roles[10:13] == ("question",) * 3
    (found,) = named_players(x, "red-hot iron")
    assert found.positions.nonzero().flatten().tolist() == [11, 12]
    with pytest.raises(InputError, match="stands nowhere there as whole words and tokens"):
        named_players(x, "hot iron")
    with pytest.raises(InputError, match="is to be one place"):
        named_players(dataclasses.replace(x, tokens=()), "iron")


def test_several_tokens_of_one_character_are_all_of_its_phrase():
    """Bytes of a character are in two tokens, which read as nothing by themselves; decoded together they are one."""
    vlm = li.wrap(tiny_llava())
    x = dataclasses.replace(tiny_inputs(vlm), tokens=(*[""] * 10, "\ufffd", "\ufffd", " x", *[""] * 4))
    texts = {(40, 41): "é", (40,): "\ufffd", (40, 41, 42): "é x"}
    (found,) = named_players(x, "é", lambda ids: texts.get(tuple(ids), ""))
    assert found.positions.nonzero().flatten().tolist() == [10, 11]
