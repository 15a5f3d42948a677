"""Standard streams that a shell closed, and figures that cannot be written: found at the beginning, if at all."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import backend_bases
from PIL import Image

import lvlm_interp as li
from lvlm_interp import cli
from lvlm_interp.errors import OutputError
from lvlm_interp.report import export
from tests.test_cli import one_line

ASK = ["--question", "What color is the banana?"]
COMMAND = f"exec {sys.executable} -m lvlm_interp"
# A command that fails as any does, but at once.
FAILING = (
    "-c 'from lvlm_interp import cli; from lvlm_interp.errors import InputError\n"
    'def command(): raise InputError("no table")\n'
    "cli.app = command; cli.main()'"
)


def closed(arguments, streams):
    """A command as a shell runs it; its status, and what came out of what is open."""
    command = f"exec {sys.executable} {arguments}" if arguments == FAILING else f"{COMMAND} {arguments}"
    told = ["sh", "-c", f"{command} {streams}"]
    done = subprocess.run(told, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("arguments", "status"), [("--version", 0), ("--help", 0), (FAILING, 1)])
def test_streams_that_are_closed(streams, arguments, status):
    found, out, err = closed(arguments, streams)
    assert found == status and "Traceback" not in out + err
    assert (not err or one_line(err)) and ("2>&-" in streams or bool(err) == bool(status))


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_number_of_a_stream(tmp_path, streams):
    """Libraries below write to numbers: what they say must not stand in a result."""
    code = (
        "import os, sys; from lvlm_interp import cli; cli._open_streams()\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    [os.write(number, b'noise') for number in (1, 2)]\n"
        "    print('out'); print('err', file=sys.stderr); file.write('result')"
    )
    told = ["sh", "-c", f'exec {sys.executable} -c "$1" "$2" {streams}', "sh", code, str(tmp_path / "file")]
    done = subprocess.run(told, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "file").read_text() == "result"


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")


@FULL
@pytest.mark.parametrize(("arguments", "status"), [("--version", 0), ("--nope", 2), (FAILING, 1)])
def test_a_log_that_is_full_changes_no_status(arguments, status):
    found, out, _ = closed(arguments, "2>/dev/full")
    assert found == status and bool(out) == (not status)


@FULL
def test_a_log_that_is_full_costs_no_result(tmp_path):
    """Whatever is said meanwhile: notes, warnings, bars of progress, what libraries log."""
    code = (
        "import logging, sys, warnings; from tqdm import tqdm\n"
        "from lvlm_interp import cli; from lvlm_interp.cli.terminal import complain, working\n"
        "def command():\n"
        "    with working('it', False): complain('note')\n"
        "    logging.warning('said'); warnings.warn('told'); [*tqdm(range(3))]; print('x' * 10_000, file=sys.stderr)\n"
        "    open(sys.argv[1], 'w').write('result')\n"
        "cli.app = command; cli.main()"
    )
    told = ["sh", "-c", f'exec {sys.executable} -c "$1" "$2" 2>/dev/full', "sh", code, str(tmp_path / "file")]
    assert subprocess.run(told).returncode == 0 and (tmp_path / "file").read_text() == "result"


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (64, 64), "purple").save(tmp_path / "banana.png")
    return tmp_path / "banana.png"


COMMANDS = {
    "contrast": [],
    "credit": [],
    "direct": [],
    "lens": ["--json"],
    "heatmap": ["--out", "{}/a.svg"],
    "diagnose": ["--out", "{}/out"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_work_without_streams(reference, monkeypatch, tmp_path, picture, command):
    monkeypatch.setitem(vars(li), "load", lambda name, **options: reference)
    told = [option.format(tmp_path) for option in COMMANDS[command]]
    argv = ["lvlm-interp", command, "--image", str(picture), *ASK, "--answer", "Purple", *told]
    monkeypatch.setattr(sys, "argv", argv)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and (command not in ("heatmap", "diagnose") or len([*tmp_path.iterdir()]) == 2)


# --- kinds of figures -------------------------------------------------------------------------------------------------


class Broken(backend_bases.FigureCanvasBase):
    """Of a backend that needs a program which is not there."""

    def print_broken(self, *_, **__):
        raise RuntimeError("'elatex' not found\non this machine")


@pytest.fixture
def broken(monkeypatch):
    kinds = {**backend_bases.FigureCanvasBase.filetypes, "broken": "none"}
    monkeypatch.setattr(backend_bases.FigureCanvasBase, "filetypes", kinds)
    for name, value in (("_default_filetypes", "none"), ("_default_backends", Broken)):
        monkeypatch.setitem(getattr(backend_bases, name), "broken", value)


@pytest.mark.usefixtures("broken")
def test_what_cannot_be_written_is_refused_before_the_model_is_opened(run, picture, tmp_path, monkeypatch):
    monkeypatch.setitem(vars(li), "load", lambda name, **options: pytest.fail("the model was opened"))
    status, out, err = run("heatmap", "--image", picture, *ASK, "--out", tmp_path / "a.broken")
    assert (status, out) == (1, "") and one_line(err), err
    assert ".broken cannot be written here ('elatex' not found)" in err and not (tmp_path / "a.broken").exists()


def test_a_missing_tex_is_found_first(tmp_path, monkeypatch):
    monkeypatch.setattr(export.shutil, "which", lambda name: None)
    with pytest.raises(OutputError, match="give it one of") as found:
        export.figure_kind(tmp_path / "a.pgf")
    assert ".pgf" not in str(found.value).partition("one of")[2]
    monkeypatch.setenv("PATH", "")
    with mpl.rc_context({"text.usetex": True}), pytest.raises(OutputError, match="svg cannot be written here"):
        export.figure_kind(tmp_path / "a.svg")


@pytest.mark.parametrize("kind", ["png", "pdf", "svg", "jpg", "tif", "webp"])
def test_all_others_are_written(kind):
    """The control."""
    assert export.figure_kind(f"a.{kind}") == kind


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_a_minus_is_not_lost_where_an_output_lacks_it(encoding):
    code = "from lvlm_interp import cli; cli.commands.check.app; print('−0.3 … 猫')"
    shown = "import io, sys; sys.stdout.reconfigure(errors=cli.NEAREST);"
    code = code.replace("print(", f"{shown} print(")
    told = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    out = subprocess.run(told, capture_output=True, env=env, check=True).stdout.decode(encoding)
    assert out.startswith("-0.3 ") and out.rstrip().endswith("?")
