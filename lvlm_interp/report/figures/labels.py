"""What several figures say: titles, the numbers of rows, the names of metrics."""

from __future__ import annotations

import re

from lvlm_interp.errors import InputError
from lvlm_interp.inside.direct import DirectAttribution
from lvlm_interp.probes.result import ProbeResult
from lvlm_interp.report.figures.lettering import quoted


def token_title(found: DirectAttribution, token: int, what: str) -> str:
    """“Purple” against “Yellow”, and what is shown."""
    against = f" against {quoted(found.against)}" if found.against else ""
    return f"{quoted(found.target[token])}{against}, {what}"


def row_numbers(found: ProbeResult, count: int) -> tuple[list[int], str]:
    """The numbers of the blocks that rows of sites are in, where their names tell; else the rows' own."""
    firsts = found.sites[:: len(found.sites) // count]
    blocks = [int(told[1]) for name in firsts if (told := re.search(r"\bblocks\.(\d+)\.", name))]
    return (blocks, "block") if len(blocks) == len({*blocks}) == count else (list(range(count)), "site")


def plain(metric: str) -> str:
    """A metric's name as words."""
    return metric.replace("_", " ")


def with_unit(metric: str) -> str:
    """The same with its unit, where it has one."""
    return plain(metric) + (", pixels" if metric == "pixel_error" else "")


def need_types(found: ProbeResult) -> None:
    """Raise where selectivity is asked for, and there was no control task to hold it against."""
    if found.selectivity.isnan().all():
        raise InputError("selectivity is held against a control task, which needs types: fit_probes(…, types=…)")
