"""What a model is called with: what each argument may be, which hold pixels, and names for all of it together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.given import explained

DIGITS = 32  # of a digest that a result is told by
INSTEAD = {  # model inputs in whose place something else works
    "inputs_embeds": "roles and image tokens are read from input_ids, and models take one of both. Give input_ids, and "
    "change embeddings by an edit of 'hook_embed'",
    "labels": "no loss is computed here. Leave them out: the answer's tokens stand at the end of input_ids",
    **dict.fromkeys(("logits_to_keep", "num_logits_to_keep"), "logits are read at all positions. Leave it out"),
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "output_router_logits"),
        "vlm.capture(x, sites) gives what is inside a model. Leave it out",
    ),
    "past_key_values": "an example is run whole, from its first token on. Leave it out",
}
VIDEO_PIXELS = "pixel_values_videos"  # what models call the pixels of videos, where these have an input of their own


def need_by_position(model_inputs: Mapping[str, Any], or_whole: bool = False) -> None:
    """Raise unless what a model is called with says of each position which token it has, and whether it counts.

    Args:
        model_inputs: arguments of the model.
        or_whole: a mask of what each position sees, `[1, 1, T, T]`, will do: it can be run, and not be cut.

    Raises:
        InputError: a mask or position ids of other axes than the prompt's, position ids without a batch axis, something
            in the place of what is read here, or a tensor that is sparse, complex or empty of numbers (meta).
    """
    for name in INSTEAD.keys() & model_inputs.keys():
        raise InputError(f"{name} cannot be given: {INSTEAD[name]}")
    for name, value in model_inputs.items():
        if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_complex() or value.is_meta):
            kind = f"{value.dtype}, {value.layout}, on {value.device}".replace("torch.", "")
            raise InputError(f"{name} is a plain tensor, with a real number at each of its places; got {kind}")
    expected, mask, at = (model_inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    whole = or_whole and isinstance(mask, Tensor) and mask.ndim == 4
    if isinstance(mask, Tensor) and isinstance(expected, Tensor) and mask.shape != expected.shape and not whole:
        raise InputError(
            f"attention_mask is {list(expected.shape)} as input_ids, 1 where a position counts and 0 where it is "
            f"padding; got {list(mask.shape)}. What positions see of each other is not for a mask of your own: "
            "li.score(vlm, x, x.hidden('image')) hides some, and an edit of 'blocks.*.attn.hook_attn_scores' others"
        )
    if isinstance(at, Tensor) and at.ndim < 2:
        raise InputError(f"position_ids have a batch axis, [1, T]; got {list(at.shape)}: give position_ids[None]")
    if isinstance(at, Tensor) and at.ndim == 2 and isinstance(expected, Tensor) and at.shape != expected.shape:
        raise InputError(f"position_ids are {list(expected.shape)} as input_ids, one of each; got {list(at.shape)}")
    if isinstance(at, Tensor) and at.ndim > 2 and not or_whole:
        raise InputError(
            f"position_ids of several axes, {list(at.shape)}, cannot be cut by position: leave them out, since the "
            "model makes its own from input_ids and the pictures' grids"
        )


def pixels_of(model_inputs: Mapping[str, Any], video: bool | None = None) -> dict[str, Tensor]:
    """The model inputs that hold pixels; those of videos, or those of pictures, if it is said.

    Other numbers with a point have one axis, such as Qwen2.5-VL's seconds between frames.
    """
    found = {k: v for k, v in model_inputs.items() if isinstance(v, Tensor) and v.is_floating_point() and v.ndim > 1}
    return {k: v for k, v in found.items() if video is None or video == (k == VIDEO_PIXELS)}


@runtime_checkable
class Called(Protocol):
    """What a model is called with: an example, or several side by side."""

    @property
    def model_inputs(self) -> Mapping[str, Tensor]: ...


@explained
def digest(*examples: Called) -> str:
    """Tells examples apart: SHA-256 of all that the model is called with, and of the roles, in hexadecimal digits."""
    found = hashlib.sha256()
    for x in examples:
        for name, value in sorted(x.model_inputs.items()):
            if not isinstance(value, Tensor):  # an option of the model
                found.update(f"{name}{value!r}".encode())
                continue
            found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            found.update(value.detach().cpu().float().numpy().tobytes())
        found.update(f"{getattr(x, 'answer_start', None)}{getattr(x, 'roles', None)}".encode())
    return found.hexdigest()


def named_by(*examples: Called) -> str:
    """A short name of examples, for provenance: the first half of their digest."""
    return digest(*examples)[:DIGITS]
