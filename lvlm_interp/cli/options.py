"""Options that several commands have, and what they name: a model, and one example or a table of them.

Whatever can be found wrong without the model is found before it is opened.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from tqdm.auto import tqdm

import lvlm_interp as li
from lvlm_interp.cli.terminal import Showing, working
from lvlm_interp.errors import InputError, LvlmInterpError, VisibilityError
from lvlm_interp.shown import printable

Model = Annotated[str, typer.Option(help="'reference' (ships with the package), a hub id, or a directory.")]
Device = Annotated[str | None, typer.Option(help="Where it computes: cpu, cuda, cuda:1, mps. By default the cpu.")]
DType = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(metavar="TYPE", help="What it computes in: float32, bfloat16, float16, or auto, as it is stored."),
]
IMAGE = typer.Option("--image", help="The picture that is asked about.")
QUESTION = typer.Option("--question", help="What is asked.")
Table = Annotated[
    Path | None, typer.Option("--table", help="In their place a .csv or .jsonl of examples, one result for each.")
]
Answer = Annotated[str | None, typer.Option(help="The answer to explain; by default the model's own.")]
ContextText = Annotated[str | None, typer.Option("--context", help="Text before the question.")]
System = Annotated[str | None, typer.Option(help="A system message.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what the libraries below have to say.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Frame = Annotated[
    Path | None, typer.Option("--frame", help="Write the table to this file too: .csv, .json, .jsonl or .parquet.")
]
Force = Annotated[bool, typer.Option("--force", help="Write over files of ours that are there; others stay.")]
OutDir = Annotated[Path, typer.Option("--out", help="Directory to write to; refused if it holds something.")]
Word = Annotated[int, typer.Option(min=0, help="Which word of the answer, from 0.")]


def _nats(value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(f"{value} is no number of nats; give one from 0 on")
    return value


Threshold = Annotated[
    float, typer.Option(callback=_nats, help="Nats from which a token is correlated or contradictory.")
]


@dataclass(frozen=True, kw_only=True)
class Told:
    """What goes with every question."""

    model: Model = "reference"
    device: Device = None
    dtype: DType = "auto"
    answer: Answer = None
    context: ContextText = None
    system: System = None
    frame: Frame = None
    force: Force = False
    verbose: Verbose = False

    def showing(self, as_json: bool, several: bool = False) -> Showing:
        """What prints results, and writes their frames if that was asked for."""
        return Showing(as_json, self.frame, several)

    def check(self) -> None:
        """Raise for what is wrong whatever the model: texts that say nothing, a file that cannot be written."""
        need_texts("--answer", [self.answer])
        if self.frame is not None:
            from lvlm_interp.report.frames import frame_kind
            from lvlm_interp.report.placing import check_file

            frame_kind(self.frame)
            check_file(self.frame, self.force)

    def opened(self, image: Path) -> Any:
        """The model; a bad picture is found before it takes its time."""
        return open_model(self.model, image, self.verbose, self.device, self.dtype)

    def row(self, image: Path, question: str) -> dict[str, Any]:
        """One example, as arguments of `diagnose`."""
        if not question.strip():
            raise InputError("the question is empty; ask something about the image")
        texts = {"answer": self.answer, "context": self.context, "system": self.system}
        return {"image": image, "question": question, **texts}


@dataclass(frozen=True)
class Asked(Told):
    """One example and the model that is asked."""

    image: Annotated[Path, IMAGE]
    question: Annotated[str, QUESTION]

    def open(self) -> tuple[Any, Any]:
        """The model and the example."""
        self.check()
        row = self.row(self.image, self.question)
        vlm = self.opened(self.image)
        return vlm, example(vlm, **row)


@dataclass(frozen=True)
class AskedOrTable(Told):
    """One example, or a table of examples, and the model that is asked."""

    image: Annotated[Path | None, IMAGE] = None
    question: Annotated[str | None, QUESTION] = None
    table: Table = None

    def open(self) -> tuple[Any, Iterator[Any]]:
        """The model and the examples."""
        vlm, rows = self.open_rows()
        return vlm, self.each(rows, functools.partial(example, vlm))

    def open_rows(self) -> tuple[Any, list[dict[str, Any]]]:
        """The model and the examples, as arguments of `diagnose`."""
        self.check()
        rows = self._rows()
        return self.opened(Path(rows[0]["image"])), rows

    def each(self, rows: Iterable[dict[str, Any]], function: Callable[..., Any]) -> Iterator[Any]:
        """What a function makes of each row, one at a time; an error says which row of a table it is about."""
        if self.table is None:
            yield from (function(**row) for row in rows)
            return
        name = printable(self.table.name)
        for number, row in enumerate(tqdm(rows, desc=name, disable=not sys.stderr.isatty()), 1):
            try:
                made = function(**row)
            except LvlmInterpError as error:
                raise type(error)(f"{self.table}, row {number}: {error}") from error
            yield made

    def _rows(self) -> list[dict[str, Any]]:
        if self.table is not None:
            if any((self.image, self.question, self.answer, self.context, self.system)):
                raise typer.BadParameter("--table stands in the place of --image, --question and what goes with them")
            from lvlm_interp.tables import read_examples

            frame, names = read_examples(self.table), ("image", "question", "answer", "context", "system")
            return [{name: row.get(name) for name in names} for row in frame.to_dict("records")]
        if self.image is None or self.question is None:
            raise typer.BadParameter("give --image and --question, or --table")
        return [self.row(self.image, self.question)]


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options that its first parameter, a dataclass, has as fields, before its own."""
    first, *own = inspect.signature(command, eval_str=True).parameters.values()
    shared = inspect.signature(first.annotation, eval_str=True).parameters.values()

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(first.annotation(**{option.name: given.pop(option.name) for option in shared}), **given)

    # by name, so that options with a default may stand before others
    options = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in (*shared, *own)]
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def open_model(model: str, image: Path | None, verbose: bool, device: str | None = None, dtype: str = "auto") -> Any:
    """The model; a bad image is found before the model takes its time."""
    if image is not None:
        from lvlm_interp.inputs.media import open_image

        open_image(image)
    with working(f"Opening {model!r} (the first time, the reference model is fetched and built)", verbose):
        return li.load(model, device=device, dtype=dtype)


def example(
    vlm: Any, image: Path | str, question: str, answer: str | None, context: str | None, system: str | None
) -> Any:
    """One example with its answer; the model's own, where none is given."""
    from lvlm_interp.report.diagnose import asked

    return asked(vlm, image, question, answer, context, system)[0]


def need_texts(option: str, texts: Iterable[str | None]) -> None:
    """Raise for a text that says nothing."""
    if any(text is not None and not text.strip() for text in texts):
        raise InputError(f"{option} is a blank, which tokenises to nothing; give at least one word")


def need_roles(option: str, names: Iterable[str]) -> None:
    """Raise for what is no role."""
    from lvlm_interp.inputs.example import ROLES

    if unknown := [name for name in names if name not in ROLES]:
        raise VisibilityError(f"{option}: no role {unknown[0]!r}; the roles are {list(ROLES)}")
