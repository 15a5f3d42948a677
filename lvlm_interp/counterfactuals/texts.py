"""Other texts around the same picture."""

from __future__ import annotations

import torch

from lvlm_interp.counterfactuals.counterfactual import Counterfactual, counterfactual
from lvlm_interp.errors import InputError
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.vlm import HookedVLM

DISTURBING = "You are a confused objects detector to provide a fuzzy overview or impression of the image."
"""The instruction of ICD (Wang et al. 2024)."""


@counterfactual
def instruction(text: str) -> Counterfactual:
    """An instruction before the question, as in instruction contrastive decoding (Wang et al. 2024, ICD)."""
    if not text.strip():
        raise InputError("an instruction is a text; got a blank")

    def change(vlm: HookedVLM, x: Inputs, generator: torch.Generator) -> Inputs:
        clips = [list(view.clip) for view in x.images if view.clip]
        pictures = [view.picture for view in x.images if not view.clip]
        turns = {one.turn for one in x.written if one.role != "system"}
        if len(turns) != 1 or None in pictures or len(clips) > 1:
            raise InputError(
                "an instruction is put before the question of an example of one turn, whose pictures are known: make "
                "it with vlm.prepare(question, image)"
            )
        context, system = (x.texts.get(role) for role in ("context", "system"))
        video = clips[0] if clips else None
        made = vlm.prepare(f"{text} {x.question}", pictures or None, context, system, video=video)
        if x.opened is not None:
            made = made.with_opening(x.opened, vlm.token_strings)
        return made.with_answer(x.answer_ids.tolist(), x.answer_tokens, x.answer) if x.answer_tokens else made

    return Counterfactual("instruction", change, {"text": text})
