"""The pictures and videos of a prompt, and where in them their tokens are."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Int
from PIL import Image
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.given import explaining

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the original picture."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture or a video that a prompt is about.

    Attributes:
        pictures: the original picture, or the frames of the video; none where only processed pixels were given.
        video: whether it is a video.
    """

    pictures: tuple[Image.Image, ...] = ()
    video: bool = False


@explaining
@dataclass(frozen=True, eq=False)
class ImageView:
    """One image, or one video, of a prompt and where its tokens are.

    Attributes:
        positions: positions of its tokens in `input_ids`, `[token]`.
        patches: box of every token in pixels of the *original* image (left, top, right, bottom), in the order of
            `positions`; None for a token without a place (a row's end, a resampled token), and None as a whole where
            the original image is not known.
        cells: the tokens of the one rectangular grid that a heatmap is drawn on, as indices into `positions`,
            `[row, column]`; None where there is no grid, and `no_grid` says why. Where a family cuts an image into
            tiles, the tiles laid together, not the thumbnail. Of a video, its first frame; `cells_of` gives those of
            the others.
        picture: the original image (of a video, its first frame), or None if only processed pixels were given.
        frames: of a video, the number of the frame that each token was made from, counted from 0, in the order of
            `positions`: of several neighbouring frames (Qwen-VL makes a token of two), the first. None for a token of
            no frame (a newline); None as a whole for a picture, or where it is not known.
        clip: the original frames of a video.
        whole: whether each token stands for the whole picture, so that it has no place: resampled (a Q-Former, a
            Perceiver), or a mark of what is read by cross-attention.
    """

    positions: Int[Tensor, " token"]
    patches: tuple[Box | None, ...] | None = None
    cells: Int[Tensor, "row column"] | None = None
    picture: Image.Image | None = field(default=None, repr=False)
    frames: tuple[int | None, ...] | None = None
    clip: tuple[Image.Image, ...] = field(default=(), repr=False)
    whole: bool = False

    @property
    def starts(self) -> tuple[int, ...]:
        """The frames, or the first of the neighbouring frames, that tokens are made from; none of a picture."""
        return tuple(sorted({frame for frame in self.frames or () if frame is not None}))

    def cells_of(self, frame: int) -> Int[Tensor, "row column"]:
        """As `cells`, the tokens that were made from one frame of a video.

        Raises:
            InputError: not a video, or it has no such frame.
        """
        starts = self.starts
        if self.cells is None or not starts:
            raise InputError("frames can be chosen of a video whose tokens have a place in its frames")
        count = len(self.clip) or starts[-1] + 1
        if not 0 <= frame < count:
            raise InputError(f"no frame {frame}: the video has {count}, counted from 0")
        assert self.frames is not None
        first, wanted = self.frames.index(starts[0]), self.frames.index(max(s for s in starts if s <= frame))
        return self.cells + (wanted - first)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the grid, or None where tokens have no place in the picture, or none that is known."""
        return None if self.cells is None else (self.cells.shape[0], self.cells.shape[1])

    @property
    def has_grid(self) -> bool:
        return self.cells is not None

    @property
    def no_grid(self) -> str:
        """Why there is no grid, for errors."""
        if self.whole:
            return (
                "the tokens of this image have no place in the picture (has_grid is False): each stands for all of it, "
                "resampled or read by cross-attention"
            )
        return "where in the picture the tokens of this image stand is not known for this model (has_grid is False)"
