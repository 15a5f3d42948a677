"""What is printed of results and lists: short, in lines that fit, and nothing that steers a terminal."""

import dataclasses
import subprocess
import sys

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.counterfactuals.contrast import Contrasts
from lvlm_interp.model.listing import Sites, grouped
from tests.made import about, made
from tests.test_report_looks import LONG, a_lens, a_map, heads
from tests.tiny import tiny_inputs, tiny_llava


def several():
    each = {name: made().contrast for name in ("hidden", "blank")}
    return Contrasts(each, provenance=about("contrast"))


@pytest.mark.parametrize(
    "result",
    [made(), made(LONG), made().credit, made().contrast, several(), a_map(), a_lens(30, 576), heads()],
    ids=lambda result: type(result).__name__,
)
def test_printed_results_are_short(result):
    shown = str(result)
    assert shown == repr(result) and shown.startswith(type(result).__name__)
    assert len(shown) < 4000 and "tensor(" not in shown and max(map(len, shown.splitlines())) <= 240


def test_a_printed_diagnosis_ranks_its_words():
    one = made(LONG)
    lines = str(one).splitlines()
    assert one.ranked[0].text in lines[2] and lines[-1] == "… and 69 other words; to_frame() has all"


def test_nothing_printed_steers_a_terminal():
    assert "\x1b" not in str(made(("\x1b[2J",), question="\x1b[31m"))


def test_prints_say_what_is_measured_and_against_what():
    one = made()
    assert "odds, in nats; prior + credits = total; rather than" in str(one.credit) and "Red" in str(one.credit)
    assert "rather than" not in str(one.credit.with_value("full")) and "odds, in nats" in one.credit._repr_html_()
    assert "always visible: template, question" in str(dataclasses.replace(one.credit, kept=("template", "question")))
    assert "image: hidden; with_logit, without_logit and delta in logits" in str(one.contrast)
    less = dataclasses.replace(heads(), against=" Blue").note
    assert less == "logits, less those of ' Blue'; the parts of a row add up to its logit"
    assert "lost, in nats" in str(a_map())


PROMPT, ANSWER = ("template",) * 4 + ("image",) * 90, ("answer",)


@pytest.mark.parametrize(
    ("roles", "told"),
    [
        (PROMPT, "positions [88, 89, 90, 91, 92, 93], the last"),
        (PROMPT + ANSWER * 2, "positions [90, 91, 92, 93, 94, 95], where the answer is read from and stands"),
        (PROMPT + ANSWER * 9, "positions [93, 94, 95, 96, 97, 98], where the answer is read from and stands"),
        (ANSWER * 7, "positions [0, 1, 2, 3, 4, 5], where the answer is read from and stands"),
    ],
)
def test_a_printed_lens_shows_where_the_answer_is_told(roles, told):
    """Not the first positions, which are those of a template."""
    one = a_lens(3, len(roles))
    one = dataclasses.replace(one, roles=roles, tokens=tuple(f"t{i:02}" for i in range(len(roles))))
    lines = str(one).splitlines()
    shown = [int(token[1:]) for token in lines[2].split()]
    assert lines[1] == f"shown: {told}" and str(shown) in told


def test_a_printed_lens_of_few_positions_shows_all():
    assert "shown" not in str(a_lens(3, 6)) and len(str(a_lens(3, 6)).splitlines()[1].split()) == 6


def test_contrasts_print_their_table():
    assert "hidden" in str(several()) and "blank" in str(several()) and "Pur" in str(several())


def test_examples_and_batches_print_what_they_are_of():
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    shown = repr(dataclasses.replace(x, texts={"question": "What\x1b[2J?", "answer": "Red."}))
    assert f"{x.length} positions" in shown and f"{x.roles.count('image')} image" in shown and "; image: " in shown
    assert "'Red.'" in shown and "\x1b" not in shown and "tensor(" not in shown and len(shown) < 400
    assert repr(vlm.batch([x, x])).count(repr(x)) == 2


def test_names_of_blocks_are_told_once():
    names = [f"blocks.{i}.{kind}" for i in (0, 1, 2, 5) for kind in ("hook_resid_pre", "attn.hook_q")]
    assert grouped([*names, "ln_final.hook_normalized"]) == [
        "blocks.{0–2, 5}.hook_resid_pre",
        "blocks.{0–2, 5}.attn.hook_q",
        "ln_final.hook_normalized",
    ]
    shown = repr(Sites({name: torch.zeros(9, 9) for name in names}))
    assert shown.startswith("8 sites") and "tensor" not in shown and len(shown.splitlines()) == 3


def test_a_frame_takes_columns_of_the_users_own():
    """`question` and `image` are what a table of examples calls its own; joined, neither writes over the other."""
    for result in (made(), made().credit):
        frame = result.to_frame()
        theirs = frame.assign(question="What?", image="a.png", context="", system="")
        assert theirs[frame.columns].equals(frame) and "credit[image]" in frame and "example" in frame


def test_tab_completes_the_rooms():
    assert {"counterfactuals", "report", "tables", "reference"} <= set(dir(li))
    assert {"figures", "export"} <= set(dir(li.report)) and "blank" in dir(li.counterfactuals)
    assert "read_examples" in dir(li.tables)
    code = (
        "import lvlm_interp as li; dir(li); import sys; print('torch' in sys.modules); print(li.report.figures.heatmap)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False\n<function heatmap")
