"""Conversations as tables and trainers keep them, and texts that are hardly one."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.errors import InputError
from tests.saved import processor
from tests.tiny import tiny_llava

ASKED = "What color is it?"
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
TEXT, SHOWN = {"type": "text", "text": ASKED}, {"type": "image", "image": PICTURE}


@pytest.mark.parametrize("kept", [pd.Series, functools.partial(np.array, dtype=object)])
def test_contents_may_be_what_a_table_holds(kept):
    vlm = li.wrap(tiny_llava(), processor("llava"))
    x = vlm.prepare_chat([{"role": "user", "content": kept([SHOWN, {**TEXT, "image": None}])}])
    assert torch.equal(x.input_ids, vlm.prepare(ASKED, PICTURE).input_ids)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"content": np.zeros((4, 4, 3))}, "a text or a list of parts, got ndarray"),
        ({"content": np.array([])}, "got ndarray"),
        ({"content": pd.NA}, "got NAType"),
        ({"content": b"hello"}, "got bytes"),
        ({"content": ASKED, "images": [PICTURE]}, "message 0 has 'images' beside its content"),
        ({"content": ASKED, "image": "a.png"}, "message 0 has 'image' beside its content"),
        ({"content": [{**TEXT, "image_url": "a.png"}]}, "is a text, and has 'image_url' as well"),
    ],
)
def test_what_would_not_be_shown_is_refused(message, told):
    vlm = li.wrap(tiny_llava(), processor("llava"))
    with pytest.raises(InputError, match=told):
        vlm.prepare_chat([{"role": "user", **message}])
    assert vlm.prepare_chat([{"role": "user", "content": ASKED, "images": [], "image": None}]).question == ASKED


@pytest.mark.parametrize("blank", ["\n", "\n\n", " \n"])
def test_an_end_of_a_line_is_a_text(blank):
    vlm = li.wrap(tiny_llava(), processor("llava"))
    x = vlm.prepare(ASKED, PICTURE, context=blank)
    parts = [SHOWN, {"type": "text", "text": blank}, TEXT]
    own = vlm.processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    assert sorted(own["input_ids"][0].tolist()) == sorted(x.input_ids[0].tolist()) and "context" in x.roles
    assert "".join(t for t, role in zip(x.tokens, x.roles, strict=True) if role == "question").strip() == ASKED
