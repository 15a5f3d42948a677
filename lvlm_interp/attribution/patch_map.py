"""How much each patch of an image supports each part of an answer: what every heatmap method gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.attribution.against import rather_than
from lvlm_interp.engine.score import HideFrom
from lvlm_interp.errors import InputError
from lvlm_interp.fields import POSITIVE, Range
from lvlm_interp.inputs.view import Box
from lvlm_interp.inputs.words import Word, by_word
from lvlm_interp.pairs import Comparable
from lvlm_interp.results import heading, html, number_of, table, text
from lvlm_interp.shown import table_html


@dataclass(frozen=True)
class PatchMap(Comparable):
    """How much each patch of one image supports each answer token.

    Attributes:
        tokens: the answer tokens (or words, …) as text.
        values: what the method gives each patch, `[answer, row, column]`. By occlusion: the value of the token with
            everything seen, minus the same without this patch, positive where the patch speaks for the token. By
            default log-odds, in nats: odds p / (1 − p) rather than p, since a token that is nearly certain stays nearly
            certain whatever single patch is hidden.
        image_total: the same for the whole of this image, `[answer]`. Patches overlap in what they tell, so that by
            occlusion `values` does not add up to it; where a method promises that, `residual` says how far it holds.
        boxes: (left, top, right, bottom) of every patch in pixels of the original image, `[row, column, 4]`; in patches
            where only processed pixels were given.
        size: width and height of the original image, in the same unit.
        hide_from: who lost sight of a patch: `text` rows only, or `all` rows; None where nothing is hidden.
        value: which value.
        unit: nats or logits; of methods that do not measure the value, what they measure in.
        alternatives: for each token, what the value compares it with; nothing for those that compare with none.
        alternative_ids: their token ids.
        says: what the numbers are, of the value or beside it: "lost", by occlusion.
        error: the standard error of every number, `[answer, row, column]`, where a method draws at random.
        adds: whether the numbers of tokens add up to that of a word, as nats do, and shares of attention do not.
        exact: which patches were hidden, where a method hides some and tells the others' numbers to first order; None
            where all are made alike.
        residual: `image_total` less the sum of `values`, `[answer]`, where a method promises that this is 0.
    """

    along: ClassVar[Mapping[str, str]] = {"tokens": "answer"}
    keys = ("answer", "token", "row", "column", "left", "top", "right", "bottom")
    agreeing = ("tokens", "value", "unit", "alternatives", "hide_from", "size", "boxes", "says", "method")
    settings = (
        *("substrate", "picture", "labels", "by", "baseline", "noise", "seen", "insight", "necessity", "scope"),
        *("update", "pending", "layers", "heads", "drop_sinks", "generic", "filtered", "tower", "count", "reading"),
    )
    beside = ("error", "exact")
    ranges: ClassVar[Mapping[str, Range]] = {"error": POSITIVE}
    tokens: tuple[str, ...]
    values: Float[Tensor, "answer row column"]
    image_total: Float[Tensor, " answer"]
    boxes: Float[Tensor, "row column 4"]
    size: tuple[int, int]
    hide_from: HideFrom | None = None
    value: str = "logodds"
    unit: str = "nats"
    alternatives: tuple[tuple[str, ...], ...] = ()
    alternative_ids: tuple[tuple[tuple[int, ...], ...], ...] = ()
    says: str = "lost"
    adds: bool = True
    error: Float[Tensor, "answer row column"] | None = None
    residual: Float[Tensor, " answer"] | None = None
    exact: Bool[Tensor, "row column"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(*self.size, self.values.shape[1], self.values.shape[2]) < 1:
            raise InputError(f"a map has patches and a picture; got {list(self.values.shape)} of a picture {self.size}")
        left, top, right, bottom = self.boxes.unbind(-1)
        if not ((left <= right) & (top <= bottom)).all():
            raise InputError("boxes of a map are (left, top, right, bottom), left before right and top before bottom")
        if not ((left < self.size[0]) & (top < self.size[1]) & (right > 0) & (bottom > 0)).any():  # padding has some
            raise InputError(f"every box of the map lies outside of its picture, which is of {self.size} pixels")
        for some in (self.alternatives, self.alternative_ids):
            if len(some) not in (0, len(self.tokens)):
                raise InputError(f"a map of {len(self.tokens)} parts has alternatives for {len(some)}")

    @property
    def method(self) -> str:
        """What made it."""
        return self.provenance.method

    @property
    def note(self) -> str:
        rows, columns = self.values.shape[1:]
        hidden = f"; hidden from {self.hide_from}" if self.hide_from else ""
        least = "" if self.residual is None else f"; misses its sum by {float(self.residual.abs().max()):.1e}"
        rather = rather_than(self.alternatives)
        part = "" if self.exact is None else f", {int(self.exact.sum())} hidden and the others to first order"
        return f"{self.value} {self.says}, in {self.unit}; {rows} × {columns} patches{part}{hidden}{least}{rather}"

    def peak(self, token: int | str = 0) -> tuple[int, int]:
        """Row and column of the patch that supports a token most, which is told by its number, from 0, or its text.

        Raises:
            InputError: no such token.
        """
        number = number_of(self.tokens, token, "the map")
        row, column = divmod(int(self.values[number].argmax()), self.values.shape[2])
        return row, column

    def peak_box(self, token: int | str = 0) -> Box:
        """The box of that patch in the original image; see `peak`."""
        left, top, right, bottom = self.boxes[self.peak(token)].tolist()
        return left, top, right, bottom

    def words(self, words: Sequence[Word]) -> PatchMap:
        """The same map by word: what its tokens lose, added up; `attribute(unit="word")` takes words as wholes.

        Raises:
            InputError: numbers that do not add up.
        """
        if not self.adds:
            raise InputError(
                f"numbers of {self.method!r} are not added up over the tokens of a word: attribute(…, unit='word') "
                "makes the map of words"
            )
        values, total = by_word(self.values, words), by_word(self.image_total, words)
        none: dict[str, Any] = {"alternatives": (), "alternative_ids": (), "error": None}  # draws are of all tokens
        missed = None if self.residual is None else by_word(self.residual, words)
        texts = tuple(word.text for word in words)
        return dataclasses.replace(self, tokens=texts, values=values, image_total=total, residual=missed, **none)

    def peaks(self) -> pd.DataFrame:
        """One row for each token: what hiding its strongest patch takes from it, where that is, and the whole image."""
        sides = [self.peak_box(i) for i in range(len(self.tokens))]
        boxes = [f"({left:.0f}, {top:.0f})–({right:.0f}, {bottom:.0f})" for left, top, right, bottom in sides]
        found = {"strongest patch": boxes, "patch": self.values.flatten(1).amax(1).tolist()}
        return pd.DataFrame({"token": self.tokens, **found, "image": self.image_total.tolist()})

    def to_frame(self) -> pd.DataFrame:
        """One row for each token and patch."""
        answers, rows, columns = self.values.shape
        index = pd.MultiIndex.from_product([range(answers), range(rows), range(columns)])
        frame = index.to_frame(index=False, name=["answer", "row", "column"])
        frame.insert(1, "token", [self.tokens[i] for i in frame["answer"]])
        boxes = self.boxes.reshape(-1, 4).repeat(answers, 1)
        sides = {name: boxes[:, i].tolist() for i, name in enumerate(("left", "top", "right", "bottom"))}
        error = {} if self.error is None else {"error": self.error.flatten().tolist()}
        exact = {} if self.exact is None else {"exact": self.exact.flatten().tolist() * answers}
        return self.identified(frame.assign(value=self.values.flatten().tolist(), **error, **exact, **sides))


@text.register
def _peaks(result: PatchMap) -> str:
    return f"{heading(result)}\n{table(result.peaks())}"


@html.register
def _peaks_in_a_cell(result: PatchMap) -> str:
    return table_html(result.peaks(), caption=f"{result.note}; figures.heatmap draws it")
