"""Which positions of a prompt belong to which of its pictures and videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.families.shared import maps as pixels
from lvlm_interp.families.shared.registry import NAMES
from lvlm_interp.inputs.called import VIDEO_PIXELS, pixels_of
from lvlm_interp.inputs.view import ImageView, Shown
from lvlm_interp.model.anatomy import Anatomy


def shown_in(anatomy: Anatomy, model_inputs: Mapping[str, Any]) -> list[Shown]:
    """What the pixels are of; where only tiles can be counted, they are taken for one image."""
    videos = [Shown(video=True)] * len(model_inputs.get("video_grid_thw", model_inputs.get(VIDEO_PIXELS, ())))
    for name in NAMES.per_image:
        if name in model_inputs:
            return [Shown()] * len(model_inputs[name]) + videos
    values = next(iter(pixels_of(model_inputs, video=False).values()), None)
    count = 0 if values is None else 1 if anatomy.family.tiled or values.ndim != 4 else values.shape[0]
    return [Shown()] * count + videos


def find_views(anatomy: Anatomy, model_inputs: Mapping[str, Tensor], shown: Sequence[Shown]) -> tuple[ImageView, ...]:
    """Which positions belong to which image or video, and where in the picture they are, in the prompt's order.

    Videos whose tokens are those of images (InternVL, SmolVLM) take their share of these.

    Raises:
        InputError: image tokens without pixels, pixels without image tokens, or a number of them that does not fit.
    """
    ids, video = model_inputs["input_ids"][0].cpu(), anatomy.video_token_id
    own = ids == (-1 if video is None else video)
    of_images = anatomy.visual_in(model_inputs)[0].cpu() & ~own
    apart = bool(own.any())
    views: list[ImageView] = []
    for name, mine, of_video in (("image", of_images, False), ("video", own, True)):
        some = [one for one in shown if (one.video and apart) == of_video]
        views += _views_of(anatomy, name, model_inputs, mine.nonzero().flatten(), some)
    return tuple(sorted(views, key=lambda view: int(view.positions[0])))


def _views_of(
    anatomy: Anatomy,
    name: str,
    model_inputs: Mapping[str, Tensor],
    positions: Int[Tensor, " token"],
    shown: Sequence[Shown],
) -> tuple[ImageView, ...]:
    """The views whose tokens stand at these positions."""
    if len(positions) and not pixels_of(model_inputs):
        raise InputError(
            f"{len(positions)} {name} tokens but no pixels: give pixel_values=…, or a processor that makes them"
        )
    if not len(shown) or not len(positions):
        if len(shown) or len(positions):
            marks = anatomy.family.image_mask
            hint = f": give {marks}=…, which is 1 where they stand" if marks and marks not in model_inputs else ""
            if token := getattr(anatomy, f"{name}_token_id"):
                hint = f", by the model's config those of id {token}: is the processor another model's?"
            raise InputError(f"{len(shown)} {name}s but {len(positions)} {name} tokens in the prompt{hint}")
        return ()
    views = pixels.image_views(anatomy.model.config, anatomy.processor, shown, model_inputs, positions)
    return _without_places(positions, shown, anatomy.family.whole) if views is None else views


def _without_places(positions: Int[Tensor, " token"], shown: Sequence[Shown], whole: bool) -> tuple[ImageView, ...]:
    """Views that know which tokens are theirs, and no more."""
    shares = _shares(positions, len(shown), alike=not any(one.video for one in shown))
    return tuple(
        ImageView(
            rows,
            picture=next(iter(one.pictures), None),
            clip=one.pictures if one.video else (),
            whole=whole,
        )
        for rows, one in zip(shares, shown, strict=True)
    )


def _shares(positions: Int[Tensor, " token"], images: int, alike: bool) -> tuple[Tensor, ...]:
    """The image tokens of each image: runs of neighbours if there are as many as images, else equal shares if alike.

    Raises:
        InputError: neither tells which token belongs to which image.
    """
    breaks = (positions.diff() != 1).nonzero().flatten() + 1
    if len(breaks) + 1 == images:
        return tuple(positions.tensor_split(breaks))
    if len(positions) % images or (images > 1 and not alike):
        raise InputError(f"{len(positions)} image tokens do not divide among {images} images")
    return tuple(positions.view(images, -1))


def need_seen(given: Mapping[str, Any], visual: Sequence[bool]) -> None:
    """Raise where padding hides an image token, and the model looks at the picture from beside, whatever is padded."""
    mask = given["attention_mask"]
    if isinstance(mask, Tensor) and not mask[0][torch.tensor(visual)].all():
        raise InputError(
            "attention_mask is 0 at an image token: this model would look at the picture all the same; "
            "li.score(vlm, x, x.hidden('image')) hides it"
        )
