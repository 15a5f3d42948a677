"""Results made readable: a diagnosis, figures, HTML, and files to keep."""

from __future__ import annotations

import importlib
from types import ModuleType

# Whatever is imported from here, a diagnosis knows how to show itself in a notebook: the explorer registers that.
from lvlm_interp.report import explorer

__all__ = ["explorer"]
_ROOMS = ("diagnosis", "export", "figures")


def __getattr__(name: str) -> ModuleType:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
