"""The swap test: which source an answer comes from, told by changing the real input.

Hiding asks what a model would say if it could not see. Whether credit is *true* is another question: show another
picture, give another hint, ask another question, take each away, and see which change changes the answer, and to what.
`attribution.deciding` says what "decides" means; `attribution.judging` holds definitions of credit against it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lvlm_interp.attribution.asked import asked_of
from lvlm_interp.attribution.credit import credit
from lvlm_interp.attribution.deciding import By, Verdict, moves, telling_word, verdict_of
from lvlm_interp.attribution.definitions import PARTS, Part
from lvlm_interp.attribution.occlusion import occlusion
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.attribution.saying import said
from lvlm_interp.attribution.split import CreditSplit
from lvlm_interp.attribution.variants import SOURCES, Case, Variant, Version, cases_of, need_no_markers
from lvlm_interp.engine.decoder import DecoderInputs, run_to_decoder
from lvlm_interp.errors import ImageError, InputError, LvlmInterpError
from lvlm_interp.fields import SHARE, Range
from lvlm_interp.given import explained, explaining
from lvlm_interp.inputs.called import DIGITS
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.media import open_image
from lvlm_interp.inputs.words import Unit, parts_of
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result
from lvlm_interp.storing import storable

LOCAL = 0.5  # share of the patches up to which a change of pixels has a place


@storable
@dataclass(frozen=True)
class Pointed:
    """Token occlusion held against a change of pixels that changes the answer.

    Attributes:
        inside: whether the patch that supports the answer most shows pixels that were changed.
        chance: the share of the patches that do: how often a patch at random would.
    """

    ranges: ClassVar[Mapping[str, Range]] = {"chance": SHARE}
    inside: bool
    chance: float


@explaining
@storable
@dataclass(frozen=True)
class Swapped:
    """One example, what was answered to its variants, and its credit.

    Attributes:
        name, kind, group: as in the table of variants.
        variants: the original first.
        splits: the credit of the answer to the original, by part: of all the `answer`, of the `word` that tells, and of
            the first `token` of that; none where it failed.
        pointed: see there; None where no change of the picture has a place.
        failed: why there is no credit; empty where there is.
    """

    name: str
    kind: str
    group: str
    variants: tuple[Variant, ...]
    splits: Mapping[str, CreditSplit] = field(default_factory=dict)
    pointed: Pointed | None = None
    failed: str = ""

    @property
    def answer(self) -> str:
        """To the original."""
        return self.variants[0].answer

    def verdict(self, by: By = "changed") -> Verdict:
        """Which source decides."""
        return verdict_of(self.variants, by)


@dataclass(frozen=True)
class SwapTest(Result):
    """Which source decides each answer.

    Attributes:
        examples: with their variants, answers and credit.
        by: what counts: an answer that `changed`, or one that `followed` what the changed source says. Another one
            needs no model: `dataclasses.replace(test, by="followed")`.
    """

    too_large = frozenset({"examples"})
    examples: tuple[Swapped, ...]
    by: By = "changed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.examples or not all(example.variants for example in self.examples):
            raise InputError("a swap test has examples, and each of them an original")

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Which source decides each example."""
        return tuple(example.verdict(self.by) for example in self.examples)

    @property
    def failures(self) -> dict[str, str]:
        """What could not be answered, and why, by example and row."""
        rows = ((f"{e.name}, row {v.row}, {v.source}", v.failed) for e in self.examples for v in e.variants)
        credits = ((f"{e.name}, credit", e.failed) for e in self.examples)
        return {where: why for where, why in (*rows, *credits) if why}

    @property
    def note(self) -> str:
        told = [verdict.source or "untold" for verdict in self.verdicts]
        counts = ", ".join(f"{name} {told.count(name)}" for name in dict.fromkeys(told))
        failed = f"; {len(self.failures)} failed" if self.failures else ""
        return f"{len(told)} examples: {counts}; by what {self.by}{failed}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each example: what it asks and answers, which source decides, and what is unclear."""
        rows = [_row(*pair) for pair in zip(self.examples, self.verdicts, strict=True)]
        return self.identified(pd.DataFrame(rows))

    def answers(self) -> pd.DataFrame:
        """A row for each variant: what it changed, what it was answered, and whether the answer changed and followed.

        `row` is that of the table, 0 where the test took a source away by itself.
        """
        return pd.DataFrame([_answered(e, v) for e in self.examples for v in e.variants])

    def pointing(self) -> pd.DataFrame:
        """How often the strongest patch of a heatmap shows pixels that a change of the answer took, and by chance.

        One row; NaN where no change of a picture has a place.
        """
        found = [example.pointed for example in self.examples if example.pointed]
        mean = {name: float(np.mean([getattr(p, name) for p in found] or [np.nan])) for name in ("inside", "chance")}
        return pd.DataFrame([{"examples": len(found), **mean}])

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values: the tables, without the numbers of the credits."""
        tables: dict[str, pd.DataFrame] = {"examples": self.to_frame(), "answers": self.answers()}
        return {**super().to_dict(), **{name: frame.to_dict("records") for name, frame in tables.items()}}


def _row(example: Swapped, verdict: Verdict) -> dict[str, Any]:
    told = {"case": example.name, "kind": example.kind, "question": example.variants[0].question}
    decides = {"answer": example.answer, "decides": verdict.source, "sources": ", ".join(verdict.deciding)}
    states = {name: verdict.states.get(name, "") for name in ("image", "context", "system")}
    return {**told, **decides, **states, "clear": verdict.clear, "why": verdict.why}


def _answered(example: Swapped, variant: Variant) -> dict[str, Any]:
    original, whole = example.variants[0], not (variant.failed or example.variants[0].failed)
    told = {name: getattr(variant, name) for name in ("row", "source", "image", "context", "question", "system")}
    return {
        "case": example.name,
        **told,
        "says": variant.says,
        "answer": variant.answer,
        "changed": whole and moves(original, variant),
        "followed": whole and bool(variant.says) and said(variant.answer) == said(variant.says),
        "failed": variant.failed,
    }


# --- the test -------------------------------------------------------------------------------------


@explained
@in_one_go
def swap_test(
    vlm: HookedVLM,
    table: pd.DataFrame,
    by: By = "changed",
    *,
    parts: Part | Sequence[Part] = PARTS,
    maps: bool = True,
    max_new_tokens: int = 64,
    progress: bool = False,
    interrupted: Literal["raise", "return"] = "raise",
) -> SwapTest:
    """Ask about examples and variants of their sources, and find which source decides each answer.

    Every row is answered greedily; the answer to the original, the word of it that tells, and the first token of that
    are split by `credit`, by `odds` and all values that compare with nothing, so that any definition of credit can be
    judged later. `attribution.deciding` says when a
    source decides; the documentation has the reasons, and what the test cannot see.

    Args:
        vlm: the model.
        table: a row for each version of an example (`attribution.variants.cases_of`, `tables.read_variants`).
        by: whether a change counts if the answer `changed`, or only if it `followed` what the variant says.
        parts: what of each answer is credited: all of the `answer`, the `word` that tells, its first `token`;
            definitions of credit of other parts cannot be judged.
        maps: hold the heatmap against the smallest change of pixels that changes the answer, where one has a place.
        max_new_tokens: where the model is cut off if it does not stop.
        progress: show a progress bar.
        interrupted: what Ctrl-C does: as always, or to return the test of the examples that were done.

    Returns:
        What was answered, which source decides, and credits. A row that fails, or is answered with nothing, is kept
        with its reason; the others go on.

    Raises:
        InputError: a table that does not fit, before anything is asked; or not one original that could be answered.
        ImageError: a picture that cannot be read.
    """
    chosen: tuple[Part, ...] = (parts,) if isinstance(parts, str) else tuple(parts)
    if not chosen or not set(chosen) <= set(PARTS):
        raise InputError(f"parts are some of {list(PARTS)}, got {list(chosen)}")
    if by not in get_args(By):
        raise InputError(f"by is one of {list(get_args(By))}, got {by!r}")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is 1 or more, got {max_new_tokens}")
    cases = cases_of(table)
    need_no_markers(cases, vlm.prompter.special)
    asking = _Asking(vlm, chosen, maps, max_new_tokens)
    with tqdm(total=sum(len(case.versions) for case in cases), disable=not progress, leave=False) as bar:
        found = tuple(_asked(asking, cases, bar.update, interrupted == "return"))
    if all(example.variants[0].failed for example in found):
        raise InputError(f"no original could be answered; the first failed with: {found[0].variants[0].failed}")
    cases = cases[: len(found)]
    about = vlm.provenance("swap test", parts=list(chosen), maps=maps, max_new_tokens=max_new_tokens)
    return SwapTest(found, by, provenance=dataclasses.replace(about, example=_digest(cases)))


def _asked(asking: _Asking, cases: Sequence[Case], done: Callable[[], Any], to_return: bool) -> Iterator[Swapped]:
    """Example after example."""
    for number, case in enumerate(cases):
        try:
            found = asking.swapped(case, done)
        except KeyboardInterrupt:
            if to_return and number:
                return
            raise
        yield found


def _digest(cases: Sequence[Case]) -> str:
    """Of all that was shown and asked, wherever its files lie."""
    shown = [[version.content(source) for source in SOURCES] for case in cases for version in case.versions]
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:DIGITS]


@dataclass(frozen=True)
class _Asking:
    """How the examples of one test are asked."""

    vlm: HookedVLM
    parts: tuple[Part, ...]
    maps: bool
    max_new_tokens: int

    def swapped(self, case: Case, done: Callable[[], Any]) -> Swapped:
        """One example: all its answers, and credit and map of the answer to its original."""
        variants: list[Variant] = []
        answered: Inputs | None = None
        for version in case.versions:
            variant, x = self._answer(version)
            answered = answered if variants else x
            variants.append(variant)
            done()
        found = Swapped(case.name, case.kind, case.group, tuple(variants))
        return found if answered is None else self._credited(found, case, answered)

    def _answer(self, version: Version) -> tuple[Variant, Inputs | None]:
        """The variant with its answer, or with why there is none; and the example with that answer."""
        told = version.told
        pictures: Any = version.pictures[0] if len(version.pictures) == 1 else list(version.pictures) or None
        try:
            x = self.vlm.prepare(told.question, pictures, told.context or None, told.system or None)
            made = self.vlm.generate(x, self.max_new_tokens)
            if not said(made):
                raise InputError(f"the model answered with nothing that is a word: {str(made)!r}")
            return dataclasses.replace(told, answer=str(made)), self.vlm.answered(x, made)
        except LvlmInterpError as error:
            return dataclasses.replace(told, failed=str(error)), None

    def _credited(self, found: Swapped, case: Case, x: Inputs) -> Swapped:
        try:
            computed = run_to_decoder(self.vlm, x, keep_prompt=True)
            splits = self._splits(found, x, computed)
            pointed = self._pointed(found, case, x, computed) if self.maps else None
        except LvlmInterpError as error:
            return dataclasses.replace(found, failed=str(error))
        return dataclasses.replace(found, splits=splits, pointed=pointed)

    def _splits(self, found: Swapped, x: Inputs, computed: DecoderInputs) -> dict[str, CreditSplit]:
        """The credit of the answer, of the word that tells, and of the first token of that that is no blank."""
        words = parts_of(x, "word", self.vlm.decode)
        word = words[telling_word([one.text for one in words], found.variants)]
        written = (i for i in range(word.start, word.stop) if x.answer_tokens[i].strip())  # its blank may be a token
        first = next(written, word.start)
        spans: dict[Part, Unit] = {
            "answer": "answer",
            "word": (word.start, word.stop),
            "token": (first, first + 1),
        }
        wanted = dict.fromkeys(spans[part] for part in self.parts)  # a word is often one token
        made = {span: credit(self.vlm, x, unit=span, decoder_inputs=computed) for span in wanted}
        return {part: made[spans[part]] for part in self.parts}

    def _pointed(self, found: Swapped, case: Case, x: Inputs, computed: DecoderInputs) -> Pointed | None:
        """The heatmap against the smallest change of pixels that changes the answer; None where none has a place."""
        changes = _changes(found.variants, case.versions)
        if not changes:
            return None
        try:
            patches = occlusion(asked_of(self.vlm, x, unit="answer", decoder_inputs=computed))
        except ImageError:  # a model whose image tokens have no place in the picture
            return None
        return pointed_at(patches, min(changes, key=lambda mask: float(mask.mean())))


def _changes(variants: Sequence[Variant], versions: Sequence[Version]) -> list[np.ndarray]:
    """Where pixels differ, `[height, width]`, of each picture that changes the answer and keeps most of them."""
    original = versions[0].pictures
    masks = [
        _differing(original[0], version.pictures[0])
        for variant, version in zip(variants, versions, strict=True)
        if variant.source == "image" and not variant.failed and moves(variants[0], variant)
        if len(version.pictures) == len(original) == 1
    ]
    return [mask for mask in masks if 0 < mask.mean() <= LOCAL]


def _differing(one: Any, other: Any) -> np.ndarray:
    """True where two pictures differ; everywhere, where their sizes do."""
    first, second = np.asarray(open_image(one)), np.asarray(open_image(other))
    return (first != second).any(2) if first.shape == second.shape else np.ones(first.shape[:2], bool)


@explained
def pointed_at(patches: PatchMap, changed: np.ndarray) -> Pointed | None:
    """Whether the strongest patch of a map shows pixels that were changed, `[height, width]`.

    None where more than half of the patches do: such a change has no place.
    """
    touched = np.array([[_touches(box, changed) for box in row] for row in patches.boxes.tolist()])
    chance = float(touched.mean())
    return Pointed(bool(touched[patches.peak()]), chance) if chance <= LOCAL else None


def _touches(box: Sequence[float], changed: np.ndarray) -> bool:
    """Whether a box, in pixels of the original, holds a pixel that was changed."""
    left, top, right, bottom = (max(0, round(side)) for side in box)
    wide, high = max(right, left + 1), max(bottom, top + 1)  # a patch may be narrower than a pixel
    return bool(changed[top:high, left:wide].any())
