"""The whole answer to one question, as a result: for every word, where it came from and where in the image."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from lvlm_interp.attribution.credit import CreditSplit, shares
from lvlm_interp.attribution.definitions import dominant
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.counterfactuals.contrast import Contrast, TokenClass, token_classes
from lvlm_interp.errors import InputError
from lvlm_interp.fields import POSITIVE, need_within
from lvlm_interp.inputs.view import Box
from lvlm_interp.inputs.words import Word, split_words
from lvlm_interp.report.function_words import is_function_word
from lvlm_interp.report.sentences import sentence, signed
from lvlm_interp.results import Result, heading, text
from lvlm_interp.shown import printable

FEW_WORDS, LONGEST_LINE = 8, 160  # that are printed, and letters of question and answer
Numbers = Mapping[str, float]
"""Nats of `prior`, each role present and `total`."""


@dataclass(frozen=True)
class Peak:
    """The patch that supports a word most: its box in pixels of the original image, and by how many nats."""

    box: Box
    nats: float


@dataclass(frozen=True)
class WordReport:
    """Everything about one word of the answer, as plain numbers.

    Attributes:
        index: its place among the words, from 0.
        word: its text and its tokens.
        odds, full: nats of `prior`, each role present and `total`, by the two values of `credit`.
        together: `odds` with the question a player like the others, and `prior` what is there with nothing seen.
        alternatives: the words that `odds` compares it with.
        with_logprob, without_logprob: log-probability of the whole word with and without the image, nats.
        delta: CAL's Δ summed over its tokens, raw logits.
        delta_nats: the same in nats.
        kind: its class, as `contrast` classes tokens, by `delta_nats`.
        peak: where in the image, or None where there is no map.
    """

    index: int
    word: Word
    odds: Numbers
    full: Numbers
    together: Numbers
    alternatives: tuple[str, ...]
    with_logprob: float
    without_logprob: float
    delta: float
    delta_nats: float
    kind: TokenClass
    peak: Peak | None

    @property
    def text(self) -> str:
        return self.word.text

    @property
    def credits(self) -> dict[str, float]:
        """`odds` without its total: what it is made of."""
        return {name: value for name, value in self.odds.items() if name != "total"}

    @property
    def shares(self) -> dict[str, float]:
        """Positive credits of `odds` as shares of their sum."""
        return shares(self.credits)

    @property
    def source(self) -> str | None:
        """`prior` or the role that the word mostly came from; None if nothing speaks for it."""
        return dominant(self.shares)

    @property
    def unlikely(self) -> bool:
        """Whether the words it is compared with are more likely: not what the model would say."""
        return self.odds["total"] < 0

    @property
    def tells(self) -> bool:
        """Whether it says something by itself: no punctuation, and no word such as "the" or "of"."""
        return self.word.is_content and not is_function_word(self.text)

    @property
    def sentence(self) -> str:
        """Where it came from, in words."""
        peak = None if self.peak is None else (self.peak.box, self.peak.nats)
        return printable(sentence(self.text, self.credits, self.shares, peak))

    @property
    def likely(self) -> tuple[float, float]:
        """Probability of the whole word with and without the image, given the answer so far."""
        return math.exp(self.with_logprob), math.exp(self.without_logprob)


@dataclass(frozen=True)
class Diagnosis(Result):
    """Where every word of an answer came from.

    Attributes:
        question, context, system: what was asked, as text; None where nothing was given.
        answer: the answer, as text.
        answer_generated: whether the model gave it (greedily), or the user.
        answer_finished: False if the model was cut off before it ended its turn.
        words: the words of the answer, punctuation included.
        contrast: with and without the image, by token.
        credit: prior, question, context, system and image, by word; both values are inside.
        patches: where in the image, by word; None if its tokens have no place in the picture.
        no_map: why there are no patches, or None.
        picture: the image, RGB.
        spans: the tokens of each word, (start, stop), counted from 0; none in what older releases wrote.
    """

    too_large: ClassVar[frozenset[str]] = frozenset({"picture"})
    question: str
    answer: str
    answer_generated: bool
    answer_finished: bool
    context: str | None
    system: str | None
    words: tuple[str, ...]
    contrast: Contrast
    credit: CreditSplit
    patches: PatchMap | None
    no_map: str | None
    picture: UInt8[Tensor, "height width 3"] = dataclasses.field(repr=False)
    spans: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = {len(self.words), len(self.credit.tokens), len(self.spans or split_words(self.contrast.tokens))}
        if len(counts | ({len(self.patches.tokens)} if self.patches else set())) > 1:
            raise InputError(f"credit, contrast and map are of one answer; here they have {sorted(counts)} words")
        if self.patches and self.patches.size != self.image.size:
            raise InputError(f"the map is of a picture of {self.patches.size} pixels, this one has {self.image.size}")
        if "image" not in self.credit.players:
            raise InputError(f"the credit of a diagnosis is shared with the image; here it has {self.credit.players}")
        if "threshold" not in self.contrast.provenance.parameters:
            raise InputError("the contrast does not say from how many nats on a word counts as correlated")
        need_within(self.contrast.provenance.parameters["threshold"], "the contrast's threshold", POSITIVE)
        count = len(self.contrast.tokens)
        if odd := [span for span in self.spans if not 0 <= span[0] < span[1] <= count]:
            raise InputError(f"Diagnosis.spans holds {odd[0]}; it should hold first and last of {count} tokens")

    @property
    def image(self) -> Image.Image:
        """The picture, as a PIL image."""
        return Image.fromarray(self.picture.numpy())

    @property
    def reports(self) -> tuple[WordReport, ...]:
        """One report for each word."""
        spans = self.spans or [(part.start, part.stop) for part in split_words(self.contrast.tokens)]
        named = [Word(text, *span) for text, span in zip(self.words, spans, strict=True)]
        odds = self.credit.with_value("odds")
        rows = zip(*map(_records, (odds, self.credit.with_value("full"), odds.together())), strict=True)
        return tuple(self._report(i, word, *row) for i, (word, row) in enumerate(zip(named, rows, strict=True)))

    def _report(self, index: int, word: Word, odds: Numbers, full: Numbers, together: Numbers) -> WordReport:
        def summed(name: str) -> float:
            return float(getattr(self.contrast, name)[word.start : word.stop].sum())

        threshold = self.contrast.provenance.parameters["threshold"]
        delta_nats = summed("delta_nats")
        return WordReport(
            index=index,
            word=word,
            odds=odds,
            full=full,
            together=together,
            alternatives=tuple(text.strip() for text in self.credit.alternatives[index]),
            with_logprob=summed("with_logprob"),
            without_logprob=summed("without_logprob"),
            delta=summed("delta"),
            delta_nats=delta_nats,
            kind=token_classes(torch.tensor([delta_nats], dtype=torch.float64), threshold)[0],
            peak=self._peak(index),
        )

    def _peak(self, index: int) -> Peak | None:
        if self.patches is None:
            return None
        return Peak(self.patches.peak_box(index), float(self.patches.values[index].max()))

    @property
    def ranked(self) -> tuple[WordReport, ...]:
        """The words that say something, those first that the image changes most, either way (`delta_nats`).

        Function words are left out, unless there are no others.
        """
        content = [report for report in self.reports if report.word.is_content]
        chosen = [report for report in content if report.tells] or content
        return tuple(sorted(chosen, key=lambda report: -abs(report.delta_nats)))

    @property
    def note(self) -> str:
        return "by what the image does to a word"

    @property
    def sentences(self) -> tuple[str, ...]:
        """A sentence for each content word, in order."""
        return tuple(report.sentence for report in self.reports if report.word.is_content)

    def to_frame(self) -> pd.DataFrame:
        """One row a word.

        Columns: `word`; nats of `prior`, each role (`credit[image]`, …) and `total` by `odds`, and by `full` as
        `full[prior]`, …; `together[prior]` and `together[question]`, with the question a player like the others;
        `delta_nats`,
        `with_logprob`, `without_logprob` (sums over its tokens); `class`; `source` (what most of it came from); and of
        the patch that supports it most `peak_nats` and, in pixels, `peak_left`, `peak_top`, `peak_right`,
        `peak_bottom`.
        """
        return self.identified(pd.DataFrame([_row(report) for report in self.reports]))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; of the picture only its size and the SHA-256 of its RGB bytes."""
        pixels = self.picture.numpy().tobytes()
        size = [self.picture.shape[1], self.picture.shape[0]]
        rows = [{k: v for k, v in _row(report).items() if v is not None} for report in self.reports]
        image = {"size": size, "sha256": hashlib.sha256(pixels).hexdigest()}
        return {**super().to_dict(), "image": image, "by_word": rows, "sentences": list(self.sentences)}


