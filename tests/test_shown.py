"""Text of others steers no terminal and is no markup, wherever it is shown."""

import dataclasses
import io
import json
import math
import warnings

import pandas as pd
import pytest
from rich.console import Console

from lvlm_interp import errors, shown
from lvlm_interp.cli import terminal as cli_terminal
from lvlm_interp.report import terminal
from tests.kinds import kinds, one_of_each, with_each_text
from tests.made import made
from tests.pages import Page

STEERING = [
    *("\x1b[2J", "\x1b]8;;http://evil\x07", "\x9b31m", "\x9d8;;http://evil\x9c", "\r", "\x08", "\x00", "\x7f"),
    *("\u202e", "\u2066", "\u2028", "\ud800"),
]
SCRIPT = '<script>alert(1)</script>" onmouseover="alert(1)'


def steers(text):
    return [character for character in text if shown.STEERING.match(character)]


@pytest.mark.parametrize("text", STEERING, ids=ascii)
def test_what_steers_is_spelled_out(text):
    assert not steers(shown.printable(f"a{text}b")) and shown.printable("a\tb\nü日本\u200d") == "a\tb\nü日本\u200d"
    line = json.dumps({"a": text, "b": "ü"}, ensure_ascii=False)
    assert not steers(shown.printable_json(line)) and json.loads(shown.printable_json(line)) == {"a": text, "b": "ü"}


KINDS_OF_ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", KINDS_OF_ERRORS)
def test_errors_steer_nothing(kind):
    assert str(kind("no \x1b[2J")) == r"no \x1b[2J" and len(KINDS_OF_ERRORS) > 5


@pytest.fixture
def console():
    return Console(record=True, width=100, file=io.StringIO())


@pytest.mark.parametrize("text", [*STEERING[:-1], "[/red]", "[bold]", "[link=a]"], ids=ascii)
def test_tables_say_what_is_there(console, text):
    one = made(tokens=(f"x{text}y",), question=f"Q{text}", context=f"C{text}", answer=f"A{text}", words=(f"x{text}y",))
    frame = pd.DataFrame({"token": [text], text: [1.0], "n": [2]})
    console.print(terminal.heading(one), terminal.diagnosis_table(one), *terminal.frame_tables(frame, text, 100))
    printed = console.export_text()
    assert not steers(printed) and printed.count(shown.printable(text)) >= 5


@pytest.mark.parametrize("text", [*STEERING, "[/red]"], ids=ascii)
def test_commands_say_what_is_there(capsys, text):
    with cli_terminal.working(f"Opening {text!s}", verbose=False):
        pass
    cli_terminal.complain(text)
    cli_terminal.say(text)
    cli_terminal.print_json({"answer": text})
    cli_terminal.show(dataclasses.replace(made().credit, tokens=(text.replace("\ud800", "?"), ".")), False, text)
    out, err = capsys.readouterr()
    assert not steers(out) and not steers(err) and err.count(shown.printable(text)) >= 1


def test_our_own_warnings_are_a_line(capsys):
    """Those of the libraries below are silenced."""
    with cli_terminal.working("Opening", verbose=False):
        pass
    warnings.warn("theirs", UserWarning, stacklevel=1)
    warnings.warn("too long \x1b[2J", errors.LvlmInterpWarning, stacklevel=1)
    assert "note: too long \\x1b[2J\n" in (err := capsys.readouterr().err) and "theirs" not in err


NAMES = ["contrast", "--image", "a\x1b]8;;x\x07[/red].png", "--question", "?"], ["check", "\x1b[2J[/red]"]


@pytest.mark.parametrize("told", [*NAMES, ["check", "x/\x1b[2J"], ["contrast", "--table", "\x1b[2J.csv"]], ids=ascii)
def test_names_in_complaints_steer_nothing(run, told):
    status, out, err = run(*told)
    assert status == 1 and out == "" and not steers(err) and "x1b" in err


def test_sentences_steer_no_terminal():
    one = made()
    named = dataclasses.replace(one, words=("a\x1b[2Jb", *one.words[1:]))
    assert any("a\\x1b[2Jb" in text for text in named.sentences) and not any(map(steers, named.sentences))


USAGE = ["[/red]\x1b[2J"], ["contrast", "--[/red]\x1b[2J"], ["credit", "--value", "\x1b[/red]"]


@pytest.mark.parametrize("told", USAGE, ids=ascii)
def test_usage_steers_nothing(run, told):
    status, _, err = run(*told)
    assert status == 2 and "\x1b" not in err and "[/red]" in err


@pytest.mark.parametrize("width", [60, 80, 120, 240])
def test_no_word_is_cut(width):
    """Columns that do not fit stand in a table of their own, behind the first."""
    console = Console(record=True, width=width, file=io.StringIO())
    frame = made().contrast.to_frame().assign(place=["x 16–32, y 32–48"] * 3)
    console.print(*terminal.frame_tables(frame, "An answer of some words, longer than a line may be", width), sep="\n")
    printed = console.export_text()
    for word in [*frame.columns.drop("example"), *frame["token"], *frame["classes"], "longer"]:
        assert word in printed
    assert max(map(len, printed.splitlines())) <= width and printed.count("token") >= (1 if width < 240 else 0)


def test_only_numbers_that_may_be_below_zero_have_signs():
    console = Console(record=True, width=80, file=io.StringIO())
    frame = pd.DataFrame({"share": [0.25, math.nan, 0.0], "credit": [0.25, -0.5, 0.0]})
    console.print(*terminal.frame_tables(frame, "", 80))
    rows = [line.replace("│", " ").split() for line in console.export_text().splitlines() if "0" in line]
    assert rows == [["0.250", "+0.250"], ["nan", "−0.500"], ["0.000", "0.000"]]


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    return one_of_each()


def runs(html):
    """Whether a browser would run what was put into a page."""
    page = Page(html)
    scripts = page.of("script") != Page(html.replace(SCRIPT, "")).of("script")
    return scripts or any(name.startswith("on") for _, attributes in page.tags for name in attributes)


@pytest.mark.parametrize("name", sorted(kinds()))
def test_no_text_of_a_result_runs_in_a_notebook(results, name):
    tried = 0
    for other in with_each_text(results[name], SCRIPT):
        try:
            html = other._repr_html_()
        except (errors.LvlmInterpError, KeyError, TypeError, ValueError):
            continue  # a text that stands for something else, which the result then misses
        assert html is None or not runs(html)
        tried += 1
    assert tried


def test_a_page_that_runs_what_it_is_given_is_noticed():
    assert runs(f"<td>{SCRIPT}</td>") and runs(f'<td title="{SCRIPT}">') and not runs("<td>&lt;script&gt;</td>")
