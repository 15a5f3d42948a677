"""What can be decoded in each layer: one line for each result."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes

from lvlm_interp.errors import InputError
from lvlm_interp.probes.result import ProbeResult
from lvlm_interp.report.figures import drawing
from lvlm_interp.report.figures.drawing import figure
from lvlm_interp.report.figures.labels import need_types, plain, row_numbers, with_unit


@figure
def probe_layers(
    found: Mapping[str, ProbeResult],
    metric: str | None = None,
    ax: Axes | None = None,
    *,
    title: str | None = None,
) -> Axes:
    """One line for each result over its sites in order: a score with its interval, and dotted what guessing gets.

    Args:
        found: name → result of `fit_probes`, each with one site for each layer.
        metric: a metric of all of them, the first by default; or `selectivity`, which has no interval.
        ax: where to draw.
        title: names the metric by default.

    Raises:
        InputError: no results, or a metric that one does not have.
    """
    if not found:
        raise InputError("no results to draw")
    ax = drawing.axes(ax, 6.4, 3.6)
    name = metric or next(iter(found.values())).metrics[0]
    for number, (label, result) in enumerate(found.items()):
        layers, unit = row_numbers(result, len(result.sites))
        _line(ax, result, name, layers, f"C{number}", label)
    ax.set(xlabel=unit, ylabel=with_unit(name))
    drawing.title(ax, title or f"{plain(name).capitalize()} of probes on held-out examples")
    ax.legend(frameon=False)
    drawing.quiet(ax)
    return ax


def _line(ax: Axes, result: ProbeResult, name: str, layers: list[int], color: str, label: str) -> None:
    if name == "selectivity":
        need_types(result)
        ax.plot(layers, result.selectivity, color=color, label=label)
        return
    if name not in result.metrics:
        raise InputError(f"no metric {name!r}: {label!r} has {list(result.metrics)}, and 'selectivity'")
    row = result.metrics.index(name)
    ax.plot(layers, result.values[row], color=color, label=label)
    ax.fill_between(layers, result.low[row], result.high[row], color=color, alpha=0.2, linewidth=0)
    ax.axhline(float(result.baseline[row]), color=color, linestyle=":", linewidth=0.9)
