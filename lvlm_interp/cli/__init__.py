"""The command line. Each command is a file in `commands`, found by itself; they share `options` and `terminal`.

Heavy imports stand inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import io
import os
import pkgutil
import signal
import sys
import threading
from typing import Annotated, Any, NoReturn

import typer
import typer.core

import lvlm_interp as li
from lvlm_interp.cli import commands
from lvlm_interp.cli.terminal import complain
from lvlm_interp.errors import LvlmInterpError

NEAREST = "lvlm_interp.nearest"
NEAR = str.maketrans({"−": "-", "–": "-", "—": "-", "…": "...", "→": "->", "×": "x", "⏎": "\\n", "Δ": "D", "·": "."})
INTERRUPTED = 130  # what shells report after Ctrl-C
ENDED = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Once(typer.core.TyperCommand):
    """A command that refuses an option which is given twice, where one would be lost."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=[*args])
        for one in given:
            if given.count(one) > 1 and not getattr(one, "multiple", True) and not getattr(one, "is_flag", True):
                told = f"it is given {given.count(one)} times, and takes one value"
                raise typer.BadParameter(told, param_hint=f"'{one.opts[0]}'")
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="lvlm-interp",
    help="Did each word of a vision-language model's answer come from the prompt, the image, or what it knew already?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_names = [f"{commands.__name__}.{file.name}" for file in pkgutil.iter_modules(commands.__path__)]
for _command in sorted(map(importlib.import_module, _names), key=lambda file: file.PLACE):
    for _registered in _command.app.registered_commands:
        _registered.cls = Once
    app.add_typer(_command.app)


def _nearest(error: UnicodeError) -> tuple[str, int]:
    """What is printed of letters that an output lacks: a minus must not be lost."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end].translate(NEAR)
    return "".join(letter if letter.isascii() else "?" for letter in lost), error.end


codecs.register_error(NEAREST, _nearest)


def main() -> NoReturn:
    """Run the command line: 0 done, 1 an error of the user's or the world's, 2 wrong usage, 130 interrupted."""
    _open_streams()
    _open_log()
    for number in ENDED if threading.current_thread() is threading.main_thread() else ():
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, _end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=NEAREST)  # a terminal that lacks a letter of an answer shows "?"
    try:
        code: Any = _run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except LvlmInterpError as error:
        complain(f"error: {' '.join(str(error).split())}")
        code = 1
    except OSError as error:  # a full disk behind standard output, say
        complain(f"error: {error}")
        sys.stdout, code = io.StringIO(), 1  # what is left in it is not written at the end either
    if code == INTERRUPTED:
        complain("interrupted")
    sys.exit(code)


def _end(number: int, _: Any) -> NoReturn:
    """Somebody asked the process to end: what was done is kept, as after Ctrl-C."""
    raise KeyboardInterrupt


class Log(io.FileIO):
    """Standard error, of which is lost what cannot be written (its disk is full): that must not cost the result."""

    def write(self, text: Any) -> int:
        written = None
        with contextlib.suppress(OSError):
            written = super().write(text)
        return len(text) if written is None else written


def _open_log() -> None:
    if (log := sys.__stderr__) is not None and sys.stderr is log:
        raw = io.BufferedWriter(Log(log.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, log.encoding, line_buffering=True)


def _open_streams() -> None:
    """What a shell closed (`>&-`) leads nowhere; else the next file that is opened would take its number, and be
    written into by what libraries below have to say."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere < number and not _is_open(number):
                os.dup2(nowhere, number)
            setattr(sys, name, open(nowhere, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _run() -> Any:
    """The status; all that was printed has been written."""
    try:
        app()
    except SystemExit as end:
        sys.stdout.flush()
        return end.code
    return 0


def _version(asked: bool | None) -> None:
    if asked:
        print(f"lvlm-interp {li.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = None,
) -> None:
    pass
