"""Definitions of credit, judged by the swap test: how often the source that each names is the one that decides.

Only examples with one source that decides, and nothing that speaks for another, can judge: of `several`, no single
name would be right. Beside the definitions stand guesses that look at no model: the source that decides most often,
and the one that does so within the kind of question. Both are chosen on the same examples, and so look better than they
would on others: a definition that does not beat them says nothing.

Intervals: Wilson 1927, as wide as a bootstrap over groups (examples about one picture) asks for.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.attribution.deciding import NAMED
from lvlm_interp.attribution.definitions import DEFINITIONS, Definition, definition_of, described
from lvlm_interp.attribution.swap import Swapped, SwapTest
from lvlm_interp.bootstrap import bootstrap_weights, share_interval
from lvlm_interp.errors import InputError
from lvlm_interp.fields import POSITIVE, SHARE, Range
from lvlm_interp.given import explained, need_seed
from lvlm_interp.results import Provenance, Result, heading, html, table, text
from lvlm_interp.shown import table_html
from lvlm_interp.storing import storable

ALL = "all"
CONSTANT, BY_KIND = "guess: the most frequent", "guess: the most frequent of its kind"


@storable
@dataclass(frozen=True)
class Miss:
    """An example of which a definition names another source than the one that decides.

    Attributes:
        definition, example, kind: of what.
        decides: the source that does.
        named: the source that is named; empty where none is.
        first, second: the two sources that have most.
        first_value, second_value: what they have, in the unit of the definition's value; NaN where there is no second.
    """

    blank: ClassVar[frozenset[str]] = frozenset({"second_value"})
    definition: str
    example: str
    kind: str
    decides: str
    named: str
    first: str
    first_value: float
    second: str
    second_value: float


@dataclass(frozen=True)
class Judgement(Result):
    """How often each definition of credit is right.

    Attributes:
        definitions: their names, and the two guesses.
        kinds: `all`, and the kinds of question.
        right: the share of examples of which the source that is named decides, `[definition, kind]`.
        low, high: its interval.
        counts: how many examples there are, `[kind]`.
        confidence: of the intervals.
        misses: the examples that definitions fail on.
        left_out: how many examples cannot judge, and why.
    """

    along: ClassVar[dict[str, str]] = {"definitions": "definition", "kinds": "kind"}
    ranges: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(("right", "low", "high", "confidence"), SHARE),
        **dict.fromkeys(("counts", "left_out"), POSITIVE),
    }
    blank = frozenset({"low", "high"})
    definitions: tuple[str, ...]
    kinds: tuple[str, ...]
    right: Float[Tensor, "definition kind"]
    low: Float[Tensor, "definition kind"]
    high: Float[Tensor, "definition kind"]
    counts: Int[Tensor, " kind"]
    confidence: float
    misses: tuple[Miss, ...]
    left_out: dict[str, int]

    @property
    def note(self) -> str:
        out = ", ".join(f"{count} {why}" for why, count in self.left_out.items())
        left = f"; left out: {out}" if out else ""
        count = f"{int(self.counts[0])} examples"
        return f"share of {count} whose deciding source is named, with its {self.confidence:.0%} interval{left}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each definition and kind: `right` with `low` and `high`, all from 0 to 1, and how many examples."""
        rows = [
            {
                "definition": definition,
                "kind": kind,
                **{name: float(getattr(self, name)[i, j]) for name in ("right", "low", "high")},
                "examples": int(self.counts[j]),
            }
            for i, definition in enumerate(self.definitions)
            for j, kind in enumerate(self.kinds)
        ]
        return self.identified(pd.DataFrame(rows))

    def table(self) -> pd.DataFrame:
        """A row for each definition: `right`, `low` and `high` of all examples, and `right[kind]` of each kind."""
        every = {name: getattr(self, name)[:, 0].tolist() for name in ("right", "low", "high")}
        by_kind = {f"right[{kind}]": self.right[:, j].tolist() for j, kind in enumerate(self.kinds) if j}
        return pd.DataFrame({"definition": self.definitions, **every, **by_kind})

    def missed(self) -> pd.DataFrame:
        """A row for each example that a definition fails on, with the two sources that have most."""
        return pd.DataFrame(
            [vars(miss) for miss in self.misses], columns=[field.name for field in dataclasses.fields(Miss)]
        )

    def of(self, definition: str, kind: str = ALL) -> float:
        """The share of one definition, for one kind of question.

        Raises:
            InputError: there is no such definition or kind.
        """
        for name, known in ((definition, self.definitions), (kind, self.kinds)):
            if name not in known:
                raise InputError(f"{name!r} was not judged; there are {list(known)}")
        return float(self.right[self.definitions.index(definition), self.kinds.index(kind)])


@text.register
def _table(result: Judgement) -> str:
    return f"{heading(result)}\n{table(result.table())}"


@html.register
def _table_in_a_cell(result: Judgement) -> str:
    return table_html(result.table(), caption=f"{result.note}; figures.judged_definitions draws it")