@text.register
def _told(result: Diagnosis) -> str:
    """What the image did to the words that it changes most, a sentence each."""
    ranked = result.ranked
    rest = f"\n… and {len(ranked) - FEW_WORDS} other words; to_frame() has all" if len(ranked) > FEW_WORDS else ""
    told = [f"  {signed(report.delta_nats):>5} nats  {report.sentence}" for report in ranked[:FEW_WORDS]]
    asked = f"{result.question}  →  {result.answer}"
    asked = asked if len(asked) <= LONGEST_LINE else asked[: LONGEST_LINE - 1] + "…"
    return "\n".join([heading(result), asked, *told]) + rest


def _records(split: CreditSplit) -> list[dict[str, float]]:
    """For each word, nats of `prior`, each role and `total`."""
    parts = {"prior": split.prior, **dict(zip(split.players, split.credits.T, strict=True)), "total": split.total}
    return [dict(zip(parts, row, strict=True)) for row in zip(*(part.tolist() for part in parts.values()), strict=True)]


def _row(report: WordReport) -> dict[str, Any]:
    box = report.peak.box if report.peak else (None,) * 4
    sides = zip(("left", "top", "right", "bottom"), box, strict=True)
    return {
        "word": report.text,
        **{name if name in ("prior", "total") else f"credit[{name}]": value for name, value in report.odds.items()},
        **{f"full[{name}]": value for name, value in report.full.items()},
        "together[prior]": report.together["prior"],
        "together[question]": report.together.get("question", 0.0),
        "delta_nats": report.delta_nats,
        "with_logprob": report.with_logprob,
        "without_logprob": report.without_logprob,
        "class": report.kind,
        "source": report.source,
        "peak_nats": report.peak.nats if report.peak else None,
        **{f"peak_{side}": value for side, value in sides},
    }
