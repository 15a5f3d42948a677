"""Where in the image: one call for every method and every part of an answer."""

from __future__ import annotations

from typing import Any

from lvlm_interp.attribution.against import Against
from lvlm_interp.attribution.asked import asked_of
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.attribution.value import Value
from lvlm_interp.engine.decoder import DecoderInputs
from lvlm_interp.errors import InputError
from lvlm_interp.given import explained
from lvlm_interp.heatmaps.method import Method, method_of
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Unit
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM


@explained
@in_one_go
def attribute(
    vlm: HookedVLM,
    x: Inputs,
    method: str | Method = "occlusion",
    image: int = 0,
    frame: int | None = None,
    progress: bool = False,
    decoder_inputs: DecoderInputs | None = None,
    *,
    value: str | Value | None = None,
    unit: Unit | None = None,
    target: int | str | None = None,
    against: Against | None = None,
    **parameters: Any,
) -> PatchMap:
    """Attribute every answer token to the patches of an image or a video.

    `attribute(vlm, x, against="Yellow")` asks where it is seen that the answer's first word is what it is rather than
    "Yellow"; with `unit="answer"`, rather than another answer.

    Args:
        vlm: the model.
        x: an example with an image and an answer.
        method: by name, `lvlm_interp.methods()` lists them: `occlusion`, each token of the image's grid hidden in turn,
            with the thumbnail tokens that show its centre if there is a thumbnail. Or a `Method`, one of your own too.
        image: which image or video of the prompt.
        frame: of a video. None hides a patch in all frames at once, and says where in the picture the answer comes
            from, at whatever time. A number hides it in that frame only (Qwen-VL: in the two frames that share its
            tokens); what neighbouring frames show again goes on telling it, so that such values are small.
        progress: show a progress bar.
        decoder_inputs: of the example (`run_to_decoder`), if it is scored by several methods.
        value: what a patch is said to change (`attribution.value`). By default `logodds`; with `against`, `difference`,
            or `odds` if it names several.
        unit: `token`, `word`, `sentence`, `answer`, a span (start, stop) of answer tokens, or a function that cuts a
            text into words; each is explained as a whole. By default `token`, or `word` where a target or a foil is
            named.
        target: the only part to map: its number, counted from 0, or its text. With `against`, the first by default.
        against: a foil, or several, as text: whole words against words, answers against answers. Or foils of every
            part, as a list with an entry for each, a mapping from their numbers, or an earlier result.
        parameters: of the method, such as `hide_from="all"` of occlusion.

    Raises:
        InputError: no image, no answer, an unknown method or parameter, value or unit, no such frame or part, or a foil
            that is the part itself.
        ImageError: the image's tokens have no place in the picture, or it is not known.
        VisibilityError: something is to be hidden that cannot be in this model.
        ModelError: a model that the method cannot look into; the message names methods that can.
    """
    chosen = method_of(method, parameters)
    found: object = chosen.map(asked_of(vlm, x, image, frame, value, unit, target, against, progress, decoder_inputs))
    if not isinstance(found, PatchMap):
        raise InputError(
            f"a method's map is a PatchMap, what asked.mapped(…) makes; {type(chosen).__name__} gave {found!r}"
        )
    return found
