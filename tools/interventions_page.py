"""Write into `docs/interventions.md` what `benchmarks/routes.py`, `tracing.py` and `circuits.py` measured.

Each with `--out benchmarks/results/….json`; the figure of routes is drawn as well.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import torch
from marked import replaced, table

from lvlm_interp.interventions.routes import Routes
from lvlm_interp.report import figures
from lvlm_interp.results import Provenance

ROOT = Path(__file__).resolve().parents[1]
Found = Mapping[str, Any]
KINDS = ("route", "equal size", "equal mass")


def read(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def about(found: Found) -> str:
    return f"weights `{found['weights']}`, held-out scenes"


def routes_of(found: Found) -> Routes:
    """The result again, as `attention_routes` would have given it for all examples together."""
    frame = pd.DataFrame(found["cells"])
    names, layers = list(dict.fromkeys(frame["route"])), sorted(set(frame["layer"]))
    at = frame.set_index(["route", "kind", "layer"]).reindex(pd.MultiIndex.from_product([names, KINDS, layers]))
    numbers = {name: torch.tensor(at[name].to_numpy()).view(len(names), 3, 1, len(layers)) for name in at.columns}
    return Routes(
        routes=tuple(names),
        kinds=KINDS,
        widths=(found["width"],),
        layers=tuple(layers),
        **{name: numbers[name].float() for name in ("change", "low", "high")},
        counts=numbers["examples"].nan_to_num(0).long(),
        untouched=found["untouched"],
        examples=int(frame["examples"].max()),
        value="logprob",
        unit="nats",
        confidence=0.95,
        provenance=Provenance("reference", found["weights"], "attention_routes"),
    )


def drawn(found: Routes, path: Path) -> None:
    with mpl.rc_context({"savefig.dpi": 120}):
        figures.route_lines(found).figure.savefig(path)


def routes(found: Found) -> Sequence[str]:
    """At its worst window, what each route costs beside its controls there."""
    frame, rows = pd.DataFrame(found["cells"]), []
    for name in dict.fromkeys(frame["route"]):
        own = frame[(frame["route"] == name) & (frame["kind"] == "route")]
        layer = own.loc[own["change"].idxmin(), "layer"]
        there = frame[(frame["route"] == name) & (frame["layer"] == layer)].set_index("kind")
        rows.append([name, str(layer), *(cell(there.loc[kind]) if kind in there.index else "–" for kind in KINDS)])
    first = (
        f"{int(frame['examples'].max())} colours that the model names rightly ({about(found)}), windows of "
        f"{found['width']} layers; what log-probability, in nats, is lost at most and around which layer, with 95% "
        f"intervals, beside cuts of as many other keys and of keys that are read as much. Untouched it is "
        f"{found['untouched']:.2f}."
    )
    picture = "![What answers lose where routes are cut, by layer, with controls.](images/routes.png)"
    return first, table(["route", "layer", *KINDS], rows), picture


def cell(one: Any) -> str:
    if pd.isna(one["change"]):
        return "–"
    return f"{one['change']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"


def traced(found: Found) -> Sequence[str]:
    """Shares by layer, bold where the answer flips."""
    frame = pd.DataFrame(found["places"])
    rows = []
    for (direction, place), some in frame.groupby(["direction", "positions"], sort=False):
        shares = [f"**{one.share:.2f}**" if one.flips else f"{one.share:.2f}" for one in some.itertuples()]
        rows.append([f"{direction}, {place}", *shares])
    layers = [str(layer) for layer in dict.fromkeys(frame["layers"])]
    first = (
        f"{found['pairs']} pairs of one scene with an object in two colours ({about(found)}): the share of the lead "
        f"({found['lead, clean']:.1f} logits clean, {found['lead, corrupt']:.1f} corrupt) that states behind a layer "
        "carry over, bold where the answer flips to the other picture's colour."
    )
    return first, table(["layer", *layers], rows)


def circuits(found: Found) -> Sequence[str]:
    """Agreement with exchanges, and what the first components keep."""
    rows = [
        [kind, one["way"], str(one["tried"]), f"{one['rank correlation']:.2f}", f"{one['recall of the strongest']:.2f}"]
        for kind, some in found["agreement"].items()
        if kind != "pairs"
        for one in some
    ]
    kept, frame = found["circuits"], pd.DataFrame(found["circuits"]["sizes"])
    sizes = list(dict.fromkeys(frame["size"]))
    shares = [
        [order, *(f"{one.faithfulness:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in some.itertuples())]
        for order, some in frame.groupby("order", sort=False)
    ]
    return (
        f"Attribution patching beside exchanging each component in earnest, {found['agreement']['pairs']} pairs "
        f"({about(found)}):",
        table(["components", "attribution patching", "exchanged", "rank correlation", "recall of the top tenth"], rows),
        f"Ranked on {kept['ranked on']} pairs, kept on {kept['pairs']} others; the share of the lead "
        f"({kept['lead, all']:.1f} logits with all, {kept['lead, none']:.1f} with none) that so many heads and MLPs "
        "keep, with 95% intervals:",
        table(["order", *(f"{size:.0%}" for size in sizes)], shares),
    )


PARTS = {"routes": ("routes", routes), "traced": ("tracing", traced), "circuits": ("circuits", circuits)}
"""By its mark on the page: the file of a part's numbers, and what writes it."""


def main() -> None:
    path, results = ROOT / "docs" / "interventions.md", ROOT / "benchmarks" / "results"
    page = path.read_text()
    for mark, (name, written) in PARTS.items():
        if (results / f"{name}.json").exists():  # others were not measured yet
            page = replaced(page, mark, "\n\n".join(written(read(name))))
    drawn(routes_of(read("routes")), ROOT / "docs" / "images" / "routes.png")
    path.write_text(page)


if __name__ == "__main__":
    main()
