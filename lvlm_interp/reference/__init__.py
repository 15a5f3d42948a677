"""The small vision-language model that ships, and the scenes that it was trained on.

DINOv2-S + LLaVA's projector + SmolLM2-135M-Instruct, an ordinary transformers checkpoint once built.
"""

from __future__ import annotations

from pathlib import Path

from lvlm_interp.given import explained
from lvlm_interp.reference.scenes import Item, Question, Scene, make_scene, make_scenes, nouns

__all__ = ["Item", "Question", "Scene", "build", "clear", "make_scene", "make_scenes", "nouns", "ready", "where"]


@explained
def build(version: str | None = None) -> Path:
    """Make the reference checkpoint if it is not there, or not whole; returns its directory.

    Args:
        version: `"0.1"` and others, see `reference.adapters`; by default the latest.

    The first time, two packages are downloaded. What is there is compared with what was built, byte for byte.
    """
    from lvlm_interp.reference import assemble

    return assemble.build(*([] if version is None else [version]))


@explained
def ready(version: str | None = None) -> Path:
    """As `build`, for who is about to open it: one that is there and damaged is an error, which says what is."""
    from lvlm_interp.reference import assemble

    return assemble.ready(*([] if version is None else [version]))


@explained
def where(version: str | None = None) -> Path:
    """The directory of the reference checkpoint, whether it is built yet or not."""
    from lvlm_interp.reference import assemble

    return assemble.where(*([] if version is None else [version]))


def clear() -> list[Path]:
    """Remove what was fetched and built; returns what was removed."""
    from lvlm_interp.reference import assemble

    return assemble.clear()
