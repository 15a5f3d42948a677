"""Long lists of names, made short: blocks and heads that are alike are told once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar

V = TypeVar("V")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


class Sites(dict[str, V]):
    """Sites by name; shown, the names alone, those of all blocks together."""

    def __repr__(self) -> str:
        told = grouped(self)
        return f"{len(self)} sites\n" + "\n".join(f"  {name}" for name in told)


def grouped(names: Iterable[str]) -> list[str]:
    """`blocks.{0–29}.hook_resid_pre` for thirty names; in the order of the first of each."""
    found: dict[str, list[int]] = {}
    for name in names:
        numbers = NUMBER.findall(name)
        pattern = NUMBER.sub("{}", name, count=1)
        found.setdefault(pattern, []).extend(int(number) for number in numbers[:1])
    return [pattern.format(f"{{{_ranges(numbers)}}}") if numbers else pattern for pattern, numbers in found.items()]


def _ranges(numbers: list[int]) -> str:
    """`0–3, 7`."""
    told: list[list[int]] = []
    for number in sorted(set(numbers)):
        if told and number == told[-1][1] + 1:
            told[-1][1] = number
        else:
            told.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}–{high}" for low, high in told)
