"""One self-contained page about diagnoses."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from markupsafe import Markup

from lvlm_interp.errors import InputError
from lvlm_interp.given import checked
from lvlm_interp.report.diagnosis import Diagnosis
from lvlm_interp.report.explorer import templates
from lvlm_interp.report.explorer.section import section
from lvlm_interp.report.palette import OPPOSES, SOURCES, SUPPORTS
from lvlm_interp.results import Result

TITLE = "Where did each word come from?"
MEANING = (
    "Credit is counterfactual. Each source is hidden alone and in every combination, positions kept, and the change in "
    "the word’s log-probability is shared out exactly (Shapley values). Prior + sources = total. It says what the word "
    "depended on, not whether the word is right.",
    "“odds” asks why this word rather than the ones it is compared with; “full” asks why this word rather than any. "
    "Percentages are shares of the positive credits of “odds”; what speaks against a word is not in them.",
    "The prior is what the model would say once it is asked, if it saw nothing else: that bananas are yellow. The "
    "question itself has credit only of words that stand in it; “together” takes it for a player like the others.",
    "A heatmap hides one image token at a time. Neighbouring patches tell the same, so the values are small, do not "
    "add up to the image’s credit, and miss what only several patches show together.",
    "An image token has mixed its surroundings before the language model reads it. A hot patch says that the token was "
    "read, not that the pixels under it alone would do; and none of this says through which layer or head.",
)


@checked
def page(diagnoses: Diagnosis | Sequence[Diagnosis], title: str | None = None) -> str:
    """One self-contained HTML page about one diagnosis or several.

    Args:
        diagnoses: what to show, in this order.
        title: heading of the page.

    Raises:
        InputError: nothing to show.
    """
    shown = [diagnoses] if isinstance(diagnoses, Diagnosis) else list(diagnoses)
    if not shown:
        raise InputError("there is no diagnosis to show: give one, or several")
    script = templates.text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    present = {name for d in shown for name in ("prior", *d.credit.roles)}
    return templates.render(
        "page.html",
        title=title or TITLE,
        sections=[section(d, f"d{i + 1}") for i, d in enumerate(shown)],
        legend=[source for source in SOURCES.values() if source.name in present],
        sources=SOURCES.values(),
        supports=SUPPORTS,
        opposes=OPPOSES,
        meaning=MEANING,
        provenance=_provenance(shown),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _provenance(diagnoses: Sequence[Diagnosis]) -> list[tuple[str, str]]:
    """What the numbers came from; said once where diagnoses agree."""
    rows: list[tuple[str, str]] = []
    for diagnosis in diagnoses:
        about = diagnosis.provenance
        revision = f", revision {about.revision}" if about.revision else ""
        rows.append(("Model", f"{about.model}{revision}, weights {about.weights}, {about.dtype}"))
        rows.append(("Versions", ", ".join(f"{name} {number}" for name, number in about.versions.items())))
        parts: list[Result | None] = [diagnosis.contrast, diagnosis.credit, diagnosis.patches]
        rows += [_method(part) for part in parts if part is not None]
    return sorted(dict.fromkeys(rows), key=lambda row: list(dict.fromkeys(name for name, _ in rows)).index(row[0]))


def _method(part: Result) -> tuple[str, str]:
    about = part.provenance
    given = {**about.parameters, **({"seed": about.seed} if about.seed is not None else {})}
    return about.method.capitalize(), ", ".join(f"{name} = {value}" for name, value in given.items())
