"""`lvlm-interp probe`: what linear probes read off a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import lvlm_interp as li
from lvlm_interp.cli.options import (
    Device,
    DType,
    Force,
    Json,
    Model,
    OutDir,
    Verbose,
    need_apart,
    need_rows,
    of_row,
    open_model,
)
from lvlm_interp.cli.terminal import complain, show
from lvlm_interp.errors import InputError

PLACE = 80
app = typer.Typer()
LARGEST_SEED = 2**32 - 2  # numpy and scikit-learn take one more, which inner folds have
RESIDUALS = "blocks.*.hook_resid_post"


@app.command()
def probe(
    table: Annotated[Path, typer.Argument(help="A .csv or .jsonl with columns image, question and a label.")],
    out: OutDir,
    model: Model = "reference",
    device: Device = None,
    dtype: DType = "auto",
    sites: Annotated[str, typer.Option(help="A glob of sites, such as 'blocks.*.attn.hook_z'.")] = RESIDUALS,
    label: Annotated[
        list[str] | None, typer.Option(help="The column to predict, 'label' by default; repeat it for points (x, y).")
    ] = None,
    group: Annotated[str, typer.Option(help="Rows of one group are held out together.")] = "image",
    kind: Annotated[
        str | None,
        typer.Option("--type", help="A column that labels could be learnt by heart from."),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="How many.")] = 5,
    permutations: Annotated[int, typer.Option(min=0, help="For p-values; 0 for none.")] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Decides folds, controls, permutations and intervals.")
    ] = 0,
    store: Annotated[
        Path | None, typer.Option(help="A directory that keeps features: a call that was cut off goes on from there.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """What linear probes read off every layer or head, over a table of examples; writes probes, scores and a figure."""
    from lvlm_interp.probes.design import designed
    from lvlm_interp.probes.task import task_of
    from lvlm_interp.report import export
    from lvlm_interp.tables import read_examples

    export.check(out, force)
    _need_apart(store, out)
    frame, labels = read_examples(table), label or ["label"]
    need_apart([out / name for name in ("probes.csv", "probes.png")], [table, *frame["image"]])
    if len({*labels}) < len(labels):
        raise InputError(f"--label names a column twice: {labels}; several labels are the axes of a point")
    _need_columns(frame, table, [*labels, group, *([kind] if kind else [])], numbers=labels if len(labels) > 1 else [])
    predicted = frame[labels[0]] if len(labels) == 1 else frame[labels].to_numpy(float)
    # what fails whatever the features are is found before they take time
    designed(task_of(predicted), frame[group], frame[kind] if kind else None, folds, seed)
    need_rows(table, frame.to_dict("records"))
    vlm, progress = open_model(model, None, verbose, device, dtype), sys.stderr.isatty()
    features = li.collect_features(vlm, _asked(vlm, table, frame), {"features": sites}, progress=progress, store=store)[
        "features"
    ]
    found = li.fit_probes(
        features.by_head,
        predicted,
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
        complain(f"note: {note}")
    show(found, as_json, f"{table}: {len(frame)} examples")


def _asked(vlm: Any, table: Path, frame: Any) -> Iterator[Any]:
    """The examples, one at a time; an error says which row it is about."""
    told = [name for name in ("answer", "context", "system") if name in frame]
    for number, row in enumerate(frame.to_dict("records"), 1):
        with of_row(table, number):
            x = vlm.prepare(row["question"], row["image"], **{name: row[name] for name in told})
        yield x


def _need_apart(store: Path | None, out: Path) -> None:
    """Raise where features would stand among what is written in the end, or cannot be kept."""
    if store is None:
        return
    from lvlm_interp.probes.store import need_store
    from lvlm_interp.report import export

    one, other = store.resolve(), out.resolve()
    if one == other or other in one.parents or one in other.parents:
        raise typer.BadParameter(f"--store {store} and --out {out} are one inside the other: give two directories")
    export.check(store, force=True)
    need_store(store)


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
