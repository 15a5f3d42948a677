"""Commands that say where an answer came from: all of it at once, or one method at a time."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import Asked, Force, Json, OutDir, Verbose, asking, open_model
from lvlm_interp.cli.terminal import output, show
from lvlm_interp.errors import OutputError

app = typer.Typer()


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
@asking
def diagnose(
    asked: Asked,
    out: OutDir,
    force: Force = False,
) -> None:
    """Say for every word of an answer where it came from, and write a page, figures and data."""
    from lvlm_interp.report import export

    export.check(out, force)
    told = asked.image, asked.question, asked.answer, asked.context, asked.system
    diagnosis = li.diagnose(asked.load(), *told, progress=sys.stderr.isatty())
    _report(diagnosis)
    print(export.write(diagnosis, out, force))


@app.command()
def demo(out: OutDir = Path("lvlm-interp-demo"), force: Force = False, verbose: Verbose = False) -> None:
    """Diagnose scenes that ship with the reference model; ends with the path of the page."""
    from lvlm_interp.reference import make_scene
    from lvlm_interp.report import export

    export.check(out, force)
    vlm = open_model("reference", None, verbose)
    diagnoses = []
    for case in DEMO:
        picture = make_scene(case.seed, objects=case.objects, colors=case.colors).image
        told = {"answer": case.answer, "context": case.context, "progress": sys.stderr.isatty()}
        diagnoses.append(li.diagnose(vlm, picture, case.question, **told))
        _report(diagnoses[-1])
    print(export.write(diagnoses, out, force, title=DEMO_TITLE))


def _report(diagnosis: Any) -> None:
    from lvlm_interp.report.terminal import diagnosis_table, heading, notes

    console = output()
    console.print(heading(diagnosis))
    console.print(diagnosis_table(diagnosis))
    for note in notes(diagnosis):
        console.print(note, style="yellow", markup=False)
    console.print()


# --- one method at a time -------------------------------------------------------------------------


@app.command()
@asking
def contrast(
    asked: Asked,
    without: Annotated[
        str, typer.Option(help="What stands for no image: hidden, dropped, blank, blur, noise or crop.")
    ] = "hidden",
    threshold: Annotated[float, typer.Option(help="Nats from which a token is correlated or contradictory.")] = 1.0,
    as_json: Json = False,
) -> None:
    """The answer with and without the image, token by token (CAL's contrast)."""
    vlm, x = asked.open()
    show(li.contrast(vlm, x, without, threshold=threshold), as_json, x.answer)


@app.command()
@asking
def credit(
    asked: Asked,
    value: Annotated[
        Literal["odds", "full"], typer.Option(help="Rather than another word, or than any word.")
    ] = "odds",
    unit: Annotated[Literal["word", "token"], typer.Option(help="What is explained at once.")] = "word",
    keep: Annotated[list[str] | None, typer.Option(help="A role that is always visible; may be repeated.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="An alternative to one word; may be repeated.")] = None,
    word: Annotated[int, typer.Option(help="Which word --against is about, from 0.")] = 0,
    as_json: Json = False,
) -> None:
    """Prior, question, context, system and image: how much of each word is whose."""
    vlm, x = asked.open()
    kept: Any = ("template", *(keep or ()))
    show(li.credit(vlm, x, kept, value, against, unit=unit, word=word), as_json, x.answer)


@app.command()
@asking
def heatmap(
    asked: Asked,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")],
    word: Annotated[int, typer.Option(help="Which word of the answer is drawn, from 0.")] = 0,
    hide_from: Annotated[Literal["text", "all"] | None, typer.Option(help="Who loses sight of a patch.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Where in the image: a PNG of one word's map, and a table of every word's strongest patch."""
    if out.exists() and not force:
        raise OutputError(f"{out} exists; give another file, or --force to replace it")
    if not out.parent.is_dir():
        raise OutputError(f"there is no directory {out.parent} to write {out.name} to")
    from lvlm_interp.inputs.words import split_words
    from lvlm_interp.report.export import save_heatmap
    from lvlm_interp.report.terminal import frame_table, peaks

    vlm, x = asked.open()
    found = li.attribute(vlm, x, hide_from=hide_from, progress=sys.stderr.isatty())
    patches = found.words(split_words(found.tokens))
    save_heatmap(patches, x.images[0].picture, out, word, x.question)
    if as_json:
        show(patches, True, x.answer)
    else:
        output().print(frame_table(peaks(patches), x.answer))
        print(out)
