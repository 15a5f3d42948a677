"""Results as matplotlib figures. Every function takes a result, draws on `ax` or on a figure of its own, and returns
the Axes; `ax.figure.savefig(…)` keeps it. pyplot is not touched: nothing global changes, nothing has to be closed.

Each figure is a file of this folder, found by itself: what `drawing.figure` marks is a name here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from matplotlib.axes import Axes

from lvlm_interp.report.figures.drawing import FIGURES

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")


def __getattr__(name: str) -> Callable[..., Axes]:
    if name not in FIGURES:
        raise AttributeError(f"no figure {name!r}; there are {sorted(FIGURES)}")
    return FIGURES[name]


def __dir__() -> list[str]:
    return sorted(FIGURES)
