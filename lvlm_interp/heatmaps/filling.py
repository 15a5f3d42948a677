"""What stands in the place of pixels that are not seen: a colour, the picture blurred, another picture, or what the
pixels around them tell."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFilter, ImageStat

from lvlm_interp.errors import InputError
from lvlm_interp.inputs.media import open_image
from lvlm_interp.inputs.sources import ImageLike

TOKENS = "tokens"
PIXELS = ("mean", "blur", "black", "road")
Substrate = str | ImageLike
"""What stands in the place of a patch that is not seen. `tokens`: nothing, its tokens are hidden. Of pixels: the
picture's `mean` colour, the picture blurred (`blur`), `black`; what the pixels around it tell, with noise (`road`: Rong
et al. 2022, so that the shape of what is gone tells nothing); or another picture, resized, whose patch it is."""
BLUR = 5 / 224  # of the longer side, the deviation: that of RISE's insertion (Petsiuk et al. 2018, code)
LONGEST = 128  # pixels of a side at which `road` solves for what is gone: a number for each is unknown
NOISE = 0.01 * 255  # ROAD's, of the whole range
BESIDE, ACROSS = 1 / 6, 1 / 12  # ROAD's weights of the eight pixels around one

Picture = UInt8[np.ndarray, "height width 3"]
Filling = Callable[[Bool[np.ndarray, "height width"]], Picture]
"""Given where pixels are gone, a picture that has others there; what it has elsewhere does not count."""


def is_picture(substrate: Substrate) -> bool:
    """Whether it is another picture."""
    return not isinstance(substrate, str) or substrate not in (TOKENS, *PIXELS)


def filling_of(picture: Image.Image, substrate: Substrate) -> Filling:
    """What fills a picture.

    Raises:
        InputError: an unknown substrate.
        ImageError: the other picture cannot be read.
    """
    if isinstance(substrate, str) and substrate == "road":
        return lambda gone: imputed(picture, gone)
    other = np.asarray(_other(picture.convert("RGB"), substrate))
    return lambda gone: other


def _other(picture: Image.Image, substrate: Substrate) -> Image.Image:
    if is_picture(substrate):
        if isinstance(substrate, str) and "/" not in substrate and "." not in substrate:
            known = ", ".join(map(repr, PIXELS))
            raise InputError(f"substrate is {TOKENS!r}, {known} or another picture; got {substrate!r}")
        return open_image(substrate).resize(picture.size, Image.Resampling.BICUBIC)
    if isinstance(substrate, str) and substrate == "blur":
        return picture.filter(ImageFilter.GaussianBlur(BLUR * max(picture.size)))
    mean = tuple(round(colour) for colour in ImageStat.Stat(picture).mean)
    return Image.new("RGB", picture.size, mean if substrate == "mean" else "black")


def imputed(picture: Image.Image, gone: Bool[np.ndarray, "height width"]) -> Picture:
    """Each pixel that is gone is the weighted mean of the eight around it, gone ones too, and a little noise.

    It is solved at no more than `LONGEST` pixels a side, and made larger again: what is smooth loses nothing by it.
    The noise is the same whatever is gone, so that sets are compared on equal terms.
    """
    share = min(1.0, LONGEST / max(picture.size))
    size = max(1, round(picture.width * share)), max(1, round(picture.height * share))
    small = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX), np.float64)
    where = np.asarray(Image.fromarray(gone).resize(size, Image.Resampling.NEAREST)).astype(bool)
    noise = np.random.default_rng(0).normal(0, NOISE, small.shape)
    found = np.clip(np.where(where[..., None], solved(small, where) + noise, small), 0, 255).round()
    return np.asarray(Image.fromarray(found.astype(np.uint8)).resize(picture.size, Image.Resampling.BILINEAR))


def solved(
    picture: Float[np.ndarray, "height width colour"], gone: Bool[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width colour"]:
    """The picture with what is gone solved for; the mean colour where nothing is left to tell it."""
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    if gone.all():
        return np.broadcast_to(picture.mean((0, 1)), picture.shape).copy()
    rows, columns = gone.shape
    number = np.arange(rows * columns).reshape(rows, columns)
    pairs = [_beside(number, down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
    one, other, weight = (np.concatenate(found) for found in zip(*pairs, strict=True))
    weight /= np.bincount(one, weight, number.size)[one]  # at an edge there are fewer
    around = sparse.csr_matrix((weight, (one, other)), (number.size, number.size))
    unknown, known, flat = gone.ravel(), ~gone.ravel(), picture.reshape(-1, picture.shape[2])
    told = around[unknown][:, known] @ flat[known]
    system = sparse.identity(int(unknown.sum()), format="csc") - around[unknown][:, unknown].tocsc()
    found = flat.copy()
    if unknown.any():
        found[unknown] = spsolve(system, told).reshape(told.shape)
    return found.reshape(picture.shape)


def _beside(number: np.ndarray, down: int, right: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of pixels, the second so many rows below and columns beside the first, and their weight."""
    rows, columns = number.shape
    one = number[max(0, -down) : rows - max(0, down), max(0, -right) : columns - max(0, right)].ravel()
    other = number[max(0, down) : rows - max(0, -down), max(0, right) : columns - max(0, -right)].ravel()
    return one, other, np.full(one.size, ACROSS if down and right else BESIDE)
