"""What a model is called with, and what every position of it is."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lvlm_interp.errors import ImageError, InputError, VisibilityError

Role = Literal["template", "system", "context", "question", "image", "answer"]
ROLES: tuple[Role, ...] = get_args(Role)
CREDITED: tuple[Role, ...] = ("question", "context", "system", "image")
"""The roles that can be given credit; template and the answer so far are always visible."""

Box = tuple[float, float, float, float]
ImageLike = Image.Image | str | Path
VideoLike = Sequence[Any] | np.ndarray | Tensor
"""Frames: PIL images, paths or arrays `[height, width, 3]` of bytes; or one array of them all, `[frame, …]`."""
# Inputs whose patches begin with numbers that are no pixels, and how many: where a patch stands, all 0 in padding.
PLACES = {"flattened_patches": 2}
VIDEO_PIXELS = "pixel_values_videos"  # what models call the pixels of videos, where these have an input of their own


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture or a video that a prompt is about.

    Attributes:
        pictures: the original picture, or the frames of the video; none where only processed pixels were given.
        video: whether it is a video.
    """

    pictures: tuple[Image.Image, ...] = ()
    video: bool = False


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


@dataclass(frozen=True, eq=False)
class Inputs:
    """One example: what the transformers model is called with, and the role of every position.

    Attributes:
        model_inputs: keyword arguments of the model; `input_ids` is `[1, T]` and ends with the answer.
        roles: one of `ROLES` for each of the T positions.
        answer_start: first position of the answer; T if there is no answer yet.
        images: the images and videos, in order.
        tokens: the text of each token, for display.
        texts: what the user wrote, by role.
        fills: model inputs that run along the positions, and what an answer's positions get in them: a number, or None
            for what the last position of the prompt has. Those shaped like `input_ids` need not be named: masks get 1,
            position ids count on, others get 0.
    """

    model_inputs: Mapping[str, Tensor]
    roles: tuple[Role, ...]
    answer_start: int
    images: tuple[ImageView, ...] = ()
    tokens: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    fills: Mapping[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(self.model_inputs["input_ids"].shape)
        length = shape[-1]
        if shape != (1, length):
            raise InputError(f"one example at a time: input_ids is {shape}, expected [1, T]")
        if len(self.roles) != length or not 0 < self.answer_start <= length:
            raise InputError(
                f"{len(self.roles)} roles and answer_start={self.answer_start} do not fit {length} positions"
            )

    @property
    def input_ids(self) -> Int[Tensor, "1 position"]:
        return self.model_inputs["input_ids"]

    @property
    def length(self) -> int:
        return self.input_ids.shape[-1]

    @property
    def answer_positions(self) -> Int[Tensor, " answer"]:
        """Positions of the answer tokens; the logits that predict them stand one position earlier."""
        return torch.arange(self.answer_start, self.length)

    @property
    def answer_ids(self) -> Int[Tensor, " answer"]:
        return self.input_ids[0, self.answer_start :]

    @property
    def answer_tokens(self) -> tuple[str, ...]:
        return self.tokens[self.answer_start :]

    @property
    def answer(self) -> str:
        """The answer as text, empty if there is none yet."""
        return self.texts.get("answer", "".join(self.answer_tokens))

    @property
    def question(self) -> str:
        return self.texts.get("question", "")

    @property
    def present(self) -> tuple[Role, ...]:
        """The roles that occur, in the order of `ROLES`."""
        return tuple(role for role in ROLES if role in self.roles)

    def where(self, *roles: str) -> Bool[Tensor, " position"]:
        """True at the positions of these roles.

        Raises:
            VisibilityError: a role that is not one of `ROLES`.
        """
        unknown = [role for role in roles if role not in ROLES]
        if unknown:
            raise VisibilityError(f"no role {unknown[0]!r}; the roles are {list(ROLES)}")
        return torch.tensor([role in roles for role in self.roles])

    def hidden(self, *roles: str) -> Bool[Tensor, " position"]:
        """The coalition that sees everything but these roles."""
        return ~self.where(*roles)

    def visible(self, *roles: str) -> Bool[Tensor, " position"]:
        """The coalition that sees these roles, the template and the answer so far."""
        return self.where(*roles, "template", "answer")

    @property
    def pixels(self) -> dict[str, Tensor]:
        """The model inputs that hold pixels."""
        return pixels_of(self.model_inputs)

    def need_answer(self) -> None:
        """Raise unless there is an answer to score."""
        if self.answer_start == self.length:
            raise InputError(
                "there is no answer to score: give prepare(..., answer=...) or use vlm.answered(x, answer)"
            )

    def need_image(self) -> None:
        """Raise unless there is an image to hide."""
        if "image" not in self.roles:
            raise InputError("there is no image in this example; prepare it with one")

    def with_model_inputs(self, **changed: Tensor) -> Inputs:
        """The same example with some model inputs replaced (pixels, for instance); shapes must stay."""
        for name, value in changed.items():
            found = self.model_inputs.get(name)
            if found is None or found.shape != value.shape:
                shape = None if found is None else tuple(found.shape)
                raise InputError(f"model input {name!r} has shape {shape}; got {tuple(value.shape)}")
        return dataclasses.replace(self, model_inputs={**self.model_inputs, **changed})

    def with_noise(self, kept: float, generator: torch.Generator) -> Inputs:
        """The same example with noise on its pixels, √kept·x + √(1−kept)·ε; where patches stand is left as it is."""
        noisy = {}
        for name, value in self.pixels.items():
            drawn = torch.randn(value.shape, generator=generator).to(value)
            noisy[name] = math.sqrt(kept) * value + math.sqrt(1 - kept) * drawn
            if first := PLACES.get(name):
                places, patch = value[..., :first], noisy[name][..., first:]
                noisy[name] = torch.cat([places, patch * (places[..., :1] != 0)], -1)
        return self.with_model_inputs(**noisy)

    @property
    def along(self) -> tuple[str, ...]:
        """The model inputs that have an axis of positions, their second."""
        return tuple(k for k, v in self.model_inputs.items() if k in self.fills or v.shape == self.input_ids.shape)

    def first(self, count: int) -> dict[str, Tensor]:
        """The model inputs without the positions behind the first ones."""
        along = self.along
        return {k: v[:, :count] if k in along else v for k, v in self.model_inputs.items()}

    def prompt_inputs(self) -> dict[str, Tensor]:
        """The model inputs without the answer's positions."""
        return self.first(self.answer_start)

    def with_answer(self, ids: Sequence[int], tokens: Sequence[str], text: str) -> Inputs:
        """The same prompt followed by this answer."""
        if not len(ids):
            raise InputError(f"the answer {text!r} tokenises to nothing; give at least one word")
        prompt, added = self.answer_start, torch.tensor([list(ids)], dtype=torch.long)
        changed = self.prompt_inputs()
        for name in self.along:
            value = changed[name]
            last = value[:, -1:].expand(-1, len(ids), *value.shape[2:])
            fill = self.fills.get(name, 1 if name == "attention_mask" else 0)
            tail = last if fill is None else torch.full_like(last, fill)
            if name == "position_ids":
                tail = last + torch.arange(1, len(ids) + 1, device=last.device)
            changed[name] = torch.cat([value, added.to(value.device) if name == "input_ids" else tail], 1)
        answered: list[Role] = ["answer"] * len(ids)
        return dataclasses.replace(
            self,
            model_inputs=changed,
            roles=(*self.roles[:prompt], *answered),
            tokens=(*self.tokens[:prompt], *tokens),
            texts={**self.texts, "answer": text},
        )


def pixels_of(model_inputs: Mapping[str, Any], video: bool | None = None) -> dict[str, Tensor]:
    """The model inputs that hold pixels; those of videos, or those of pictures, if it is said.

    Other numbers with a point have one axis, such as Qwen2.5-VL's seconds between frames.
    """
    found = {k: v for k, v in model_inputs.items() if isinstance(v, Tensor) and v.is_floating_point() and v.ndim > 1}
    return {k: v for k, v in found.items() if video is None or video == (k == VIDEO_PIXELS)}


class Answer(str):
    """A generated answer: a string that remembers its token ids, so that it is scored exactly as generated."""

    ids: tuple[int, ...]
    finished: bool

    def __new__(cls, text: str, ids: Iterable[int], finished: bool = True) -> Answer:
        answer = super().__new__(cls, text)
        answer.ids, answer.finished = tuple(ids), finished
        return answer


def open_image(image: ImageLike) -> Image.Image:
    """An RGB image from a file or a PIL image; transparency is laid on white.

    Raises:
        ImageError: missing, truncated, empty or animated, or not an image at all.
    """
    name = repr(str(image)) if isinstance(image, (str, Path)) else "the image"
    if isinstance(image, (str, Path)) and not Path(image).is_file():
        raise ImageError(f"no image file at {name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(image, (str, Path)):
                with Image.open(image) as opened:
                    return _decoded(opened, name)
            if not isinstance(image, Image.Image):
                raise ImageError(f"an image is a PIL image or a path, got {type(image).__name__}")
            return _decoded(image, name)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that Pillow can read (empty or broken file?)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name} cannot be decoded: {error}") from error


def open_video(video: VideoLike) -> list[Image.Image]:
    """The frames of a video as RGB images.

    Raises:
        ImageError: no frames, frames of different sizes, or what is no frame.
    """
    if isinstance(video, (str, Path)):
        raise ImageError("a video is given as a list of its frames, not as a file: read it and choose frames first")
    frames = [_frame(frame) for frame in video]
    if not frames or len(sizes := {frame.size for frame in frames}) > 1:
        what = f"frames of the sizes {sorted(sizes)}" if frames else "no frames"
        raise ImageError(f"a video is a list of frames of one size; got {what}")
    return frames


def _frame(frame: Any) -> Image.Image:
    if isinstance(frame, ImageLike):
        return open_image(frame)
    values = np.asarray(frame)
    if values.dtype != np.uint8 or values.ndim != 3 or values.shape[2] != 3:
        raise ImageError(
            "a frame is a PIL image, a path, or an array [height, width, 3] of bytes (uint8); "
            f"got {values.dtype} {list(values.shape)}"
        )
    return open_image(Image.fromarray(values))


def _decoded(opened: Image.Image, name: str) -> Image.Image:
    if (frames := getattr(opened, "n_frames", 1)) > 1:
        raise ImageError(f"{name} is animated ({frames} frames); give one frame as a PIL image")
    opened.load()
    return _on_white(opened)


def _on_white(image: Image.Image) -> Image.Image:
    if min(image.size) == 0:
        raise ImageError("the image is empty (0 pixels)")
    if image.has_transparency_data:
        colored = image.convert("RGBA")
        white = Image.new("RGBA", colored.size, "white")
        return Image.alpha_composite(white, colored).convert("RGB")
    return image.convert("RGB")
