"""Write measured numbers into the model card, so that none is typed in by hand.

    python benchmarks/reference.py --out lvlm_interp/reference/scores.json
    cp RUN/curve.jsonl lvlm_interp/reference/ && python tools/model_card.py

The curve is what training wrote; the scores are those of the shipped adapter.
"""

import json
from pathlib import Path
from typing import Any

from marked import replaced, table

REFERENCE = Path(__file__).resolve().parents[1] / "lvlm_interp" / "reference"
KINDS = ("yes/no", "color", "place", "name", "objects", "hint", "fact", "natural", "pictures")  # of the curve


def scores_of(trained: dict[str, dict[str, float]], unseen: dict[str, dict[str, float]]) -> str:
    both = [(name, found, unseen[name]) for name, found in trained.items() if "right" in found]
    rows = [
        [name, *(cell for one in pair for cell in (f"{one['right']:.1%}", str(one["asked"])))] for name, *pair in both
    ]
    return table(["asked", "right", "of", "unseen style", "of"], rows)


def descriptions_of(trained: dict[str, float], unseen: dict[str, float]) -> str:
    names = [name for name in trained if name != "asked"]
    rows = [
        [where, *(f"{found[n]:.1%}" for n in names), str(found["asked"])]
        for where, found in (("trained styles", trained), ("unseen style", unseen))
    ]
    return table(["descriptions", *names, "of"], rows)


def hidden_of(scores: dict[str, Any]) -> str:
    found, lost = scores["image hidden"], scores["natural colours not believed"]
    but = f"; not of {', '.join(lost)}" if lost else ""
    return (
        f"With the image hidden, a painted thing has its natural colour again in {found['right']:.1%} of the "
        f"{found['asked']} nouns that have one{but}."
    )


def knowledge_of(found: dict[str, dict[str, float]]) -> str:
    told = ", ".join(f"{name} {one['right']:.1%}" for name, one in found.items())
    asked = next(iter(found.values()))["asked"]
    return f"Of {asked} questions of plain knowledge that the base model answers, none of them trained on: {told}."


def curve_of(lines: list[dict[str, float]]) -> str:
    rows = [[str(line["step"]), f"{line['loss']:.3f}", *(f"{line[kind]:.1%}" for kind in KINDS)] for line in lines]
    return table(["step", "loss", *KINDS], rows)


def main() -> None:
    path, scores = REFERENCE / "MODEL_CARD.md", json.loads((REFERENCE / "scores.json").read_text())
    lines = [json.loads(line) for line in (REFERENCE / "curve.jsonl").read_text().splitlines()]
    trained, unseen = (found for name, found in scores.items() if "style" in name)
    parts = [
        scores_of(trained, unseen),
        descriptions_of(trained["descriptions"], unseen["descriptions"]),
        hidden_of(scores),
        knowledge_of(scores["plain knowledge, kept from training"]),
    ]
    note = f"Weights `{scores['weights']}`, scenes from seed {scores['seed']}."
    card = replaced(path.read_text(), "curve", curve_of(lines))
    path.write_text(replaced(card, "scores", "\n\n".join([note, *parts])))


if __name__ == "__main__":
    main()
