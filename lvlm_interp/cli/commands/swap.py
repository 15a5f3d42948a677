"""`lvlm-interp swap`: which source decides each answer, told by changing the real input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import Device, DType, Force, Json, Model, OutDir, Verbose, need_apart, open_model
from lvlm_interp.cli.terminal import complain, print_json, show_frame
from lvlm_interp.errors import InputError

PLACE = 85
COUNT = 40
app = typer.Typer()


@app.command()
def swap(
    out: OutDir,
    table: Annotated[
        Path | None,
        typer.Argument(
            help="A .csv or .jsonl with a row for each version of an example: columns example, source and question, "
            "and picture, context, system, says, kind, group as needed. Without one, examples of the reference world."
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="How many of the reference world, where there is no table; 40 by default.")
    ] = None,
    model: Model = "reference",
    device: Device = None,
    dtype: DType = "auto",
    by: Annotated[
        Literal["changed", "followed"],
        typer.Option(metavar="WHAT", help="What counts: an answer that changed, or that followed what a row says."),
    ] = "changed",
    definition: Annotated[
        list[str] | None, typer.Option(help="A definition of credit to judge, all by default; may be repeated.")
    ] = None,
    unclear: Annotated[
        bool, typer.Option("--unclear", help="Judge by examples too where something speaks for another source.")
    ] = False,
    maps: Annotated[bool, typer.Option("--maps/--no-maps", help="Hold heatmaps against changes of pixels.")] = True,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Which source decides each answer, by changing the real input; and which definition of credit names it."""
    from lvlm_interp.attribution.definitions import DEFINITIONS, definition_of
    from lvlm_interp.reference.swaps import swap_table
    from lvlm_interp.report import export
    from lvlm_interp.tables import read_variants

    if (twice := definition) and len({*twice}) < len(twice):
        raise InputError(f"--definition names one twice: {twice}")
    if table and count is not None:
        raise InputError("--count says how many examples of the reference world are asked, where there is no table")
    export.check(out, force)
    parts = tuple(dict.fromkeys(definition_of(name).part for name in definition or DEFINITIONS))
    frame = read_variants(table) if table else swap_table(count or COUNT)
    shown = [name for names in frame.get("picture", []) for name in names] if table else []
    need_apart([out / name for name in export.SWAPPED], [table, *shown] if table else [])
    vlm = open_model(model, None, verbose, device, dtype)
    test = li.swap_test(vlm, frame, by, parts=parts, maps=maps, progress=sys.stderr.isatty(), interrupted="return")
    found = _judged(test, definition, unclear)
    export.write_swap(test, found, out, force)
    for where, why in test.failures.items():
        complain(f"note: {where}: {why}")
    _show(test, found, as_json, f"{table or 'The reference world'}: {len(test.examples)} examples")
    if len(test.examples) < frame["example"].nunique():
        raise KeyboardInterrupt


def _judged(test: Any, definitions: list[str] | None, unclear: bool) -> Any:
    """The definitions judged; None where no example can judge, which is no reason to lose the answers."""
    try:
        return li.judged(test, definitions, unclear=unclear)
    except InputError as error:
        complain(f"note: nothing is judged: {error}")
        return None


def _show(test: Any, found: Any, as_json: bool, title: str) -> None:
    if as_json:
        print_json({**test.to_dict(), "judged": None if found is None else found.to_dict()})
        return
    show_frame(test.to_frame()[["case", "question", "answer", "decides", "why"]], title, test.note)
    if found is not None:
        show_frame(found.table(), "Definitions of credit", found.note)
