"""Options that several commands have, and what they name: a model, and one example or a table of them.

Whatever can be found wrong without the model is found before it is opened.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import re
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from tqdm.auto import tqdm

import lvlm_interp as li
from lvlm_interp.cli.terminal import Showing, kept, working
from lvlm_interp.errors import InputError, LvlmInterpError, OutputError, VisibilityError
from lvlm_interp.shown import printable

Model = Annotated[str, typer.Option(help="'reference' (ships with the package), a hub id, or a directory.")]
Device = Annotated[str | None, typer.Option(help="Where it computes: cpu, cuda, cuda:1, mps. By default the cpu.")]
DType = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(metavar="TYPE", help="What it computes in: float32, bfloat16, float16, or auto, as it is stored."),
]


def _picture(text: str) -> str:
    if not text.strip():
        raise typer.BadParameter("it is empty; give a path or an address")
    return text


IMAGE = typer.Option(
    "--image", parser=_picture, metavar="PATH", help="The picture that is asked about: a path or an address."
)
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

    @property
    def read(self) -> list[Path | str]:
        """The user's files that are read, which nothing may be written over."""
        told = [path for name in ("image", "table") if (path := getattr(self, name, None)) is not None]
        return [*told, *(Path(self.model).glob("*") if os.path.isdir(self.model) else ())]

    @contextlib.contextmanager
    def showing(self, as_json: bool) -> Iterator[Showing]:
        """What prints results, and in the end writes their frames if that was asked for.

        An error says which row of a table it is about: results of those before it are written all the same.
        """
        table = getattr(self, "table", None)
        shown = Showing(as_json, self.frame, table is not None, self.force)
        with kept(shown.write):
            try:
                yield shown
            except LvlmInterpError as error:
                if table is None:
                    raise
                raise _in_row(table, shown.count + 1, error) from error

    def check(self) -> None:
        """Raise for what is wrong whatever the model: texts that say nothing, a file that cannot be written."""
        need_texts("--answer", [self.answer])
        if self.frame is not None:
            from lvlm_interp.report.frames import frame_kind
            from lvlm_interp.report.placing import check_file

            frame_kind(self.frame)
            check_file(self.frame, self.force)

    def need_two_places(self, out: Path) -> None:
        """Raise where the frame would be written over what `--out` is, or into a directory that has to be empty."""
        if self.frame is None:
            return
        frame, other = self.frame.resolve(), out.resolve()
        if frame == other or other in frame.parents:
            raise typer.BadParameter(f"--frame {self.frame} and --out {out} are one place: give two")

    def opened(self, image: str | Path) -> Any:
        """The model; a bad picture is found before it takes its time."""
        return open_model(self.model, image, self.verbose, self.device, self.dtype)

    def row(self, image: str, question: str) -> dict[str, Any]:
        """One example, as arguments of `diagnose`."""
        if not question.strip():
            raise InputError("the question is empty; ask something about the image")
        texts = {"answer": self.answer, "context": self.context, "system": self.system}
        return {"image": image, "question": question, **texts}


@dataclass(frozen=True)
class Asked(Told):
    """One example and the model that is asked."""

    image: Annotated[str, IMAGE]
    question: Annotated[str, QUESTION]

    def open(self) -> tuple[Any, Any]:
        """The model and the example with its answer."""
        vlm, row = self._opened()
        return vlm, example(vlm, **row)

    def open_prompt(self) -> tuple[Any, Any]:
        """The model and the example, not answered yet."""
        vlm, row = self._opened()
        return vlm, vlm.prepare(row["question"], row["image"], row["context"], row["system"])

    def _opened(self) -> tuple[Any, dict[str, Any]]:
        self.check()
        need_apart([self.frame] if self.frame else [], self.read)
        row = self.row(self.image, self.question)
        return self.opened(self.image), row

    def need_figure(self, out: Path | None) -> None:
        """Raise for a figure that cannot be written, before anything is opened."""
        if out is not None:
            from lvlm_interp.report import export

            export.figure_kind(out)
            export.check_file(out, self.force)
            self.need_two_places(out)
            need_apart([out], self.read)


def of_word(word: int, against: str | None) -> dict[str, Any]:
    """One word of the answer, as `attribute` and its kin are asked for it."""
    unit = {"unit": "word"} if against is None else {}
    return {"target": word, "against": against, "progress": sys.stderr.isatty(), **unit}


