"""What commands say: while they work, and when they have a result."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from lvlm_interp.errors import LvlmInterpWarning
from lvlm_interp.shown import json_text, printable, printable_json

if TYPE_CHECKING:
    import pandas as pd

    from lvlm_interp.inputs.example import Inputs
    from lvlm_interp.report.diagnosis import Diagnosis
    from lvlm_interp.results import Result

WIDE = 240  # columns
NARROW = 72  # what a table of words needs: in less, rich leaves columns out


def complain(line: str) -> None:
    """A line on standard error."""
    print(printable(line), file=sys.stderr)


def say(line: object) -> None:
    """A line on standard output: a path, say, whose name others gave."""
    print(printable(line))


@contextlib.contextmanager
def working(on: str, verbose: bool) -> Iterator[None]:
    """Show what is being done; silence the libraries below, in this process only: it is the command's."""
    if verbose:
        yield
        return
    console = Console(file=sys.stderr)
    # Some progress bars can be stopped in no other way.
    with console.status(Text(printable(on))), contextlib.redirect_stderr(io.StringIO()):
        _hush()
        yield


def _hush() -> None:
    import warnings

    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    warnings.simplefilter("default", LvlmInterpWarning)
    warnings.showwarning = _noted
    disable_progress_bars()
    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _noted(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning of ours, as a line."""
    complain(f"note: {' '.join(str(message).split())}")


def output() -> Console:
    """Standard output; where it is no terminal, tables are as wide as they need to be."""
    console = Console()
    return Console(width=max(console.width, NARROW) if sys.stdout.isatty() else WIDE)


def print_json(value: Any) -> None:
    """A line of JSON; what is no number is null, since JSON has no NaN."""
    print(printable_json(json_text(value)))


def show(result: Result, as_json: bool, title: str) -> None:
    """A result as a table, and what a reader of it must know; or as JSON."""
    if as_json:
        print_json({"answer": title, **result.to_dict()})
        return
    show_frame(result.to_frame(), title, result.note)


@contextlib.contextmanager
def kept(write: Callable[[], None]) -> Iterator[None]:
    """What is done within the `with` is written in the end; where an error or Ctrl-C ends it, what was done
    before."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        write()
        raise
    write()


class Showing:
    """Prints results one by one; in the end their frames are written to a file, if one was asked for.

    Args:
        as_json: print JSON.
        file: where frames go.
        several: results are of several examples, which the frame tells apart by a column `table_row`, from 1.
        force: replace a file that is there.
    """

    def __init__(self, as_json: bool, file: Path | None, several: bool, force: bool) -> None:
        self.as_json, self.file, self.several, self.force = as_json, file, several, force
        self.frames: list[pd.DataFrame] = []
        self.count = 0

    def __call__(self, result: Result, x: Inputs) -> None:
        number = f"{self.count + 1}. " if self.several else ""
        show(result, self.as_json, x.answer if self.as_json else f"{number}{x.question}  →  {x.answer}")
        self.keep(result.to_frame() if self.file else None)

    def keep(self, frame: pd.DataFrame | None) -> None:
        """Have a frame written: the one of the next result."""
        self.count += 1
        if frame is not None and self.file is not None:
            if self.several:
                frame.insert(0, "table_row", self.count)
            self.frames.append(frame)

    def write(self) -> None:
        """Write what was kept; in the end, so that a file is whole."""
        if self.file is not None and self.frames:
            import pandas as pd

            from lvlm_interp.report.frames import save_frame
            from lvlm_interp.report.placing import check_file

            check_file(self.file, self.force)  # another process may have written it meanwhile
            save_frame(pd.concat(self.frames, ignore_index=True), self.file)


def show_frame(frame: pd.DataFrame, title: str, note: str = "") -> None:
    """A frame as a table, or several if the terminal is too narrow for one, and a note on it."""
    from lvlm_interp.report.terminal import frame_tables

    console = output()
    console.print(*frame_tables(frame, title, console.width), sep="\n")
    if note:
        console.print(Text(printable(note), style="dim"))


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """A table of its words, and what a reader must know besides."""
    from lvlm_interp.report.terminal import diagnosis_table, heading, notes

    console = output()
    console.print(heading(diagnosis))
    console.print(diagnosis_table(diagnosis))
    for note in notes(diagnosis):
        console.print(note, style="yellow", markup=False)
    console.print()
