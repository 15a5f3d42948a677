"""What commands say: while they work, and when they have a result."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from lvlm_interp.report.diagnosis import Diagnosis
    from lvlm_interp.results import Result

WIDE = 240  # columns


def complain(line: str) -> None:
    """A line on standard error."""
    print(line, file=sys.stderr)


@contextlib.contextmanager
def working(on: str, verbose: bool) -> Iterator[None]:
    """Show what is being done; silence the libraries below, in this process only: it is the command's."""
    if verbose:
        yield
        return
    console = Console(file=sys.stderr)
    # Some progress bars can be stopped in no other way.
    with console.status(on), contextlib.redirect_stderr(io.StringIO()):
        _hush()
        yield


def _hush() -> None:
    import warnings

    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    disable_progress_bars()
    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def output() -> Console:
    """Standard output; where it is no terminal, tables are as wide as they need to be."""
    return Console(width=None if sys.stdout.isatty() else WIDE)


def print_json(value: Any) -> None:
    """A line of JSON; what is no number is null, since JSON has no NaN."""
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(result: Result, as_json: bool, title: str) -> None:
    """A result as a table, or as JSON."""
    if as_json:
        print_json({"answer": title, **result.to_dict()})
        return
    from lvlm_interp.report.terminal import frame_table

    output().print(frame_table(result.to_frame(), title))


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """A table of its words, and what a reader must know besides."""
    from lvlm_interp.report.terminal import diagnosis_table, heading, notes

    console = output()
    console.print(heading(diagnosis))
    console.print(diagnosis_table(diagnosis))
    for note in notes(diagnosis):
        console.print(note, style="yellow", markup=False)
    console.print()
