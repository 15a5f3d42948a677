"""Diagnosing: every method that says where a word came from, asked about one example."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from lvlm_interp.attribution.against import Against, need_word
from lvlm_interp.attribution.credit import credit
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.attribution.value import texts_of
from lvlm_interp.counterfactuals.contrast import contrast
from lvlm_interp.engine.decoder import DecoderInputs, run_to_decoder
from lvlm_interp.engine.score import HideFrom, need_hide_from
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.given import explained
from lvlm_interp.heatmaps.attribute import attribute
from lvlm_interp.inputs.chat import stand_swapped
from lvlm_interp.inputs.example import Answer, Inputs
from lvlm_interp.inputs.sources import ImageLike
from lvlm_interp.inputs.words import parts_of
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.report.diagnosis import Diagnosis

STEPS = ("answer", "contrast", "credit", "heatmap")


@explained
@in_one_go
def diagnose(
    vlm: HookedVLM,
    question: str | ImageLike,
    image: ImageLike | str,
    answer: str | None = None,
    context: str | None = None,
    system: str | None = None,
    *,
    against: Against | None = None,
    word: int = 0,
    hide_from: HideFrom | None = None,
    max_new_tokens: int = 64,
    progress: bool = False,
) -> Diagnosis:
    """Say for every word of an answer where it came from.

    Args:
        vlm: the model.
        question: what is asked.
        image: a picture, in any form that `vlm.prepare` takes. Image first, question second works too, as it did
            before: the two are told apart.
        answer: the answer to explain; by default the model's own, greedily. An `Answer` keeps its exact tokens.
        context: text of the user before the question.
        system: a system message.
        against: alternatives that `odds` compares one word (`word`, from 0) with, or of every word, see `credit`; found
            by default.
        word: see `against`.
        hide_from: who loses sight of a patch in the heatmap, see `attribute`.
        max_new_tokens: where the model is cut off if it does not stop.
        progress: show a progress bar.

    Raises:
        ImageError: the image cannot be read.
        InputError: an empty question, an answer that tokenises to nothing, alternatives that do not fit.
        VisibilityError: an unknown `hide_from`.
    """
    need_hide_from(hide_from or "text")  # before what is found on the way to the map
    need_word(word, against)
    asks, shown = in_order(question, image)
    if isinstance(shown, (list, tuple)):
        several = (
            f"got {len(shown)}; contrast and credit take several" if len(shown) != 1 else "given as it is, in no list"
        )
        raise InputError(f"a diagnosis is about one image, {several}")
    with tqdm(total=len(STEPS), disable=not progress, leave=False) as bar:
        advance = iter(STEPS).__next__
        bar.set_description(advance())
        x, given = asked(vlm, shown, asks, answer, context, system, max_new_tokens)
        _next(bar, advance())
        computed = run_to_decoder(vlm, x, keep_prompt=True)
        compared = contrast(vlm, x, decoder_inputs=computed)
        _next(bar, advance())
        split = credit(vlm, x, unit="word", against=against, word=word, decoder_inputs=computed)
        _next(bar, advance())
        patches, no_map = _map(vlm, x, hide_from, progress, computed)
        bar.update()
    words = parts_of(x, "word", vlm.decode)
    return Diagnosis(
        question=asks,
        answer=x.answer,
        answer_generated=answer is None,
        answer_finished=given.finished if isinstance(given, Answer) else True,
        context=context or None,
        system=system or None,
        words=texts_of(words),
        spans=tuple((word.start, word.stop) for word in words),
        contrast=compared,
        credit=split,
        patches=patches,
        no_map=no_map,
        picture=torch.from_numpy(np.array(x.images[0].picture)),
        provenance=vlm.provenance(
            "diagnosis", x, hide_from=None if patches is None else patches.hide_from, max_new_tokens=max_new_tokens
        ),
    )


def in_order(question: Any, image: Any) -> tuple[Any, Any]:
    """Question and image, whichever of the two came first."""
    return (image, question) if stand_swapped(question, image) else (question, image)


def _next(bar: Any, step: str) -> None:
    bar.update()
    bar.set_description(step)


def asked(
    vlm: HookedVLM,
    image: ImageLike,
    question: str,
    answer: str | None = None,
    context: str | None = None,
    system: str | None = None,
    max_new_tokens: int = 64,
) -> tuple[Inputs, str]:
    """The example with its answer, and the answer: the model's own (greedily) where none is given.

    Raises:
        ImageError: the image cannot be read.
        InputError: the model answers with nothing; see `prepare` for the others.
    """
    x = vlm.prepare(question, image, context, system, answer)
    if answer is not None:
        return x, answer
    made = vlm.generate(x, max_new_tokens)
    if not made.strip():
        raise InputError("the model answered with nothing: it ended its turn at once; give the answer to explain")
    return vlm.answered(x, made), made


def _map(
    vlm: HookedVLM, x: Inputs, hide_from: HideFrom | None, progress: bool, decoder_inputs: DecoderInputs
) -> tuple[PatchMap | None, str | None]:
    """The heatmaps by word, or why there are none."""
    try:
        tokens = attribute(vlm, x, hide_from=hide_from, progress=progress, decoder_inputs=decoder_inputs)
        return tokens.words(parts_of(x, "word", vlm.decode)), None
    except ImageError as error:
        return None, str(error)
