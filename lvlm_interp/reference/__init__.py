"""The small vision-language model that ships, and the scenes that it was trained on.

DINOv2-S + LLaVA's projector + SmolLM2-135M-Instruct, an ordinary transformers checkpoint once built.
"""

from __future__ import annotations

from pathlib import Path

from lvlm_interp.reference.scenes import Item, Question, Scene, make_scene, make_scenes, nouns

__all__ = ["Item", "Question", "Scene", "build", "clear", "make_scene", "make_scenes", "nouns", "where"]


def build() -> Path:
    """Make the reference checkpoint if it is not there (two downloads on first use); returns its directory."""
    from lvlm_interp.reference import assemble

    return assemble.build()


def where() -> Path:
    """The directory of the reference checkpoint, whether it is built yet or not."""
    from lvlm_interp.reference import assemble

    return assemble.where()


def clear() -> list[Path]:
    """Remove what was fetched and built; returns what was removed."""
    from lvlm_interp.reference import assemble

    return assemble.clear()
