"""Write measured numbers into the model card, so that none is typed in by hand.

    python benchmarks/reference.py --out lvlm_interp/reference/scores.json
    cp RUN/curve.jsonl lvlm_interp/reference/ && python tools/model_card.py

The curve is what training wrote; the scores are those of the shipped adapter.
"""

import json
import re
from pathlib import Path

REFERENCE = Path(__file__).resolve().parents[1] / "lvlm_interp" / "reference"
KINDS = {"yes/no": "yes/no", "color": "colour", "place": "place", "name": "name", "objects": "every object named"}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def scores_of(scores: dict[str, dict[str, float]]) -> str:
    rows = [
        [shown, str(found["questions"]), *(f"{found[name]:.1%}" for name in ("right", "image_hidden", "blind_guess"))]
        for kind, shown in KINDS.items()
        if (found := scores.get(kind))
    ]
    return table(["question", "number", "right", "image hidden", "blind guess"], rows)


def curve_of(lines: list[dict[str, float]]) -> str:
    rows = [[str(line["step"]), f"{line['loss']:.3f}", *(f"{line[kind]:.1%}" for kind in KINDS)] for line in lines]
    return table(["step", "loss", *KINDS.values()], rows)


def replaced(card: str, name: str, text: str) -> str:
    """What stands between `<!-- name -->` and `<!-- /name -->`."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in card or end not in card:
        raise SystemExit(f"the model card has no part {start} … {end}")
    return re.sub(f"{start}.*?{end}", lambda _: f"{start}\n\n{text}\n\n{end}", card, flags=re.DOTALL)


def main() -> None:
    path, scores = REFERENCE / "MODEL_CARD.md", json.loads((REFERENCE / "scores.json").read_text())
    lines = [json.loads(line) for line in (REFERENCE / "curve.jsonl").read_text().splitlines()]
    parts = [f"{name[0].upper()}{name[1:]}:\n\n{scores_of(found)}" for name, found in scores.items() if "style" in name]
    note = f"Weights `{scores['weights']}`, scenes from seed {scores['seed']}."
    card = replaced(path.read_text(), "curve", curve_of(lines))
    path.write_text(replaced(card, "scores", "\n\n".join([note, *parts])))


if __name__ == "__main__":
    main()
