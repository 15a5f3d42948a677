"""Questions, pictures and answers as what a model is called with."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.given import explained
from lvlm_interp.inputs import prompt
from lvlm_interp.inputs.batch import Batch, batched
from lvlm_interp.inputs.example import VIDEO_PIXELS, Answer, Inputs, Role, Written, pixels_of
from lvlm_interp.inputs.media import ImageLike, VideoLike, open_image, open_video
from lvlm_interp.inputs.view import ImageView, Shown
from lvlm_interp.model.anatomy import Anatomy
from lvlm_interp.model.views import find_views, shown_in

if TYPE_CHECKING:
    from PIL.Image import Image

OPEN = {"image": open_image, "video": open_video}
"""What opens the parts of a message that are shown, by their type."""


class Preparing(Anatomy):
    """A model that makes its own inputs: with its processor, or from tensors that are processed already."""

    @functools.cached_property
    def prompter(self) -> prompt.Prompter:
        if self.processor is None:
            raise ModelError(
                "this model was wrapped without a processor, which text and images need: "
                "wrap(model, processor), or use vlm.inputs(input_ids=…) for tensors that are processed already"
            )
        return prompt.Prompter(self.processor, self.family.prompt)

    @explained
    def prepare(
        self,
        question: str,
        image: ImageLike | Sequence[ImageLike] | None = None,
        context: str | None = None,
        system: str | None = None,
        answer: str | None = None,
        video: VideoLike | None = None,
        fps: float | None = None,
    ) -> Inputs:
        """One question as model inputs, with the role of every position.

        Args:
            question: what is asked.
            image: a path or PIL image, or several; None asks without an image.
            context: text of the user before the question.
            system: a system message.
            answer: the answer to explain; an `Answer` from `generate` keeps its exact tokens.
            video: the frames of a video, behind the images if there are any; all of them are shown.
            fps: frames per second of these frames, for families that tell the model the time; None leaves it to the
                processor (24 in most).

        Raises:
            ImageError: the image, or a frame, cannot be read.
            InputError: an empty question, a text that tokenises to nothing, or a video where the family has none.
        """
        several = [image] if image is None or isinstance(image, ImageLike) else list(image)
        pictures = [open_image(one) for one in several if one is not None]
        clip = None if video is None else {"video": open_video(video), "fps": fps}
        return self._prepared(prompt.conversation(question, pictures, context, system, clip), answer)

    @explained
    def prepare_chat(self, messages: Sequence[Mapping[str, Any]], answer: str | None = None) -> Inputs:
        """Chat messages (transformers' format, images as `{"type": "image", "image": …}`) as model inputs.

        Videos are `{"type": "video", "video": frames}`, with `"fps"` if it is known; all frames are shown. The last
        text is the question, system messages are system, everything said before is context.
        """
        opened = prompt.listed(messages)
        for message in opened:
            message["content"] = [
                {**part, kind: OPEN[kind](part[kind])} if (kind := str(part.get("type"))) in OPEN else part
                for part in message["content"]
            ]
        return self._prepared(opened, answer)

    def _prepared(self, messages: list[prompt.Message], answer: str | None) -> Inputs:
        encoded = self.prompter.encode(messages)
        shown = [_shown(part) for m in messages for part in m["content"] if part["type"] in OPEN]
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
        x = self._accepted(self._example(model_inputs, roles, len(ids), views, texts, encoded.written))
        if answer is None:
            return x
        if isinstance(answer, Answer):
            return self.answered(x, answer)
        return self._answered(x, self.prompter.answer_ids(messages, answer), answer)

    @explained
    def inputs(
        self,
        input_ids: Tensor,
        answer_start: int | None = None,
        roles: Sequence[Role] | None = None,
        **model_inputs: Tensor,
    ) -> Inputs:
        """Tensors that are processed already; no processor is needed.

        Args:
            input_ids: `[1, T]`, the answer included.
            answer_start: first position of the answer; none by default.
            roles: T roles; by default image tokens are `image`, the answer is `answer`, special tokens and the position
                that predicts the first answer token are `template`, and the rest is `question`.
            model_inputs: the other arguments of the model (`pixel_values`, …).

        Raises:
            InputError: shapes that do not fit, image tokens without pixels, or a video where the model takes none.
        """
        if input_ids.ndim != 2 or len(input_ids) != 1:
            raise InputError(f"input_ids is one example, [1, T]; got {list(input_ids.shape)}")
        start = input_ids.shape[-1] if answer_start is None else answer_start
        given = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **model_inputs}
        given = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in given.items()}
        ids = input_ids[0].tolist()
        for name, fill in self._fills(given).items():
            if fill is not None:
                given[name] = torch.cat([given[name][:, :start], torch.full_like(given[name][:, start:], fill)], 1)
        self._need_video(given)
        views = find_views(self, given, shown_in(self, given))
        named = roles or self._plain_roles(ids, self.visual_in(given)[0].tolist(), start)
        return self._accepted(self._example(given, named, start, views))

    def _example(
        self,
        model_inputs: Mapping[str, Tensor],
        roles: Sequence[Role],
        start: int,
        views: tuple[ImageView, ...],
        texts: Mapping[str, str] | None = None,
        written: tuple[Written, ...] = (),
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
        )

    def _accepted(self, x: Inputs) -> Inputs:
        """What is made goes through here: whatever opens a model may look at it first."""
        return x

    def _fills(self, model_inputs: Mapping[str, Any]) -> dict[str, int | None]:
        return {k: v for k, v in self.family.fills.items() if k in model_inputs}

    def _plain_roles(self, ids: Sequence[int], visual: Sequence[bool], start: int) -> list[Role]:
        text = self.model.config.get_text_config()
        special = {getattr(text, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")}
        roles: list[Role] = [
            "image" if shown else "template" if i in special else "question"
            for i, shown in zip(ids[:start], visual[:start], strict=True)
        ]
        if roles and roles[-1] == "question":
            roles[-1] = "template"
        answer: list[Role] = ["answer"] * (len(ids) - start)
        return roles + answer

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
            return tuple(f"<{i}>" for i in ids)
        return tuple(self.prompter.read(i) for i in ids)

    @explained
    def batch(self, examples: Sequence[Inputs]) -> Batch:
        """Examples side by side, padded on the left, for `run` and `capture`; each row computes what it does alone.

        Raises:
            InputError: no example, or examples of which only some have an image.
        """
        return batched(examples, self.stops()[0] if self.uncounted is None else self.uncounted)

    def with_pictures(self, x: Inputs, pictures: Sequence[Image | list[Image]]) -> Inputs:
        """The same example with other pictures of the same size in the place of its own; of a video, its frames."""
        processed = self.prompter.pixels(pictures)
        changed = {k: v.to(x.model_inputs[k]) for k, v in processed.items() if k in x.model_inputs}
        return x.with_model_inputs(**changed)

    @explained
    def answered(self, x: Inputs, answer: str) -> Inputs:
        """The same prompt with this answer (an `Answer` keeps its exact tokens)."""
        ids = answer.ids if isinstance(answer, Answer) else self.prompter.answer_ids((), answer)
        return self._answered(x, ids, answer)

    def _answered(self, x: Inputs, ids: Sequence[int], answer: str) -> Inputs:
        return x.with_answer(ids, self.token_strings(ids), str(answer))

    def stops(self) -> list[int]:
        """Ids of the tokens that end a turn."""
        stops = self.model.generation_config.eos_token_id
        stops = self.model.config.get_text_config().eos_token_id if stops is None else stops
        return list(stops) if isinstance(stops, (list, tuple)) else [0 if stops is None else stops]


def _shown(part: Mapping[str, Any]) -> Shown:
    video = part["type"] == "video"
    return Shown(tuple(part["video"]) if video else (part["image"],), video)
