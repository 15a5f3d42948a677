"""Other pictures in the place of the image. Each counterfactual is one function here, and nowhere else.

What hides image *tokens* is a coalition (`engine.score`); what stands here changes *pixels*, or drops the image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageStat

from lvlm_interp.counterfactuals.counterfactual import Change, Counterfactual, counterfactual
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.media import open_image
from lvlm_interp.inputs.sources import ImageLike
from lvlm_interp.model.vlm import HookedVLM

Picture = Image.Image
MOST_BLUR = 10  # beyond which a picture is of one colour, and Pillow soon refuses


@counterfactual
def hidden() -> Counterfactual:
    """CAL's: image tokens keep their slots and positions, nobody sees them (Xiao et al. 2024, code)."""
    return Counterfactual("hidden", None)


@counterfactual
def dropped() -> Counterfactual:
    """A text-only prompt: image tokens are taken out and later positions close up."""

    def change(vlm: HookedVLM, x: Inputs, generator: torch.Generator) -> Inputs:
        keep = ~x.where("image")
        shape = x.input_ids.shape
        kept = {k: v[:, keep.to(v.device)] for k, v in x.model_inputs.items() if getattr(v, "shape", None) == shape}
        roles = tuple(role for role in x.roles if role != "image")
        tokens = tuple(token for token, k in zip(x.tokens, keep.tolist(), strict=True) if k)
        start = x.answer_start - int((~keep).sum())
        return dataclasses.replace(x, model_inputs=kept, roles=roles, answer_start=start, images=(), tokens=tokens)

    return Counterfactual("dropped", change)


@counterfactual
def blank() -> Counterfactual:
    """Every picture in its own mean colour."""

    def one(picture: Picture, generator: torch.Generator) -> Picture:
        mean = tuple(round(c) for c in ImageStat.Stat(picture).mean)
        return Image.new("RGB", picture.size, mean)

    return Counterfactual("blank", _on_pictures(one))


@counterfactual
def blur(radius: float = 0.1) -> Counterfactual:
    """Gaussian blur; `radius` is the standard deviation as a share of the longer side."""

    if not 0 <= radius <= MOST_BLUR:
        raise InputError(f"the radius of a blur, a share of a side, is 0 or more and at most {MOST_BLUR}; got {radius}")

    def one(picture: Picture, generator: torch.Generator) -> Picture:
        return picture.filter(ImageFilter.GaussianBlur(radius * max(picture.size)))

    return Counterfactual("blur", _on_pictures(one), {"radius": radius})


@counterfactual
def noise(step: int = 500) -> Counterfactual:
    """Diffusion noise on the *preprocessed* pixels, as in VCD (Leng et al. 2024, code).

    x' = √ᾱ·x + √(1−ᾱ)·ε with β_t = sigmoid(linspace(−6, 6, 1000))·(5e−3 − 1e−5) + 1e−5; ᾱ is the product of 1 − β up
    to `step`.

    Args:
        step: 0 … 999; 500 leaves .863 of the signal.
    """
    if not 0 <= step < 1000:
        raise InputError(f"the noise step is between 0 and 999, got {step}")
    beta = torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float32)) * (5e-3 - 1e-5) + 1e-5
    kept = float(torch.cumprod(1 - beta, 0)[step])

    def change(vlm: HookedVLM, x: Inputs, generator: torch.Generator) -> Inputs:
        return x.with_noise(kept, generator)

    return Counterfactual("noise", change, {"step": step})


@counterfactual
def crop(scale: tuple[float, float] = (0.01, 0.2), ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> Counterfactual:
    """A small random piece, enlarged: RandomResizedCrop as in mDPO (Wang et al. 2024, code).

    Args:
        scale: smallest and largest share of the picture's area.
        ratio: smallest and largest width / height.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"scale is the smallest and largest share of the picture, such as (0.01, 0.2); got {scale}")
    if not 0 < ratio[0] <= ratio[1] < math.inf:
        raise InputError(f"ratio is the smallest and largest width / height, such as (0.75, 1.33); got {ratio}")

    def one(picture: Picture, generator: torch.Generator) -> Picture:
        box = _random_box(picture.size, scale, ratio, generator)
        return picture.resize(picture.size, Image.Resampling.BICUBIC, box=box)

    return Counterfactual("crop", _on_pictures(one), {"scale": scale, "ratio": ratio})


@counterfactual
def black_box(box: tuple[float, float, float, float], image: int = 0) -> Counterfactual:
    """The pixels of one box made black (contrastive region guidance, Wan et al. 2024); of a video, in every frame.

    Args:
        box: (left, top, right, bottom) in pixels of the original image; those whose middle lies in it become black.
        image: which image of the prompt.
    """

    def change(vlm: HookedVLM, x: Inputs, generator: torch.Generator) -> Inputs:
        pictures = [[p.copy() for p in some] for some in _pictures(x)]
        if image not in range(len(pictures)):
            raise InputError(f"no image {image}: the prompt has {len(pictures)}, counted from 0")
        left, top, right, bottom = box
        for picture in pictures[image]:
            if not (0 <= left <= right - 1 < picture.width and 0 <= top <= bottom - 1 < picture.height):
                raise ImageError(
                    f"the box {box} does not lie in the image of {picture.size} pixels, or is less than one of them"
                )
            first, last = [math.ceil(edge - 0.5) for edge in (left, top)], [math.ceil(e - 0.5) for e in (right, bottom)]
            ImageDraw.Draw(picture).rectangle((*first, last[0] - 1, last[1] - 1), fill="black")
        return _with_pictures(vlm, x, pictures)

    return Counterfactual("black box", change, {"box": box, "image": image})


@counterfactual
def swap(image: ImageLike) -> Counterfactual:
    """Another picture, resized to the size of the one that it replaces."""
    opened = open_image(image)

    def one(picture: Picture, generator: torch.Generator) -> Picture:
        return opened.resize(picture.size, Image.Resampling.BICUBIC)

    return Counterfactual("swap", _on_pictures(one), {"size": opened.size})


# --- pixels -----------------------------------------------------------------------------------------------------------


def _pictures(x: Inputs) -> list[list[Picture]]:
    """The original pictures, each in a list: of a video, its frames."""
    pictures = [list(view.clip) or [view.picture] for view in x.images if view.picture is not None]
    if len(pictures) != len(x.images):
        raise ImageError(
            "this counterfactual changes the original picture, and the example was made from processed pixels; "
            "use vlm.prepare(question, image), or 'hidden', 'dropped' or 'noise'"
        )
    return pictures


def _with_pictures(vlm: HookedVLM, x: Inputs, pictures: list[list[Picture]]) -> Inputs:
    shown = [some if view.clip else some[0] for some, view in zip(pictures, x.images, strict=True)]
    return vlm.with_pictures(x, shown)


def _on_pictures(one: Callable[[Picture, torch.Generator], Picture]) -> Change:
    def change(vlm: HookedVLM, x: Inputs, generator: torch.Generator) -> Inputs:
        return _with_pictures(vlm, x, [[one(picture, generator) for picture in some] for some in _pictures(x)])

    return change


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float32))


def _random_box(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> tuple[float, float, float, float]:
    width, height = size
    area = width * height * _uniform(*scale, generator)
    shape = math.exp(_uniform(math.log(ratio[0]), math.log(ratio[1]), generator))
    wide, high = (
        float(np.clip(side, 1, most))
        for side, most in ((math.sqrt(area * shape), width), (math.sqrt(area / shape), height))
    )
    left, top = _uniform(0, width - wide, generator), _uniform(0, height - high, generator)
    return left, top, left + wide, top + high