@dataclass(frozen=True)
class AskedOrTable(Told):
    """One example, or a table of examples, and the model that is asked."""

    image: Annotated[str | None, IMAGE] = None
    question: Annotated[str | None, QUESTION] = None
    table: Table = None

    def open(self) -> tuple[Any, Iterator[Any]]:
        """The model and the examples."""
        vlm, rows = self.open_rows()
        return vlm, self.each(rows, functools.partial(example, vlm))

    def open_rows(self, written: Sequence[Path] = ()) -> tuple[Any, list[dict[str, Any]]]:
        """The model and the examples, as arguments of `diagnose`; none of their pictures is among what is written."""
        self.check()
        rows = self._rows()
        if self.table is not None:
            need_rows(self.table, rows)
        need_apart([*written, *([self.frame] if self.frame else [])], [*self.read, *(row["image"] for row in rows)])
        return self.opened(rows[0]["image"]), rows

    def each(self, rows: Iterable[dict[str, Any]], function: Callable[..., Any]) -> Iterator[Any]:
        """What a function makes of each row, one at a time."""
        if self.table is not None:
            rows = tqdm(rows, desc=printable(self.table.name), disable=not sys.stderr.isatty())
        yield from (function(**row) for row in rows)

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


def open_model(
    model: str, image: str | Path | None, verbose: bool, device: str | None = None, dtype: str = "auto"
) -> Any:
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


def _in_row(table: Path, number: int, error: LvlmInterpError) -> LvlmInterpError:
    return type(error)(f"{table}, row {number}: {error}")


@contextlib.contextmanager
def of_row(table: Path, number: int) -> Iterator[None]:
    """An error within the `with` says which row of a table it is about."""
    try:
        yield
    except LvlmInterpError as error:
        raise _in_row(table, number, error) from error


def need_rows(table: Path, rows: Iterable[Mapping[Any, Any]]) -> None:
    """Raise for a row with an answer that says nothing, or a picture that is none: one late row must not cost others.

    Each picture is opened once.
    """
    from lvlm_interp.inputs.media import open_image

    seen = set[str]()
    for number, row in enumerate(rows, 1):
        with of_row(table, number):
            need_texts("the answer", [row.get("answer")])
            if row["image"] not in seen:
                open_image(row["image"])
        seen.add(row["image"])


def need_apart(written: Iterable[Path], read: Iterable[str | Path]) -> None:
    """Raise where what is written would take the place of what the user has it made from."""
    there = [path for path in written if os.path.exists(path)]
    for path in dict.fromkeys(map(_path_of, read)):
        if lost := next((one for one in there if os.path.exists(path) and os.path.samefile(one, path)), None):
            raise OutputError(f"{lost} is a file that this command reads; give another one to write to")


def _path_of(read: str | Path) -> str | Path:
    """Where a file is that is read by its address."""
    try:
        address = urllib.parse.urlsplit(read) if isinstance(read, str) else None
    except ValueError:  # no address that could be one of a file
        return read
    return urllib.request.url2pathname(address.path) if address and address.scheme.lower() == "file" else read


def need_players(players: Sequence[str], keep: Sequence[str], context: bool) -> None:
    """Raise for an unknown way to split, for what is kept and is no player of it, and where there is no context."""
    from lvlm_interp.attribution.players import SPLITS

    if unknown := [split for split in players if split not in SPLITS]:
        raise InputError(f"--players: {unknown[0]!r} is no way to split; there are {list(SPLITS)}")
    if not context and (split := next((one for one in players if one in ("turns", "sentences")), None)):
        raise InputError(f"--players {split} splits the context, and there is none: give --context")
    parts = "|".join(split.removesuffix("s") for split in players if split != "roles")
    need_roles("--keep", [name for name in keep if not (parts and re.fullmatch(rf"({parts}) \d+", name))])


def need_texts(option: str, texts: Iterable[str | None]) -> None:
    """Raise for a text that says nothing."""
    if any(text is not None and not text.strip() for text in texts):
        raise InputError(f"{option} is a blank, which tokenises to nothing; give at least one word")


def need_roles(option: str, names: Iterable[str]) -> None:
    """Raise for what is no role."""
    from lvlm_interp.inputs.example import ROLES

    if unknown := [name for name in names if name not in ROLES]:
        raise VisibilityError(f"{option}: no role {unknown[0]!r}; the roles are {list(ROLES)}")
