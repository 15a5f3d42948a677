"""An answer is tokenised as the model would write it: blanks around it, special tokens in it, words as targets."""

import copy
import inspect
import pickle
import warnings

import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.errors import InputError
from lvlm_interp.given import explained
from lvlm_interp.inputs.prompt import Prompter
from tests import saved
from tests.test_words import Processor
from tests.tokenizers import KINDS, chat, sentencepiece

PICTURE = Image.new("RGB", (28, 28), "red")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [" a cat", "a cat ", "a cat\n", "\n a cat"])
def test_blanks_around_an_answer_are_left_out(kind, given, monkeypatch):
    vlm = chat(kind, monkeypatch)
    x = vlm.prepare("what?", PICTURE, answer="a cat")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        others = [vlm.prepare("what?", PICTURE, answer=given), vlm.answered(x, given)]
    for other in others:
        assert other.answer_ids.tolist() == x.answer_ids.tolist() and other.answer == "a cat"
    same = "".join(x.answer_tokens) == given  # what Llama's tokenizers write anyway
    told = [str(one.message) for one in heard if "is scored as" in str(one.message)]
    assert len(told) == (0 if same else 2) and all(repr(given) in text for text in told)


def test_an_answer_with_its_tokens_keeps_them(monkeypatch):
    vlm = chat("bytes", monkeypatch)
    ids = vlm.prompter.answer_ids((), " a cat ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = vlm.answered(vlm.prepare("what?", PICTURE), li.Answer(" a cat ", ids))
    assert x.answer_ids.tolist() == ids and len(ids) == 7


def test_an_answer_with_a_token_of_pictures_is_refused(monkeypatch):
    """A model may write one; called with it, it would look for a picture that is not there."""
    vlm = chat("bytes", monkeypatch)
    ids = vlm.prompter.answer_ids((), "cat")
    with pytest.raises(InputError, match="for which the model looks for a picture"):
        vlm.answered(vlm.prepare("what?", PICTURE), li.Answer("cat", [*ids, vlm.image_token_id]))


def test_an_answer_follows_the_template_wherever_it_is_given(monkeypatch):
    """A template that puts a blank before replies does so for `answered` as for `prepare`: it is the prompt's."""
    monkeypatch.setattr(saved, "TEMPLATE", saved.TEMPLATE.replace(": {% for", ":{% if 1 %} {% endif %}{% for"))
    monkeypatch.setattr(saved, "TEMPLATE", saved.TEMPLATE.replace("assistant: ", "assistant:"))
    vlm = chat("byte-level", monkeypatch)
    x = vlm.prepare("what?", PICTURE, answer="cat")
    assert "".join(x.answer_tokens) == "cat" and x.tokens[x.answer_start - 1] == " "
    assert vlm.answered(vlm.prepare("what?", PICTURE), "cat").input_ids.tolist() == x.input_ids.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_of_an_answer_are_tokens(kind, monkeypatch):
    vlm = chat(kind, monkeypatch)
    special = vlm.prompter.tokenizer.convert_tokens_to_ids("<loc0012>")
    x = vlm.prepare("where?", PICTURE, answer="<loc0012> cat")
    assert x.answer_ids[0] == special and len(x.answer_ids) < 8 and x.answer_tokens[0] == "<loc0012>"
    assert vlm.answered(x, "<loc0012> cat").answer_ids.tolist() == x.answer_ids.tolist()
    split = li.credit(vlm, x, unit="word", against=["<loc0034>"])
    assert split.tokens == ("<loc0012>", "cat") and split.alternatives[0] == ("<loc0034>",)
    # what a user wrote stays text, and so does what stands for a picture, whoever wrote it
    asked = vlm.prepare("where is <loc0012>?", PICTURE, answer="cat")
    assert special not in asked.input_ids[0].tolist()
    shown = vlm.prepare("where?", PICTURE, answer="<image> cat")
    assert vlm.image_token_id not in shown.answer_ids.tolist() and "".join(shown.answer_tokens).strip() == "<image> cat"


@pytest.mark.parametrize(("word", "letters"), [("c", ["▁c"]), (" c", ["▁c"]), (" 猫", ["猫"]), ("猫", ["猫"])])
def test_the_token_of_a_word_has_letters(word, letters, monkeypatch):
    """A blank that is a token of its own stands for no word: every other word may follow it."""
    tokenizer = sentencepiece("猫")
    monkeypatch.setitem(KINDS, "own", lambda: tokenizer)
    made = Prompter(Processor(tokenizer), "")
    assert tokenizer.convert_ids_to_tokens(made.lettered_ids(word)) == letters
    assert tokenizer.convert_ids_to_tokens(made.answer_ids((), " c")) == ["▁", "▁c"]  # the mutant that must not win
    vlm = chat("own", monkeypatch)
    x = vlm.prepare("what?", PICTURE, answer="a cat")
    token = tokenizer.convert_tokens_to_ids(letters[0])
    followed, single = (li.lens(vlm, x, target=one).target_logprob for one in (word, token))
    assert torch.equal(followed, single)
    assert li.direct(vlm, x, target=word).target == vlm.token_strings([token]) * len(x.answer_ids)
    blank = li.lens(vlm, x, target=tokenizer.convert_tokens_to_ids("▁")).target_logprob
    assert (blank[0] > followed[0]).any()  # the control: the blank would be taken where it is likelier


@pytest.mark.parametrize("given", [(None, [5]), ("x", [5.7]), ("x", ["5"]), ("x", 5)])
def test_an_answer_is_a_text_and_its_tokens(given):
    with pytest.raises(InputError, match=r"whole numbers; got|Answer\(ids=…\) takes"):
        explained(inspect.unwrap(li.Answer.__new__))(li.Answer, *given)


@pytest.mark.parametrize("ids", [[5, 6], (5, 6), torch.tensor([5, 6]), torch.tensor([5, 6]).numpy(), iter([5, 6])])
def test_tokens_of_an_answer_come_as_they_do(ids):
    assert li.Answer("x", ids).ids == (5, 6) and type(li.Answer("x", torch.tensor([5])).ids[0]) is int


def test_answers_are_copied_with_their_ids():
    answer = li.Answer("Red.", (3, 4), finished=False)
    for other in (copy.copy(answer), copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):
        assert (other, other.ids, other.finished) == ("Red.", (3, 4), False)