@explained
def judged(
    test: SwapTest,
    definitions: str | Sequence[str | Definition] | None = None,
    *,
    unclear: bool = False,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> Judgement:
    """Hold definitions of credit against what decides; no model is run.

    Args:
        test: from `swap_test`.
        definitions: by name, or `Definition`s of your own; by default all that have a name and are of a part of the
            answer that the test has credit for.
        unclear: count examples too where something speaks for another source.
        confidence: of the intervals.
        samples: of the bootstrap over groups.
        seed: of the samples.

    Raises:
        InputError: no definition of that name, two of one name, a confidence that is not between 0 and 1, or no example
            that can judge.
    """
    chosen = _chosen(test, definitions)
    _need(chosen, confidence, samples, seed)
    examples, truths, left_out = _judging(test, unclear)
    if not examples:
        raise InputError(f"none of the {len(test.examples)} examples can judge: {left_out}")
    namings = {one.name: [one.names(example.splits[one.part]) for example in examples] for one in chosen}
    namings |= _guesses(examples, truths)
    right = torch.tensor([[a == b for a, b in zip(named, truths, strict=True)] for named in namings.values()])
    kinds = list(dict.fromkeys(example.kind for example in examples if example.kind not in ("", ALL)))
    members = [torch.tensor([kind in (ALL, e.kind) for e in examples]) for kind in (ALL, *kinds)]
    generator = torch.Generator().manual_seed(int(seed))
    columns = [_column(right[:, there], _groups(examples, there), confidence, samples, generator) for there in members]
    shares, low, high = (torch.stack(parts, 1) for parts in zip(*columns, strict=True))
    return Judgement(
        definitions=tuple(namings),
        kinds=(ALL, *kinds),
        right=shares,
        low=low,
        high=high,
        counts=torch.stack([there.sum() for there in members]),
        confidence=confidence,
        misses=tuple(_misses(chosen, examples, truths)),
        left_out=left_out,
        provenance=_provenance(test, chosen, unclear, samples, seed),
    )


def _chosen(test: SwapTest, definitions: str | Sequence[str | Definition] | None) -> list[Definition]:
    """The definitions to judge, of parts that there is credit for."""
    each = [set(example.splits) for example in test.examples if example.splits]
    there = set.intersection(*each) if each else set()
    if definitions is None:
        return [one for one in DEFINITIONS.values() if one.part in there or not each]
    chosen = [definition_of(one) for one in ([definitions] if isinstance(definitions, str) else definitions)]
    if each and (lost := [one for one in chosen if one.part not in there]):
        raise InputError(
            f"{lost[0].name!r} is of the {lost[0].part}, and this test has credit of {sorted(there)}: ask swap_test "
            "for it with parts="
        )
    return chosen


def _need(chosen: Sequence[Definition], confidence: float, samples: int, seed: int) -> None:
    names = [one.name for one in chosen]
    if twice := next((name for name in names if names.count(name) > 1 or name in (CONSTANT, BY_KIND)), None):
        raise InputError(f"two definitions are called {twice!r}; tables tell them apart by their names")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is between 0 and 1, got {confidence}")
    if samples < 1:
        raise InputError(f"samples is 1 or more, got {samples}")
    need_seed(seed)


# --- which examples can judge, and what nobody needs a model for ----------------------------------


def _judging(test: SwapTest, unclear: bool) -> tuple[list[Swapped], list[str], dict[str, int]]:
    """The examples that can judge, which source decides each, and how many others there are, by reason."""
    out: Counter[str] = Counter()
    examples, truths = [], []
    for example, verdict in zip(test.examples, test.verdicts, strict=True):
        why = "without a verdict" if not verdict.source else "decided by several" * (verdict.source not in NAMED)
        why = why or ("unclear" if not (verdict.clear or unclear) else "without credit" * (not example.splits))
        if why:
            out[why] += 1
        else:
            examples.append(example)
            truths.append(verdict.source)
    return examples, truths, dict(out)


def _guesses(examples: Sequence[Swapped], truths: Sequence[str]) -> dict[str, list[str]]:
    """The source that decides most often: of all examples, and of each kind."""
    by: dict[str, Counter[str]] = {}
    for example, truth in zip(examples, truths, strict=True):
        by.setdefault(example.kind, Counter())[truth] += 1
    most = Counter(truths).most_common(1)[0][0]
    return {CONSTANT: [most] * len(truths), BY_KIND: [by[e.kind].most_common(1)[0][0] for e in examples]}


def _groups(examples: Sequence[Swapped], there: Bool[Tensor, " example"]) -> Int[Tensor, " member"]:
    """The number of each group among some examples."""
    names = [example.group for example, here in zip(examples, there.tolist(), strict=True) if here]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])


def _column(
    right: Bool[Tensor, "definition member"],
    groups: Int[Tensor, " member"],
    confidence: float,
    samples: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """The share that each definition has right of some examples, and its interval."""
    weights = bootstrap_weights(groups, samples, generator)
    shares = right.float() @ weights.T / weights.sum(1)
    low, high = share_interval(shares, confidence, int(groups.max()) + 1, len(groups))
    return shares[:, 0], low, high


def _misses(chosen: Sequence[Definition], examples: Sequence[Swapped], truths: Sequence[str]) -> Iterator[Miss]:
    for definition in chosen:
        for example, truth in zip(examples, truths, strict=True):
            split = example.splits[definition.part]
            if (named := definition.names(split)) != truth:
                nats = definition.nats(split)
                (first, most), (second, next_most) = [*nats.items(), ("", math.nan)][:2]
                about = (definition.name, example.name, example.kind, truth, named)
                yield Miss(*about, first, most, second, next_most)


def _provenance(test: SwapTest, chosen: Sequence[Definition], unclear: bool, samples: int, seed: int) -> Provenance:
    """That of the test, and how it was judged."""
    told = {"definitions": list(map(described, chosen)), "unclear": unclear, "samples": samples, "by": test.by}
    parameters = {**test.provenance.parameters, **told}
    return dataclasses.replace(test.provenance, method="swap test, judged", parameters=parameters, seed=seed)
