"""Questions, pictures and answers as what a model is called with."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from lvlm_interp.errors import InputError, LvlmInterpWarning, ModelError
from lvlm_interp.given import checked, explaining
from lvlm_interp.inputs import chat, prompt
from lvlm_interp.inputs.batch import Batch, batched
from lvlm_interp.inputs.called import VIDEO_PIXELS, need_by_position, pixels_of
from lvlm_interp.inputs.example import Answer, Inputs, Role, Written
from lvlm_interp.inputs.handmade import need_kinds, need_predicting, need_usual, read_by_hand
from lvlm_interp.inputs.media import VideoLike, open_images, open_video, shown_anew
from lvlm_interp.inputs.reply import UNOPENED, Opening, Reply
from lvlm_interp.inputs.roles import need_roles
from lvlm_interp.inputs.sources import ImageLike
from lvlm_interp.inputs.spelling import LOST, Decode, spelled
from lvlm_interp.inputs.view import ImageView, Shown
from lvlm_interp.model.anatomy import Anatomy
from lvlm_interp.model.beside import why_apart
from lvlm_interp.model.limits import warn_if_longer
from lvlm_interp.model.stops import ids_in, stops_of
from lvlm_interp.model.views import find_views, need_seen, shown_in

SPECIAL = re.compile("_token_(id|index)s?$")
"""How configs end the names of tokens that no one writes."""


@explaining
class Preparing(Anatomy):
    """A model that makes its own inputs: with its processor, or from tensors that are processed already."""

    @functools.cached_property
    def prompter(self) -> prompt.Prompter:
        if self.processor is None:
            raise ModelError(
                "this model was wrapped without a processor, which text and images need: "
                "wrap(model, processor), or use vlm.inputs(input_ids=…) for tensors that are processed already"
            )
        return prompt.Prompter(self.processor, self.family.prompt, self.visual_token_ids)

    @property
    def decode(self) -> Decode | None:
        """What makes text of token ids; None where there is no tokenizer."""
        return None if self.processor is None else self.prompter.text

    def prepare(
        self,
        question: str,
        image: ImageLike | Iterable[Any] | None = None,
        context: str | None = None,
        system: str | None = None,
        answer: str | None = None,
        video: VideoLike | None = None,
        fps: float | None = None,
    ) -> Inputs:
        """One question as model inputs, with the role of every position.

        Args:
            question: what is asked.
            image: a picture in any of the forms of `ImageLike` (a path, an address, bytes, an open file, an array, a
                PIL image, …), or a list of several; None asks without an image. Pictures are turned as their camera
                says (EXIF), and transparency is laid on white.
            context: text of the user before the question.
            system: a system message.
            answer: the answer to explain; an `Answer` from `generate` keeps its exact tokens.
            video: the frames of a video, behind the images if there are any; all of them are shown.
            fps: frames per second of these frames, for families that tell the model the time; None leaves it to the
                processor (24 in most).

        Raises:
            ImageError: the image, or a frame, cannot be read; a list of no images, or None in it.
            InputError: an empty question, what is no text, a text that tokenises to nothing, question and image the
                other way round, a video where the family has none, or `fps` that is not above 0 or of no video.

        Warns:
            LvlmInterpWarning: the example is longer than the model was made for.
        """
        chat.need_texts(question, image, context=context, system=system, answer=answer)
        if fps is not None and (video is None or not 0 < fps < math.inf):
            raise InputError(
                f"fps= is of a video, video=…, and above 0; got {fps!r}{' and no video' * (video is None)}"
            )
        pictures = open_images(image)
        clip = None if video is None else {"video": open_video(video), "fps": fps}
        return self._prepared(chat.conversation(question, pictures, context, system, clip), answer)

    def prepare_chat(self, messages: Sequence[Mapping[str, Any]], answer: str | None = None) -> Inputs:
        """Chat messages as transformers takes them as model inputs.

        Images are `{"type": "image", "image": …}`, or with `url`, `path` or `base64`. Videos are
        `{"type": "video", "video": frames}`, with `"fps"` if it is known; all frames are shown. The last text is the
        question, system messages are system, everything said before is context.

        Raises:
            ImageError: an image, or a frame, cannot be read.
            InputError: a message that cannot be read, or a conversation that does not end with a question; see
                `prepare` for the others.
        """
        opened = chat.opened(messages)
        chat.need_texts("", None, answer=answer)
        return self._prepared(opened, answer)

    def _prepared(self, messages: list[chat.Message], answer: str | None) -> Inputs:
        prompter = self.prompter.remembering()
        encoded = prompter.encode(messages)
        shown = [_shown(part) for m in messages for part in m["content"] if part["type"] in chat.SHOWN]
        model_inputs = {k: v.to(self.device) for k, v in encoded.model_inputs.items() if isinstance(v, Tensor)}
        if self.family.cast:
            model_inputs |= {k: v.to(self.model.dtype) for k, v in pixels_of(model_inputs).items()}
        ids = model_inputs["input_ids"][0].tolist()
        roles: list[Role] = ["template"] * len(ids)
        texts: dict[str, str] = {}
        for segment, (start, stop) in zip(encoded.segments, encoded.spans, strict=True):
            roles[start:stop] = [segment.role] * (stop - start)
            texts[segment.role] = texts.get(segment.role, "") + segment.text
        views = find_views(self, model_inputs, shown)
        for position in (int(p) for view in views for p in view.positions):
            roles[position] = "image"
        x = self._example(model_inputs, roles, len(ids), views, texts, encoded.written, encoded.opening)
        x = self._accepted(x)
        if answer is None:
            return self._finished(x)
        return self._answered(x, answer, functools.partial(prompter.reply, messages))

    def inputs(
        self,
        input_ids: Tensor,
        answer_start: int | None = None,
        roles: Iterable[str] | None = None,
        **model_inputs: Any,
    ) -> Inputs:
        """Tensors that are processed already; no processor is needed.

        Args:
            input_ids: `[1, T]`, the answer included.
            answer_start: first position of the answer; none by default.
            roles: T roles; by default image tokens are `image`, the answer is `answer`, special tokens (BOS, marks
                around an image, …) and the position that predicts the first answer token are `template`, and the rest
                is `question`. Special are those that the config or the tokenizer names.
            model_inputs: the other arguments of the model (`pixel_values`, …); None stands for none.

        Raises:
            InputError: shapes that do not fit, tensors that hold no plain numbers, a mask of what each position sees,
                embeddings in the place of tokens, ids that are no token's, a mask that hides everything, image tokens
                without pixels, or a video where the model takes none.
            VisibilityError: an unknown role, or one that does not fit what stands there.

        Warns:
            LvlmInterpWarning: the example is longer than the model was made for.
        """
        if input_ids.ndim != 2 or len(input_ids) != 1:
            raise InputError(f"input_ids is one example, [1, T]; got {list(input_ids.shape)}")
        if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise InputError(f"input_ids are whole numbers; got {input_ids.dtype}")
        start = input_ids.shape[-1] if answer_start is None else operator.index(answer_start)
        named = roles if roles is None or isinstance(roles, str) else tuple(roles)
        need_kinds(model_inputs)
        given = {"input_ids": input_ids.long(), **{k: v for k, v in model_inputs.items() if v is not None}}
        with read_by_hand(given):
            x = self._by_hand(given, start, named)
        return self._finished(self._accepted(x))

    def _by_hand(self, model_inputs: Mapping[str, Any], start: int, roles: Sequence[str] | None) -> Inputs:
        """An example of tensors, held against each other and against the model."""
        input_ids = model_inputs["input_ids"]
        marked = {name: torch.zeros_like(input_ids) for name, fill in self.family.fills.items() if fill is not None}
        given = {**marked, "attention_mask": torch.ones_like(input_ids), **model_inputs}
        given = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in given.items()}
        need_by_position(given)
        ids = input_ids[0].tolist()
        for name, fill in self._fills(given).items():
            if fill is not None:
                given[name] = torch.cat([given[name][:, :start], torch.full_like(given[name][:, start:], fill)], 1)
        need_predicting(given["attention_mask"], start)
        self._need_known(given)
        self._need_video(given)
        views = find_views(self, given, shown_in(self, given))
        visual = self.visual_in(given)[0].tolist()
        if self.family.carriers:
            need_seen(given, visual)
        if roles is not None:
            need_roles(roles, visual, start)
        elif any(visual[start:]):
            raise InputError(
                f"answer_start={start} stands before the end of the image, whose last token is at "
                f"{max(i for i, shown in enumerate(visual) if shown)}: an answer is text behind it"
            )
        named = self._plain_roles(ids, visual, start) if roles is None else cast("Sequence[Role]", roles)
        texts = {"answer": self.text_of(ids[start:])} if start < len(ids) else {}
        x = self._example(given, named, start, views, texts)
        need_usual(x)
        return x

    def _example(
        self,
        model_inputs: Mapping[str, Tensor],
        roles: Sequence[Role],
        start: int,
        views: tuple[ImageView, ...],
        texts: Mapping[str, str] | None = None,
        written: tuple[Written, ...] = (),
        opening: Opening = UNOPENED,
    ) -> Inputs:
        """An example, with what the family says of its model inputs."""
        return Inputs(
            model_inputs,
            tuple(roles),
            start,
            views,
            self.token_strings(model_inputs["input_ids"][0].tolist()),
            texts or {},
            self._fills(model_inputs),
            self.family.places,
            written,
            opening,
        )

    def _accepted(self, x: Inputs) -> Inputs:
        """What is made goes through here: whatever opens a model may look at it first."""
        return x

    def _finished(self, x: Inputs) -> Inputs:
        warn_if_longer(x.length, self.model.config)
        return x

    def _fills(self, model_inputs: Mapping[str, Any]) -> dict[str, int | None]:
        return {k: v for k, v in self.family.fills.items() if k in model_inputs}

    def _plain_roles(self, ids: Sequence[int], visual: Sequence[bool], start: int) -> list[Role]:
        special = self._special_ids()
        roles: list[Role] = [
            "image" if shown else "template" if i in special else "question"
            for i, shown in zip(ids[:start], visual[:start], strict=True)
        ]
        if roles and roles[-1] == "question":
            roles[-1] = "template"
        answer: list[Role] = ["answer"] * (len(ids) - start)
        return roles + answer

    def _special_ids(self) -> set[int]:
        """Ids of tokens that no one writes: BOS, ends of turns, marks around images."""
        config = self.model.config
        parts = (config, config.get_text_config(), self.model.generation_config)
        told = [pair for part in parts if part is not None for pair in vars(part).items() if SPECIAL.search(pair[0])]
        listed = [ids_in(name, value) for name, value in told]
        added = getattr(getattr(self.processor, "tokenizer", self.processor), "added_tokens_decoder", {})
        return {*itertools.chain(*listed), *(i for i, token in added.items() if token.special)}

    def _need_known(self, given: Mapping[str, Any]) -> None:
        """Raise where a position has no token of this model, or none is to be read."""
        if not given["input_ids"].numel():
            raise InputError("input_ids holds no token: a prompt has at least one")
        self._need_tokens(given["input_ids"][0], "input_ids")
        mask = given["attention_mask"]
        if isinstance(mask, Tensor) and not mask.any():
            raise InputError("attention_mask is 0 everywhere: there is no position to read; 1 marks those that count")

    def _need_tokens(self, ids: Int[Tensor, " position"], where: str) -> None:
        count = max(self.token_count, 1 + max(self._special_ids() | {*self.visual_token_ids}, default=-1))
        if self.token_count and (wrong := ids[(ids < 0) | (ids >= count)].tolist()):
            raise InputError(f"{where} holds {wrong[0]}, and the tokens of this model are 0 to {count - 1}")

    def _need_words(self, answer: Answer) -> None:
        """Raise where a token of an answer is none of this model, or stands for a piece of a picture."""
        self._need_tokens(torch.tensor(answer.ids), "the answer")
        if showing := [i for i in answer.ids if i in self.visual_token_ids]:
            token = self.token_strings(showing)[0]
            raise InputError(
                f"the answer {str(answer)!r} holds the token {showing[0]} ({token!r}), for which the model looks for a "
                "picture: an answer has none. Answer(text, ids) without it can be scored"
            )

    def _need_video(self, model_inputs: Mapping[str, Any]) -> None:
        """Raise if there are pixels of a video, and the model takes none."""
        if VIDEO_PIXELS in model_inputs and VIDEO_PIXELS not in inspect.signature(self.model.forward).parameters:
            raise InputError(
                f"models of type {self.model.config.model_type!r} take no {VIDEO_PIXELS}: they read no videos, or "
                "their frames as images (pixel_values)"
            )

    def token_strings(self, ids: Iterable[int]) -> tuple[str, ...]:
        """What each token reads as behind other text, blank included; `<5>` for id 5 where there is no tokenizer."""
        if self.processor is None:
            return tuple(f"<{int(i)}>" for i in ids)
        return tuple(self._read(i) for i in ids)

    def _read(self, token: int) -> str:
        try:
            return self.prompter.read(token)
        except OverflowError as error:  # of tokenizers, which count in 32 bits
            raise InputError(f"no token has the id {token}: ids are whole numbers from 0") from error

    def text_of(self, ids: Sequence[int]) -> str:
        """What tokens read as together behind other text; bytes that are no whole character as such, `<0xE7>`."""
        tokens = self.token_strings(ids)
        text = spelled(tokens, ids, self.decode).text
        if LOST in text:
            return "".join(tokens)
        blank = bool(tokens) and tokens[0][:1] == " " != text[:1]  # some drop it from a text's beginning
        return f" {text}" if blank else text

    def batch(self, examples: Iterable[Inputs]) -> Batch:
        """Examples side by side, padded on the left, for `run` and `capture`; each row computes what it does alone.

        Raises:
            InputError: no example, examples of which only some have an image, or a model in which a row would compute
                something else than its example does alone.
        """
        examples = tuple(examples)  # of an iterator too
        if len(examples) > 1 and (why := self.not_side_by_side([x.length for x in examples])):
            raise InputError(f"examples of this model cannot stand side by side: {why}. Run them one by one")
        padding = self.stops()[0] if self.uncounted is None else self.uncounted
        made = batched(examples, padding, self.family.packed, self.family.indices)
        make = None if "position_ids" in made.model_inputs else self.family.positions
        own = [p for x in examples if make and (p := make(self.model.base_model, x.model_inputs)) is not None]
        if len(own) < len(examples):
            return made
        positions = torch.cat([torch.nn.functional.pad(p, (made.length - p.shape[-1], 0)) for p in own], -2)
        return dataclasses.replace(made, model_inputs={**made.model_inputs, "position_ids": positions})

    def not_side_by_side(self, lengths: Sequence[int]) -> str:
        """Why examples of these lengths cannot stand in one batch; empty if they can."""
        return why_apart(self.model, self.family, self.dtype, lengths)

    @checked
    def with_pictures(self, x: Inputs, pictures: Sequence[ImageLike | VideoLike]) -> Inputs:
        """The same example with other pictures of the same size in the place of its own; of a video, its frames.

        They are opened as `prepare` opens them, and are the example's pictures from then on.

        Raises:
            InputError: another number of pictures than the example has, or of frames.
            ImageError: pictures of another size, or what is none.
        """
        if len(pictures) != len(x.images):
            raise InputError(f"the example has {len(x.images)} pictures and videos; got {len(pictures)}")
        views = [shown_anew(view, given) for view, given in zip(x.images, pictures, strict=True)]
        processed = self.prompter.pixels([list(view.clip) or view.picture for view in views])
        changed = {k: v.to(x.model_inputs[k]) for k, v in processed.items() if k in x.model_inputs}
        return dataclasses.replace(x.with_model_inputs(**changed), images=tuple(views))

    def answered(self, x: Inputs, answer: str) -> Inputs:
        """The same prompt with this answer, as the chat template writes it.

        An `Answer` of `generate` keeps its exact tokens; before another, the prompt gets what the template writes
        before a reply (`Inputs.opening`).
        """
        chat.need_texts("", None, answer=answer)
        return self._answered(x, answer, self.prompter.any_reply)

    def _answered(self, x: Inputs, answer: str, reply: Callable[[str], Reply]) -> Inputs:
        """An answer as a model writes it: blanks around it are not what follows a prompt, and are left out."""
        if isinstance(answer, Answer):
            self._need_words(answer)
            return self._finished(x.with_answer(answer.ids, self.token_strings(answer.ids), str(answer)))
        found = reply(answer.strip() or answer)
        if x.opening:
            x = x.with_opening(x.opening.without(found.dropped), self.token_strings)
        ids = found.ids
        tokens = self.token_strings(ids)
        if answer != answer.strip() and "".join(tokens) != answer:
            warnings.warn(
                f"the answer {answer!r} is scored as {''.join(tokens)!r}, which is how it follows this prompt; "
                "Answer(text, ids) keeps other tokens",
                LvlmInterpWarning,
                stacklevel=3,
            )
        return self._finished(x.with_answer(ids, tokens, answer.strip()))

    def stops(self) -> list[int]:
        """Ids of the tokens that end a turn: those of the config where its settings of generation name none.

        Raises:
            ModelError: they are no ids.
        """
        return stops_of(self.model, self.readout.vocabulary)


def _shown(part: Mapping[str, Any]) -> Shown:
    video = part["type"] == "video"
    return Shown(tuple(part["video"]) if video else (part["image"],), video)
