"""`lvlm-interp demo`: questions about scenes that ship."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import Device, DType, Force, OutDir, Verbose, open_model
from lvlm_interp.cli.terminal import complain, say, show_diagnosis

PLACE = 20
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


DEMO = (  # what the picture shows, what the prompt tells, what the language model knows
    Case(3, ("banana",), ("purple",), "What color is the banana?"),
    Case(1, ("dog", "book"), (None, "blue"), "How much does the book cost?", "The book costs 10 dollars."),
    Case(3, ("banana",), ("grey",), "What color is the banana?"),
)
DEMO_TITLE = "Three questions to a small vision-language model"


@app.command()
def demo(
    out: OutDir = Path("lvlm-interp-demo"),
    device: Device = None,
    dtype: DType = "auto",
    force: Force = False,
    verbose: Verbose = False,
) -> None:
    """Diagnose scenes that ship with the reference model; ends with the path of the page."""
    from lvlm_interp.reference import make_scene
    from lvlm_interp.report import export

    export.check(out, force)
    complain("opening the reference model; the first time it is fetched and built, which takes about a minute")
    vlm = open_model("reference", None, verbose, device, dtype)
    diagnoses = []
    for number, case in enumerate(DEMO, 1):
        complain(f"question {number} of {len(DEMO)}: {' '.join(filter(None, (case.context, case.question)))}")
        picture = make_scene(case.seed, objects=case.objects, colors=case.colors).image
        told = {"answer": case.answer, "context": case.context, "progress": sys.stderr.isatty()}
        diagnoses.append(li.diagnose(vlm, picture, case.question, **told))
        show_diagnosis(diagnoses[-1])
    say(export.write(diagnoses, out, force, title=DEMO_TITLE))
