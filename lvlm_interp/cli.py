"""The command line. Heavy imports stand inside the commands, so that `--help` is quick."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from tqdm.auto import tqdm

import lvlm_interp as li
from lvlm_interp.errors import InputError, LvlmInterpError, OutputError

if TYPE_CHECKING:
    from lvlm_interp.results import Result

WIDE = 240  # columns
RESIDUALS = "blocks.*.hook_resid_post"
INTERRUPTED = 130  # what shells report after Ctrl-C

app = typer.Typer(
    name="lvlm-interp",
    help="Did each word of a vision-language model's answer come from the prompt, the image, or what it knew already?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
reference_app = typer.Typer(help="The small model that ships: build it, find it, remove it.", no_args_is_help=True)
app.add_typer(reference_app, name="reference")

Model = Annotated[str, typer.Option(help="'reference' (ships with the package), a hub id, or a directory.")]
ImageFile = Annotated[Path, typer.Option("--image", help="The picture that is asked about.")]
Question = Annotated[str, typer.Option(help="What is asked.")]
MaybeImage = Annotated[Path | None, typer.Option("--image", help="The picture that is asked about.")]
MaybeQuestion = Annotated[str | None, typer.Option("--question", help="What is asked.")]
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


def main() -> NoReturn:
    """Run the command line: 0 done, 1 an error of the user's or the world's, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter of an answer shows "?"
    try:
        app()
        code: Any = 0
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except LvlmInterpError as error:
        _complain(f"error: {' '.join(str(error).split())}")
        code = 1
    if code == INTERRUPTED:
        _complain("interrupted")
    sys.exit(code)


def _complain(line: str) -> None:
    print(line, file=sys.stderr)


# --- what the commands share ----------------------------------------------------------------------


@contextlib.contextmanager
def _working(on: str, verbose: bool) -> Iterator[None]:
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


def _load(model: str, image: Path | None, verbose: bool) -> Any:
    """The model; a bad image is found before the model takes its time."""
    if image is not None:
        from lvlm_interp.model.inputs import open_image

        open_image(image)
    with _working(f"Opening {model!r} (the first time, the reference model is fetched and built)", verbose):
        return li.load(model)


def _output() -> Console:
    """Standard output; where it is no terminal, tables are as wide as they need to be."""
    return Console(width=None if sys.stdout.isatty() else WIDE)


def _example(vlm: Any, image: Path, question: str, answer: str | None, context: str | None, system: str | None) -> Any:
    from lvlm_interp.report.diagnosis import asked

    return asked(vlm, image, question, answer, context, system)[0]


def _examples(vlm: Any, table: Path, frame: Any) -> Iterator[Any]:
    """The examples of a table, one at a time; where a row has no answer, the model's own."""
    for row in tqdm(frame.to_dict("records"), desc=table.name, disable=not sys.stderr.isatty()):
        rest = {name: row.get(name) for name in ("answer", "context", "system")}
        yield _example(vlm, Path(row["image"]), row["question"], **rest)


def _opened(
    model: str, table: Path | None, one: tuple[Path | None, str | None], rest: dict[str, str | None], verbose: bool
) -> tuple[Any, Iterator[Any]]:
    """The model, and the example that was given or those of a table."""
    from lvlm_interp.tables import read_examples

    image, question = one
    if table is not None:
        if image or question or any(rest.values()):
            raise typer.BadParameter("--table stands in the place of --image, --question and what goes with them")
        frame = read_examples(table)
        vlm = _load(model, Path(frame["image"][0]), verbose)
        return vlm, _examples(vlm, table, frame)
    if image is None or question is None:
        raise typer.BadParameter("give --image and --question, or --table")
    vlm = _load(model, image, verbose)
    return vlm, iter([_example(vlm, image, question, **rest)])


