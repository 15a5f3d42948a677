"""What a model is called with, and what every position of it is."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lvlm_interp.errors import InputError, VisibilityError
from lvlm_interp.fields import shown
from lvlm_interp.given import explained, explaining
from lvlm_interp.inputs.called import need_by_position, pixels_of
from lvlm_interp.inputs.replaced import need_ids, need_read, need_same_tokens
from lvlm_interp.inputs.reply import UNOPENED, Opening
from lvlm_interp.inputs.view import ImageView
from lvlm_interp.shown import printable

Role = Literal["template", "system", "context", "question", "image", "answer"]
ROLES: tuple[Role, ...] = get_args(Role)
CREDITED: tuple[Role, ...] = ("question", "context", "system", "image")
"""The roles that can be given credit; template and the answer so far are always visible."""

MOST_ID = 2**63  # of 64 bits


def need_role(role: str) -> None:
    """Raise unless a role is known, and say which one was meant.

    Raises:
        VisibilityError: it is unknown.
    """
    if role in ROLES:
        return
    near = difflib.get_close_matches(str(role), ROLES, 1)
    meant = f": did you mean {near[0]!r}?" if near else ""
    raise VisibilityError(f"no role {role!r}{meant}; the roles are {list(ROLES)}")


@dataclass(frozen=True)
class Written:
    """A piece of text that the user wrote, and where it stands.

    Attributes:
        role: system, context or question.
        turn: the number of its message in the conversation, counted from 0.
        start, stop: its span of positions; images that stand in it are not part of it.
    """

    role: Role
    turn: int
    start: int
    stop: int


@explaining
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
        places: model inputs whose patches begin with numbers that are no pixels, and how many: where a patch stands,
            all 0 in padding.
        written: what the user wrote, piece by piece in the prompt's order; empty where that is not known (tensors that
            are processed already).
        opening: what the template writes before a reply, behind the prompt that generation begins with.
        opened: what of it stands in the prompt, before an answer that is given; None without one.
    """

    model_inputs: Mapping[str, Tensor]
    roles: tuple[Role, ...]
    answer_start: int
    images: tuple[ImageView, ...] = ()
    tokens: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    fills: Mapping[str, int | None] = field(default_factory=dict)
    places: Mapping[str, int] = field(default_factory=dict)
    written: tuple[Written, ...] = ()
    opening: Opening = UNOPENED
    opened: Opening | None = None

    def __post_init__(self) -> None:
        need_by_position(self.model_inputs, or_whole=True)
        shape = tuple(self.model_inputs["input_ids"].shape)
        length = shape[-1]
        if shape != (1, length):
            raise InputError(f"one example at a time: input_ids is {shape}, expected [1, T]")
        if len(self.roles) != length or not 0 < self.answer_start <= length:
            raise InputError(
                f"{len(self.roles)} roles and answer_start={self.answer_start} do not fit {length} positions"
            )

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.roles.count(role)} {role}" for role in self.present)
        sizes = ("no picture" if v.picture is None else "{} × {}".format(*v.picture.size) for v in self.images)
        said = [f"{self.question!r} → {self.answer!r}"] if self.texts or self.answer_tokens else []
        about = [f"{self.length} positions ({counts})", *(f"image: {size}" for size in sizes), *said]
        return printable(f"Inputs({'; '.join(about)})")

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
        for role in roles:
            need_role(role)
        return torch.tensor([role in roles for role in self.roles])

    @property
    def everything(self) -> Bool[Tensor, " position"]:
        """The coalition that sees all positions."""
        return torch.ones(self.length, dtype=torch.bool)

    def hidden(self, role: str, *roles: str) -> Bool[Tensor, " position"]:
        """The coalition that sees everything but these roles.

        Raises:
            VisibilityError: a role that is not one of `ROLES`.
        """
        return ~self.where(role, *roles)

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
        """The same example with some model inputs replaced; of other pixels nobody knows the picture any more.

        Raises:
            InputError: other shapes or tokens, or a mask that leaves out what the answer is read from.
        """
        for name, value in changed.items():
            found = self.model_inputs.get(name)
            if found is None or found.shape != value.shape:
                shape = None if found is None else tuple(found.shape)
                raise InputError(f"model input {name!r} has shape {shape}; got {tuple(value.shape)}")
        if self.tokens and "input_ids" in changed:
            need_same_tokens(self.input_ids, changed["input_ids"])
        if "attention_mask" in changed:
            need_read(changed["attention_mask"], self.answer_start)
        anew = changed.keys() & self.pixels.keys()
        views = tuple(dataclasses.replace(view, picture=None, clip=()) for view in self.images) if anew else self.images
        return dataclasses.replace(self, model_inputs={**self.model_inputs, **changed}, images=views)

    def with_noise(self, kept: float, generator: torch.Generator) -> Inputs:
        """The same example with noise on its pixels, √kept·x + √(1−kept)·ε; where patches stand is left as it is.

        NumPy draws it, to the last digit alike on every processor.

        Raises:
            InputError: a share that is not from 0 to 1.
        """
        if not 0 <= kept <= 1:
            raise InputError(f"kept is the share of the picture that stays, from 0 to 1; got {kept}")
        drawing = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        noisy = {}
        for name, value in self.pixels.items():
            drawn = torch.from_numpy(drawing.standard_normal(value.shape, np.float32)).to(value)
            noisy[name] = math.sqrt(kept) * value + math.sqrt(1 - kept) * drawn
            if first := self.places.get(name):
                places, patch = value[..., :first], noisy[name][..., first:]
                noisy[name] = torch.cat([places, patch * (places[..., :1] != 0)], -1)
        return self.with_model_inputs(**noisy)

    @property
    def along(self) -> tuple[str, ...]:
        """The model inputs that have an axis of positions, their second."""
        shape = self.input_ids.shape  # an option of the model has none
        return tuple(k for k, v in self.model_inputs.items() if k in self.fills or getattr(v, "shape", None) == shape)

    def first(self, count: int) -> dict[str, Tensor]:
        """The model inputs without the positions behind the first ones."""
        need_by_position(self.model_inputs)
        along = self.along
        return {k: v[:, :count] if k in along else v for k, v in self.model_inputs.items()}

    def prompt_inputs(self) -> dict[str, Tensor]:
        """The model inputs without the answer's positions."""
        return self.first(self.answer_start)

    @property
    def prompt(self) -> Inputs:
        """The same without its answer."""
        start = self.answer_start
        texts = {role: text for role, text in self.texts.items() if role != "answer"}
        return dataclasses.replace(
            self,
            model_inputs=self.prompt_inputs(),
            roles=self.roles[:start],
            tokens=self.tokens[:start],
            texts=texts,
        )

    def with_answer(self, ids: Sequence[int], tokens: Sequence[str], text: str) -> Inputs:
        """The same prompt followed by this answer."""
        if not len(ids):
            raise InputError(f"the answer {text!r} tokenises to nothing; give at least one word")
        made = self._followed(need_ids(ids), tokens, "answer")
        return dataclasses.replace(made, texts={**self.texts, "answer": text})

    def with_opening(self, opened: Opening, read: Callable[[Sequence[int]], Sequence[str]]) -> Inputs:
        """The same prompt with what the template opens a reply with, in the place of what opened another; no answer.

        `read` tells how ids read, one by one.
        """
        gone = self.opened or UNOPENED
        made = self._cut(len(gone.ids))._ending(gone.cut, read)._cut(len(opened.cut))
        return dataclasses.replace(made._ending(opened.ids, read), opened=opened)

    def _ending(self, ids: Sequence[int], read: Callable[[Sequence[int]], Sequence[str]]) -> Inputs:
        """The prompt with more of the template's own."""
        made = self._followed(ids, tuple(read(ids)), "template") if ids else self
        return dataclasses.replace(made, answer_start=made.length)

    def _cut(self, count: int) -> Inputs:
        """The prompt without its last positions."""
        return dataclasses.replace(self, answer_start=self.answer_start - count).prompt

    def _followed(self, ids: Sequence[int], tokens: Sequence[str], role: Role) -> Inputs:
        """The prompt, followed by other tokens in the place of its answer."""
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
        more: list[Role] = [role] * len(ids)
        return dataclasses.replace(
            self,
            model_inputs=changed,
            roles=(*self.roles[:prompt], *more),
            tokens=(*self.tokens[:prompt], *tokens),
        )


class Answer(str):
    """A generated answer: a string that remembers its token ids, so that it is scored exactly as generated."""

    ids: tuple[int, ...]
    finished: bool

    @explained
    def __new__(
        cls, text: str, ids: Iterable[int] | Int[Tensor, " token"] | Int[np.ndarray, " token"], finished: bool = True
    ) -> Answer:
        kept = ids.tolist() if isinstance(ids, (Tensor, np.ndarray)) else list(ids)
        if not isinstance(text, str) or not all(isinstance(one, Integral) for one in kept):
            raise InputError(f"an answer is a text and its token ids, whole numbers; got {shown(text)}, {shown(kept)}")
        if beyond := [one for one in kept if not -MOST_ID <= one < MOST_ID]:
            raise InputError(f"ids of tokens are numbers of at most 64 bits; got one of {int(beyond[0]).bit_length()}")
        answer = super().__new__(cls, text)
        answer.ids, answer.finished = tuple(map(int, kept)), finished
        return answer

    def __getnewargs__(self) -> tuple[str, tuple[int, ...], bool]:  # type: ignore[override]
        return str(self), self.ids, self.finished  # for copies, and other processes
