"""One family of vision-language models: what transformers itself does not say about it.

Everything else (decoder, unembedding, chat template, image token) is asked of transformers at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from lvlm_interp.families.shared.cuts import one
from lvlm_interp.families.shared.grids import Film, Layout, Processed

Cut = Callable[[Processed], Layout]
"""How a picture is cut: which blocks it becomes, in the order of its tokens."""
STAGES = "no sites inside its vision tower, whose stages are maps of channels and no residual stream"


@dataclass(frozen=True)
class Family:
    """One row. Every field has a default that holds for most families.

    Attributes:
        prompt: used when the processor has no chat template; `{image}`, `{question}`. Without `{image}` the processor
            itself says where the image goes.
        vision: attribute path of the vision tower inside the base model, where `get_encoder("image")` does not find it.
        projector: attribute path of what maps its features to embeddings, where its name is not a usual one.
        image_token: the config's name of the id of image tokens, where it is not `image_token_id`.
        image_mask: the model input that is 1 at image tokens, where no id of theirs tells them from words.
        carriers: arguments of the decoder that bring the image to it where its tokens do not: hidden by leaving them
            out. Elsewhere the image is hidden by hiding its positions.
        image_inputs: the model inputs that bring such an image; without them the model runs without one.
        gates: arguments of the model and of its decoder that say which rows read the image, where it does not run
            without one: hidden by setting them to zero.
        own_masks: the decoder makes its masks of padding alone; others can be given to its attention only.
        tempered: what an attention module multiplies the queries of rows by that it numbers as they come, or None where
            it does not: by the module and the numbers of the rows.
        fills: model inputs that run along the positions and what an answer gets in them; see `Inputs.fills`.
        places: model inputs whose patches begin with numbers that are no pixels; see `Inputs.places`.
        packed: model inputs in which all pictures stand in one row, and the axis along which they do.
        indices: model inputs that tell patches by their numbers, and the model input whose first two axes they count.
        positions: the positions of an example alone, `[*axis, 1, position]`, or None for its own, of its base model and
            its model inputs; where in a batch a row would get others.
        alone: why its examples cannot stand side by side; empty for most.
        tiled: the first axis of the pixels counts tiles, not images.
        cast: the model takes pixels of the type of its weights only.
        multiplied: the config's `logits_scaling` multiplies the logits; elsewhere it divides them.
        never: attribute path of the ids of tokens that the model never says, inside the base model.
        codes: attribute path of the ids of visual codes, where the vocabulary has some, inside the base model.
        layout: how its pictures are cut; None where that is not known, or tokens have no place in the picture.
        towers: the same by the type of the vision tower, for those whose pictures are cut in another way.
        merge: patches along the side of a token.
        film: how its videos are cut, or None; it gives None where that cannot be told of a video.
        whole: image tokens have no place in the picture: each answers a query (a Q-Former, a Perceiver), or stands for
            all that is read by cross-attention.
        since: the release of transformers from which on it is read truly; with an older one it is checked as a family
            that has no row.
        note: what a user should know about the family.
    """

    prompt: str = "{image}\n{question}"
    vision: str | None = None
    projector: str | None = None
    image_token: str = "image_token_id"
    image_mask: str | None = None
    carriers: tuple[str, ...] = ()
    image_inputs: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    own_masks: bool = False
    tempered: Callable[[nn.Module, Tensor], Tensor | None] | None = None
    fills: Mapping[str, int | None] = field(default_factory=dict)
    places: Mapping[str, int] = field(default_factory=dict)
    packed: Mapping[str, int] = field(default_factory=dict)
    indices: Mapping[str, str] = field(default_factory=dict)
    positions: Callable[[Any, Mapping[str, Any]], Tensor | None] | None = None
    alone: str = ""
    tiled: bool = False
    cast: bool = False
    multiplied: bool = False
    never: str | None = None
    codes: str | None = None
    layout: Cut | None = None
    towers: Mapping[str, Cut] = field(default_factory=dict)
    merge: Callable[[PretrainedConfig], int] = one
    film: Callable[[Processed], Film | None] | None = None
    whole: bool = False
    since: str = "0"
    note: str = ""
