"""Options that several commands have, and what they name: a model, and one example or a table of them."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm.auto import tqdm

import lvlm_interp as li
from lvlm_interp.cli.terminal import working

Model = Annotated[str, typer.Option(help="'reference' (ships with the package), a hub id, or a directory.")]
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
Force = Annotated[bool, typer.Option("--force", help="Write over files of ours that are there; others stay.")]
OutDir = Annotated[Path, typer.Option("--out", help="Directory to write to; refused if it holds something.")]


@dataclass(frozen=True, kw_only=True)
class Told:
    """What goes with every question."""

    model: Model = "reference"
    answer: Answer = None
    context: ContextText = None
    system: System = None
    verbose: Verbose = False

    def example(self, vlm: Any, image: Path, question: str) -> Any:
        """One example with its answer."""
        return example(vlm, image, question, self.answer, self.context, self.system)


@dataclass(frozen=True)
class Asked(Told):
    """One example and the model that is asked."""

    image: Annotated[Path, IMAGE]
    question: Annotated[str, QUESTION]

    def load(self) -> Any:
        """The model; a bad image is found before it takes its time."""
        return open_model(self.model, self.image, self.verbose)

    def open(self) -> tuple[Any, Any]:
        """The model and the example."""
        vlm = self.load()
        return vlm, self.example(vlm, self.image, self.question)


@dataclass(frozen=True)
class AskedOrTable(Told):
    """One example, or a table of examples, and the model that is asked."""

    image: Annotated[Path | None, IMAGE] = None
    question: Annotated[str | None, QUESTION] = None
    table: Table = None

    def open(self) -> tuple[Any, Iterator[Any]]:
        """The model and the examples.

        Raises:
            typer.BadParameter: neither an example nor a table, or both.
        """
        if self.table is not None:
            if any((self.image, self.question, self.answer, self.context, self.system)):
                raise typer.BadParameter("--table stands in the place of --image, --question and what goes with them")
            return self._of_table(self.table)
        if self.image is None or self.question is None:
            raise typer.BadParameter("give --image and --question, or --table")
        vlm = open_model(self.model, self.image, self.verbose)
        return vlm, iter([self.example(vlm, self.image, self.question)])

    def _of_table(self, table: Path) -> tuple[Any, Iterator[Any]]:
        from lvlm_interp.tables import read_examples

        frame = read_examples(table)
        vlm = open_model(self.model, Path(frame["image"][0]), self.verbose)
        return vlm, _examples(vlm, table, frame)


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


def open_model(model: str, image: Path | None, verbose: bool) -> Any:
    """The model; a bad image is found before the model takes its time."""
    if image is not None:
        from lvlm_interp.inputs.media import open_image

        open_image(image)
    with working(f"Opening {model!r} (the first time, the reference model is fetched and built)", verbose):
        return li.load(model)


def example(vlm: Any, image: Path, question: str, answer: str | None, context: str | None, system: str | None) -> Any:
    """One example with its answer; the model's own, where none is given."""
    from lvlm_interp.report.diagnose import asked

    return asked(vlm, image, question, answer, context, system)[0]


def _examples(vlm: Any, table: Path, frame: Any) -> Iterator[Any]:
    """The examples of a table, one at a time; where a row has no answer, the model's own."""
    for row in tqdm(frame.to_dict("records"), desc=table.name, disable=not sys.stderr.isatty()):
        rest = {name: row.get(name) for name in ("answer", "context", "system")}
        yield example(vlm, Path(row["image"]), row["question"], **rest)
