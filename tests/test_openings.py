"""What a template writes before a reply stands before every answer as the template itself writes it."""

import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.inputs.reply import Opening
from tests import tokenizers

PICTURE = Image.new("RGB", (28, 28), "purple")
ASKED = "what color is it?"
WRITTEN = (
    "{% for m in messages %}{% set c %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endset %}"
    "{% if m['role'] == 'assistant' %}REPLY</s>{% else %}{{ m['role'] }}: {{ c }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}GENERATED{% endif %}"
)
TEMPLATES = {  # what a reply is, and what generation begins with
    "a blank behind thoughts": ("assistant:(t)(/t) {{ c }}", "assistant:"),
    "a blank behind a line": ("assistant:\n(t) {{ c }}", "assistant:\n"),
    "a blank at the prompt's end": ("assistant: (t)\n{{ c }}", "assistant: "),
    "nothing": ("assistant:{{ c }}", "assistant:"),
    "the question again": ("assistant:({{ messages[-2]['content'][-1]['text'] }}) {{ c }}", "assistant:"),
}


def asked(kind, template, monkeypatch):
    vlm = tokenizers.chat(kind, monkeypatch)
    reply, generated = TEMPLATES[template]
    vlm.processor.chat_template = WRITTEN.replace("REPLY", reply).replace("GENERATED", generated)
    return vlm


def written(vlm, answer):
    """The ids of the template's own rendering."""
    turns = [
        {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": ASKED}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    whole = vlm.processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
    return whole["input_ids"][0].tolist()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["few merges", "byte fallback"])
def test_every_answer_stands_where_the_template_puts_it(kind, template, monkeypatch):
    vlm = asked(kind, template, monkeypatch)
    bare = vlm.prepare(ASKED, PICTURE)
    for before, answer in (("X", "purple"), ("purple", "X"), ("X", "it is purple")):
        x = vlm.prepare(ASKED, PICTURE, answer=answer)
        for y in (x, vlm.answered(bare, answer), vlm.answered(vlm.answered(bare, before), answer)):
            assert y.input_ids[0].tolist() == written(vlm, answer)[: y.length]
            assert "".join(y.answer_tokens).strip() == answer and "question" not in y.roles[y.answer_start - 1 :]
            assert len(y.roles) == len(y.tokens) == y.length == y.model_inputs["attention_mask"].shape[1]


def test_an_opening_that_is_left_out_is_noticed(monkeypatch):
    """What the promise is worth: without the opening, other ids, and another number."""
    vlm = asked("few merges", "a blank behind thoughts", monkeypatch)
    bare, x = vlm.prepare(ASKED, PICTURE), vlm.prepare(ASKED, PICTURE, answer="purple")
    lost = bare.with_answer(x.answer_ids.tolist(), x.answer_tokens, "purple")
    assert lost.input_ids[0].tolist() != written(vlm, "purple")[: lost.length]
    assert abs(float(li.score(vlm, x).logprob.sum() - li.score(vlm, lost).logprob.sum())) > 1e-3


def test_foils_stand_where_the_template_would_put_them(monkeypatch):
    """Behind the opening that the answer has, in the tokens that the template would give the foil."""
    vlm = asked("few merges", "a blank behind thoughts", monkeypatch)
    for answer, foil in (("purple", "X"), ("purple", "yellow")):
        x = vlm.prepare(ASKED, PICTURE, answer=answer)
        found = li.credit(vlm, x, unit="word", against=foil)
        ids = written(vlm, foil)[x.answer_start : -1]  # without the end of the turn
        other = x.with_answer(ids, vlm.token_strings(ids), foil)
        told = float((li.score(vlm, x).logprob.sum() - li.score(vlm, other).logprob.sum()).double())
        assert float(found.total[0]) == pytest.approx(told, abs=1e-3)


def test_between_a_prompt_and_a_reply():
    assert Opening.between([1, 2, 3], [1, 2, 3, 4, 5], 4) == Opening((4,), ())
    assert Opening.between([1, 2, 3], [1, 2, 7, 4, 5], 4) == Opening((7, 4), (3,))
    assert not Opening.between([1, 2], [1, 2, 5], 2) and Opening((4, 5)).without(1) == Opening((4,))


def test_an_opening_is_put_back_before_another(monkeypatch):
    vlm = asked("byte fallback", "a blank at the prompt's end", monkeypatch)
    bare = vlm.prepare(ASKED, PICTURE)
    again = vlm.answered(bare, "purple").with_opening(Opening(), vlm.token_strings)
    assert torch.equal(again.input_ids, bare.input_ids) and again.tokens == bare.tokens
