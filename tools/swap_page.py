"""Write into `docs/swap.md` what `python benchmarks/swap.py --out benchmarks/results/swap.json` measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marked import replaced, table

ROOT = Path(__file__).resolve().parents[1]
Found = Mapping[str, Any]


def all_of(found: Found) -> str:
    """Of each definition the share that is right of all examples, with its interval, and the kind it is worst at."""
    rows = []
    for name, right in found["right"].items():
        low, high = found["interval of all"][name]
        kinds = {kind: share for kind, share in right.items() if kind != "all"}
        worst = min(kinds, key=lambda kind: kinds[kind])
        rows.append([name, f"{right['all']:.1%}", f"{low:.1%} to {high:.1%}", f"{worst} {kinds[worst]:.0%}"])
    return table(["definition", "right", "95% interval", "worst kind"], rows)


def by_kind(found: Found) -> str:
    """The same for each kind of question, in percent."""
    kinds = [kind for kind in found["judged"] if kind != "all"]
    rows = [[name, *(f"{100 * right[kind]:.0f}" for kind in kinds)] for name, right in found["right"].items()]
    return table(["% right", *kinds], [["*examples*", *(str(found["judged"][kind]) for kind in kinds)], *rows])


def about(model: str, found: Found) -> str:
    """Which examples these are."""
    decides = ", ".join(f"{name} {count}" for name, count in sorted(found["decides"].items(), key=lambda it: -it[1]))
    out = ", ".join(f"{count} {why}" for why, count in found["left out"].items()) or "none"
    point = found["pointing"]
    return (
        f"### `{model}`\n\nWeights `{found['weights']}`. {found['examples']} examples, decided by {decides}; "
        f"{found['judged']['all']} of them judge (left out: {out})."
        + (
            f" Where a change of pixels has a place, the strongest patch shows it in {point['inside']:.0%} of "
            f"{point['examples']} (at random: {point['chance']:.0%})."
            if point["examples"]
            else ""
        )
    )


def main() -> None:
    path, found = ROOT / "docs" / "swap.md", json.loads((ROOT / "benchmarks" / "results" / "swap.json").read_text())
    models = {name: one for name, one in found.items() if isinstance(one, dict)}
    parts = [text for name, one in models.items() for text in (about(name, one), all_of(one), by_kind(one))]
    path.write_text(replaced(path.read_text(), "judged", "\n\n".join(parts)))


if __name__ == "__main__":
    main()