def _show(result: Result, as_json: bool, title: str) -> None:
    """A result as a table, or as JSON."""
    if as_json:
        print(json.dumps({"answer": title, **result.to_dict()}, ensure_ascii=False))
        return
    from lvlm_interp.report.terminal import frame_table

    _output().print(frame_table(result.to_frame(), title))


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


# --- diagnoses ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A question of the demonstration, about a scene that ships."""

    seed: int
    objects: tuple[str, ...]
    colors: tuple[str | None, ...]
    question: str
    context: str | None = None
    answer: str | None = None


DEMO = (
    Case(3, ("banana",), ("purple",), "What color is the banana?"),
    Case(7, ("cat", "umbrella"), (None, "green"), "What is on the left?"),
    Case(1, ("dog", "book"), (None, "blue"), "How much does the book cost?", "The book costs ten dollars."),
)
DEMO_TITLE = "Three questions to a small vision-language model"


@app.command()
def diagnose(
    image: ImageFile,
    question: Question,
    out: OutDir,
    model: Model = "reference",
    answer: Answer = None,
    context: ContextText = None,
    system: System = None,
    force: Force = False,
    verbose: Verbose = False,
) -> None:
    """Say for every word of an answer where it came from, and write a page, figures and data."""
    from lvlm_interp.report import export

    export.check(out, force)
    vlm = _load(model, image, verbose)
    diagnosis = li.diagnose(vlm, image, question, answer, context, system, progress=sys.stderr.isatty())
    _report(diagnosis)
    print(export.write(diagnosis, out, force))


@app.command()
def demo(out: OutDir = Path("lvlm-interp-demo"), force: Force = False, verbose: Verbose = False) -> None:
    """Diagnose scenes that ship with the reference model; ends with the path of the page."""
    from lvlm_interp.reference import make_scene
    from lvlm_interp.report import export

    export.check(out, force)
    vlm = _load("reference", None, verbose)
    diagnoses = []
    for case in DEMO:
        picture = make_scene(case.seed, objects=case.objects, colors=case.colors).image
        told = {"answer": case.answer, "context": case.context, "progress": sys.stderr.isatty()}
        diagnoses.append(li.diagnose(vlm, picture, case.question, **told))
        _report(diagnoses[-1])
    print(export.write(diagnoses, out, force, title=DEMO_TITLE))


def _report(diagnosis: Any) -> None:
    from lvlm_interp.report.terminal import diagnosis_table, heading, notes

    console = _output()
    console.print(heading(diagnosis))
    console.print(diagnosis_table(diagnosis))
    for note in notes(diagnosis):
        console.print(note, style="yellow", markup=False)
    console.print()


# --- one method at a time -------------------------------------------------------------------------


