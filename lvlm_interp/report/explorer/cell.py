"""A diagnosis in a notebook's cell."""

from __future__ import annotations

from typing import Any

from lvlm_interp.report.diagnosis import Diagnosis
from lvlm_interp.report.explorer import maps, templates
from lvlm_interp.report.explorer.section import THUMBNAIL, section
from lvlm_interp.report.palette import SOURCES
from lvlm_interp.report.pictures import embedded, faded
from lvlm_interp.results import html

MOST_MAPS = 6
NO_SOURCE = "#8a8a8a"


@html.register(Diagnosis)
def fragment(diagnosis: Diagnosis) -> str:
    """What the page shows, compactly and without scripts."""
    shown = section(diagnosis, "d")
    for word in shown["words"]:
        word["color"] = SOURCES[word["source"]].color() if word["source"] in SOURCES else NO_SOURCE
    about = diagnosis.provenance
    return templates.render(
        "notebook.html",
        s=shown,
        maps=[_map(diagnosis, word) for word in shown["told"][:MOST_MAPS] if diagnosis.patches is not None],
        pale=embedded(faded(diagnosis.image), THUMBNAIL),
        model=f"Model {about.model}, weights {about.weights}.",
    )


def _map(diagnosis: Diagnosis, word: dict[str, Any]) -> dict[str, Any]:
    index = word["index"]
    return {"caption": word["text"], "alt": maps.label(diagnosis, index), "tiles": maps.tiles(diagnosis, index)}
