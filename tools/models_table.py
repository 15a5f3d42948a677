"""Write the table of docs/models.md: every type that transformers maps to image-text-to-text, and what the checks say.

usage: python tools/models_table.py [TYPE ...]

With types named, only they are checked, and the other rows of the page are kept as they are.

Each family is built tiny and random from a config (tests/families), since the checks are about plumbing: positions,
masks, hooks, names of parts. A family without such a config is listed as not tried. Rows of families that need timm
are kept as they are where it is not installed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import lvlm_interp as li  # noqa: E402
from lvlm_interp.errors import ModelError  # noqa: E402
from lvlm_interp.families.shared.family import Family  # noqa: E402
from lvlm_interp.families.shared.registry import FAMILIES  # noqa: E402
from lvlm_interp.opening.checks import CHECKS  # noqa: E402
from lvlm_interp.opening.conformance import Conformance, check  # noqa: E402
from tests.families import ALL, FAILING, MODEL_TYPES, UNTRIED, WITH_TIMM, tiny_example, tiny_model  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table: python tools/models_table.py -->", "<!-- end of table -->"

NO_CONFIG = "no tiny config has been written yet"
BEYOND = ", ".join(f"`{name}`" for name in sorted(WITH_TIMM))
MEASURED_WITH_TIMM = f"Measured with timm installed, which builds their vision towers: {BEYOND}."


def checked(name: str) -> Conformance:
    """The checks of one tiny model; a type outside the package's table is not refused here, but listed."""
    vlm = li.wrap(tiny_model(name))
    vlm.accepted = True
    return check(vlm, tiny_example(vlm, name))


def row(name: str) -> tuple[bool, str]:
    """Whether a family passes, and its line of the table."""
    if name not in ALL:
        return False, f"| `{name}` | {' | '.join('–' * len(CHECKS))} | not tried: {UNTRIED.get(name, NO_CONFIG)} |"
    try:
        found = checked(name)
    except ModelError as refusal:
        return False, f"| `{name}` | {' | '.join('–' * len(CHECKS))} | refused: {FAILING.get(name, refusal)} |"
    marks = [f"{c.measured:.0e}" if c.ok else "**fails**" for c in found.checks]
    note = "" if found.ok else FAILING.get(name, "; ".join(c.detail for c in found.checks if not c.ok))
    known = FAMILIES[name].note if found.ok and name in FAMILIES else note
    return found.ok, f"| `{name}` | {' | '.join(marks)} | {known} |"


def with_pixels(name: str, line: str) -> str:
    """The line with a second column: whether the boxes of image tokens are known. That is looked up, not measured."""
    family = FAMILIES.get(name, Family())
    known = "whole" if family.whole else "yes" if family.layout else "–"
    return line.replace("` |", f"` | {known} |", 1)


def written(text: str) -> dict[str, tuple[bool, str]]:
    """The rows that a table has already, by type, without their second column."""
    found = re.findall(r"^(\| `([^`]+)` \|)[^|]+\|(.*)$", text, re.MULTILINE)
    lines = {name: start + rest for start, name, rest in found}
    return {name: ("**fails**" not in line and "| – |" not in line, line) for name, line in lines.items()}


def table(kept: dict[str, tuple[bool, str]]) -> str:
    """The whole table, families that pass first; rows that are kept are not measured again."""
    rows = []
    for name in MODEL_TYPES:
        passes, line = kept[name] if name in kept else row(name)
        rows.append((passes, with_pixels(name, line)))
        print(rows[-1][1], file=sys.stderr)
    rows.sort(key=lambda pair: (not pair[0], pair[1]))
    passed, tried = sum(ok for ok, _ in rows), sum("| not tried: " not in line for _, line in rows)
    head = f"{passed} of the {len(MODEL_TYPES)} types pass all checks; {tried} were tried.\n\n"
    head += f"| type | pixels | {' | '.join(CHECKS)} | |\n|---|---|{'---|' * len(CHECKS)}---|\n"
    return head + "\n".join(line for _, line in rows) + "\n\n" + MEASURED_WITH_TIMM


def kept_rows(old: str, chosen: Collection[str]) -> dict[str, tuple[bool, str]]:
    """The rows of a table that are not measured anew: those not chosen, where some are, and those that cannot be."""
    beyond = WITH_TIMM.keys() - ALL.keys()
    return {name: row for name, row in written(old).items() if name in beyond or (chosen and name not in chosen)}


def main(chosen: Collection[str]) -> None:
    if unknown := set(chosen) - set(MODEL_TYPES):
        raise SystemExit(f"no such types: {sorted(unknown)}; there are {sorted(MODEL_TYPES)}")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    old, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(kept_rows(old, chosen))}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