@app.command()
def contrast(
    image: ImageFile,
    question: Question,
    model: Model = "reference",
    answer: Answer = None,
    context: ContextText = None,
    system: System = None,
    without: Annotated[
        str, typer.Option(help="What stands for no image: hidden, dropped, blank, blur, noise or crop.")
    ] = "hidden",
    threshold: Annotated[float, typer.Option(help="Nats from which a token is correlated or contradictory.")] = 1.0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """The answer with and without the image, token by token (CAL's contrast)."""
    x = _example(vlm := _load(model, image, verbose), image, question, answer, context, system)
    _show(li.contrast(vlm, x, without, threshold=threshold), as_json, x.answer)


@app.command()
def credit(
    image: ImageFile,
    question: Question,
    model: Model = "reference",
    answer: Answer = None,
    context: ContextText = None,
    system: System = None,
    value: Annotated[
        Literal["odds", "full"], typer.Option(help="Rather than another word, or than any word.")
    ] = "odds",
    unit: Annotated[Literal["word", "token"], typer.Option(help="What is explained at once.")] = "word",
    keep: Annotated[list[str] | None, typer.Option(help="A role that is always visible; may be repeated.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="An alternative to one word; may be repeated.")] = None,
    word: Annotated[int, typer.Option(help="Which word --against is about, from 0.")] = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Prior, question, context, system and image: how much of each word is whose."""
    x = _example(vlm := _load(model, image, verbose), image, question, answer, context, system)
    kept: Any = ("template", *(keep or ()))
    _show(li.credit(vlm, x, kept, value, against, unit=unit, word=word), as_json, x.answer)


@app.command()
def heatmap(
    image: ImageFile,
    question: Question,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")],
    model: Model = "reference",
    answer: Answer = None,
    context: ContextText = None,
    system: System = None,
    word: Annotated[int, typer.Option(help="Which word of the answer is drawn, from 0.")] = 0,
    hide_from: Annotated[Literal["text", "all"] | None, typer.Option(help="Who loses sight of a patch.")] = None,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Where in the image: a PNG of one word's map, and a table of every word's strongest patch."""
    if out.exists() and not force:
        raise OutputError(f"{out} exists; give another file, or --force to replace it")
    from lvlm_interp.methods.words import split_words
    from lvlm_interp.report.export import save_heatmap
    from lvlm_interp.report.terminal import frame_table, peaks

    x = _example(vlm := _load(model, image, verbose), image, question, answer, context, system)
    found = li.attribute(vlm, x, hide_from=hide_from, progress=sys.stderr.isatty())
    patches = found.words(split_words(found.tokens))
    save_heatmap(patches, x.images[0].picture, out, word, x.question)
    if as_json:
        _show(patches, True, x.answer)
    else:
        _output().print(frame_table(peaks(patches), x.answer))
        print(out)


@app.command()
def lens(
    image: MaybeImage = None,
    question: MaybeQuestion = None,
    table: Table = None,
    model: Model = "reference",
    answer: Answer = None,
    context: ContextText = None,
    system: System = None,
    target: Annotated[list[str] | None, typer.Option(help="A word to follow; may be repeated.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="A layer, 0 for the embeddings; may be repeated.")] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(help="Positions of a role, image for example; by default where the answer is read."),
    ] = None,
    raw: Annotated[bool, typer.Option("--no-norm", help="Leave the final norm out (Jiang et al. 2024).")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """What the model would say after each layer (logit lens), with the probability and rank of target words."""
    rest = {"answer": answer, "context": context, "system": system}
    vlm, examples = _opened(model, table, (image, question), rest, verbose)
    for x in examples:
        positions: Any = role or [int(p) - 1 for p in x.answer_positions]
        progress = sys.stderr.isatty() and table is None
        found = li.lens(vlm, x, layer, positions, target=target or (), norm=not raw, progress=progress)
        _show(found, as_json, x.answer)


@app.command()
def direct(
    image: MaybeImage = None,
    question: MaybeQuestion = None,
    table: Table = None,
    model: Model = "reference",
    answer: Answer = None,
    context: ContextText = None,
    system: System = None,
    target: Annotated[str | None, typer.Option(help="A token to explain, in the place of the answer's own.")] = None,
    against: Annotated[str | None, typer.Option(help="A token whose logit is subtracted.")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Each answer token's logit as a sum: what heads read from text and image, MLPs, embedding and biases."""
    rest = {"answer": answer, "context": context, "system": system}
    vlm, examples = _opened(model, table, (image, question), rest, verbose)
    for x in examples:
        _show(li.direct(vlm, x, target=target, against=against), as_json, x.answer)


@app.command()
def probe(
    table: Annotated[Path, typer.Argument(help="A .csv or .jsonl with columns image, question and a label.")],
    out: OutDir,
    model: Model = "reference",
    sites: Annotated[str, typer.Option(help="A glob of sites, such as 'blocks.*.attn.hook_z'.")] = RESIDUALS,
    label: Annotated[
        list[str] | None, typer.Option(help="The column to predict, 'label' by default; repeat it for points (x, y).")
    ] = None,
    group: Annotated[str, typer.Option(help="Rows of one group are held out together.")] = "image",
    kind: Annotated[
        str | None,
        typer.Option("--type", help="A column that labels could be learnt by heart from."),
    ] = None,
    folds: Annotated[int, typer.Option(help="How many.")] = 5,
    permutations: Annotated[int, typer.Option(help="For p-values; 0 for none.")] = 1000,
    seed: Annotated[int, typer.Option(help="Decides folds, controls, permutations and intervals.")] = 0,
    store: Annotated[
        Path | None, typer.Option(help="A directory that keeps features: a call that was cut off goes on from there.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """What linear probes read off every layer or head, over a table of examples; writes probes, scores and a figure."""
    from lvlm_interp.report import export
    from lvlm_interp.tables import read_examples

    export.check(out, force)
    frame, labels = read_examples(table), label or ["label"]
    _need_columns(frame, table, [*labels, group, *([kind] if kind else [])], numbers=labels if len(labels) > 1 else [])
    vlm, progress = _load(model, Path(frame["image"][0]), verbose), sys.stderr.isatty()
    told = [name for name in ("answer", "context", "system") if name in frame]
    asked = (vlm.prepare(r.question, r.image, **{name: r[name] for name in told}) for _, r in frame.iterrows())
    features = li.collect_features(vlm, asked, {"features": sites}, progress=progress, store=store)["features"]
    found = li.fit_probes(
        features.by_head,
        frame[labels[0]] if len(labels) == 1 else frame[labels].to_numpy(float),
        groups=frame[group],
        types=frame[kind] if kind else None,
        sites=features.sites,
        folds=folds,
        permutations=permutations,
        seed=seed,
        metadata=frame,
        vlm=vlm,
        progress=progress,
    )
    export.write_probes(found, out, force)
    for note in found.notes:
        _complain(f"note: {note}")
    _show(found, as_json, f"{table}: {len(frame)} examples")


def _need_columns(frame: Any, table: Path, names: list[str], numbers: list[str]) -> None:
    """Raise unless the table has these columns, whole, and the points among them are numbers."""
    for name in names:
        if name not in frame:
            raise InputError(f"{table} has no column {name!r}; it has {list(frame)}")
        if frame[name].isna().any():
            raise InputError(f"{table}: {name!r} is empty in row {int(frame[name].isna().to_numpy().argmax()) + 1}")
    for name in numbers:
        if frame[name].dtype.kind not in "fiu":
            raise InputError(f"{table}: several labels are a point, but {name!r} holds no numbers")


# --- models ---------------------------------------------------------------------------------------


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="'reference', a hub id, or a directory.")],
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Whether a model is read truly: five checks, and what to do where one fails. Status 0 only if all hold."""
    from lvlm_interp.model.conformance import check as conform
    from lvlm_interp.report.terminal import frame_table

    vlm = _load(model, None, verbose)
    with _working(f"Checking {model!r}", verbose):
        found = conform(vlm)
    if as_json:
        print(json.dumps({**found.to_dict(), "ok": found.ok}, ensure_ascii=False))
    else:
        frame = found.to_frame()
        frame["ok"] = frame["ok"].map({True: "holds", False: "FAILS"})
        for name in ("measured", "limit"):
            frame[name] = frame[name].map("{:.1e}".format)
        _output().print(frame_table(frame, f"{model}: {found.model_type}"))
    raise typer.Exit(0 if found.ok else 1)


# --- the reference model --------------------------------------------------------------------------


@reference_app.command()
def build(verbose: Verbose = False) -> None:
    """Fetch its parts and build it, if it is not there; prints its directory."""
    from lvlm_interp import reference

    with _working("Building the reference model (about 180 MB to fetch, once)", verbose):
        folder = reference.build()
    print(folder)


@reference_app.command()
def where() -> None:
    """Print its directory, whether it is built yet or not."""
    from lvlm_interp import reference

    print(reference.where())


@reference_app.command()
def clear() -> None:
    """Remove what was fetched and built; prints what was removed."""
    from lvlm_interp import reference

    for path in reference.clear():
        print(path)
