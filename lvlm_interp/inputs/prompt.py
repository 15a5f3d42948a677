"""From messages to token ids, and from token ids to roles.

What a position is, is decided by the ids that reach the decoder, never by offsets in a string: a position belongs to
a piece of the user's text if its id changes when that piece is replaced by another. So it does not matter how a
template, a processor or a tokenizer treats the text.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.inputs.called import pixels_of
from lvlm_interp.inputs.chat import Message, Segment, about_videos, conversation, need_whole, segments_of
from lvlm_interp.inputs.example import Written
from lvlm_interp.inputs.once import once
from lvlm_interp.inputs.refused import need_pictures_taken, settings_of
from lvlm_interp.inputs.renderings import PLACEHOLDERS, changed, placeholder, replaced, splice
from lvlm_interp.inputs.replaced import need_ids
from lvlm_interp.inputs.reply import UNOPENED, Opening, Reply, common
from lvlm_interp.inputs.spelling import LOST, piece_text, pieces_of

SHOWING = ("image_token", "video_token", "audio_token", "boi_token", "eoi_token")  # what processors call such tokens
TRIES = 3


@dataclass(frozen=True)
class Encoded:
    """Model inputs of a prompt, with the span (start, stop) of every segment.

    `opening` stands before every answer that the model did not make itself.
    """

    model_inputs: dict[str, Tensor]
    spans: tuple[tuple[int, int], ...]
    segments: tuple[Segment, ...]
    opening: Opening = UNOPENED

    @property
    def written(self) -> tuple[Written, ...]:
        """The segments and where they stand."""
        pairs = zip(self.segments, self.spans, strict=True)
        return tuple(Written(segment.role, segment.message, *span) for segment, span in pairs)


class Prompter:
    """Turns conversations into ids with a model's own processor and chat template."""

    def __init__(self, processor: Any, template: str, shown: Sequence[int] = ()) -> None:
        """`shown` are the ids that stand for pieces of pictures: no text of a user's, nor an answer, becomes one."""
        self.processor, self.template = processor, template
        self.tokenizer = getattr(processor, "tokenizer", processor)
        extra = getattr(processor, "image_token", None)
        added = {str(token) for token in self.tokenizer.get_added_vocab()}
        self.special = {*self.tokenizer.all_special_tokens, *added, *([str(extra)] if extra else [])}
        named = (getattr(one, name, None) for one in (processor, self.tokenizer) for name in SHOWING)
        ids = (self.tokenizer.decode([i]) for i in shown)
        self.showing = {str(token) for token in (*named, *ids) if token}

    def remembering(self) -> Prompter:
        """The same for one prompt: pictures are processed once, however often its text is."""
        made = copy.copy(self)
        made.processor = once(self.processor)
        return made

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Ids of a conversation that ends where the answer begins.

        Raises:
            InputError: a piece of text leaves no token behind, the processor takes no video, or the chat template
                writes something else each time.
        """
        self._need_readers(messages)
        for _ in range(TRIES):  # a clock that writes minutes may go on meanwhile
            encoded, again = self._encoded(messages), self._process(self._guarded(messages))
            if torch.equal(encoded.model_inputs["input_ids"], again["input_ids"]):
                return self._spliced(encoded)
        raise InputError(
            "the model's chat template writes something else each time, so that nobody can tell which words are "
            "yours: give it a fixed time (a clock's fractions of a second?) or another template"
        )

    def _encoded(self, messages: Sequence[Message]) -> Encoded:
        """The ids, in which placeholders stand for texts with markers; the spans are what changes with a text."""
        segments, guarded = segments_of(messages), self._guarded(messages)
        inputs = self._process(guarded)
        inputs.pop("labels", None)  # for training, which PaliGemma's makes
        ids, spans = inputs["input_ids"][0].tolist(), []
        for segment in segments:
            now = guarded[segment.message]["content"][segment.part]["text"]
            word = placeholder(now, segment.text)
            other = self._process(replaced(guarded, segment, word))["input_ids"][0].tolist()
            spans.append(changed(ids, other))
            if spans[-1][0] == spans[-1][1]:
                raise InputError(f"the {segment.role} {segment.text!r} tokenises to nothing; give at least one word")
            start, stop = changed(other, ids)
            self._need_one_place(segment, self.text(other[start:stop]), word)
        return Encoded(inputs, tuple(spans), tuple(segments), self._opening(guarded, ids))

    def _need_one_place(self, segment: Segment, written: str, word: str) -> None:
        """Raise where a template writes a text at several places: what stands between them is no user's."""
        if written.lower().count(word.lower()) > 1 and re.search(r"\w", written.lower().replace(word.lower(), "")):
            between = written.replace(word, "…")
            raise InputError(
                f"the model's chat template writes the {segment.role} twice, with words of its own between: "
                f"{between!r}. They would be hidden with it: open the model with a template that writes it once"
            )

    def _need_readers(self, messages: Sequence[Message]) -> None:
        """Raise unless the processor can take what is shown.

        Raises:
            InputError: it reads no videos, or not together with pictures.
        """
        kinds, name = {part["type"] for message in messages for part in message["content"]}, type(self.processor)
        readers = [getattr(self.processor, f"{kind}_processor", None) for kind in ("image", "video")]
        if "video" not in kinds:
            return
        if readers[1] is None or getattr(self.processor, "video_token", None) is None:
            raise InputError(f"{name.__name__} takes no video: give frames as images (image=[…]) if it takes several")
        image, video = (set(getattr(reader, "model_input_names", ())) for reader in readers)
        if "image" in kinds and image & video:  # one would take the place of the other (SmolVLM)
            raise InputError(f"{name.__name__} takes pictures or a video, not both in one prompt")

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        """The ids of a `reply`."""
        return self.reply(messages, answer).ids

    def reply(self, messages: Sequence[Message], answer: str) -> Reply:
        """An answer as it follows this conversation.

        An answer is what a model wrote, so special tokens in it (`<loc0012>`) are these tokens; but those that stand
        for pictures are letters, as all of them are in what a user wrote. Where a template leaves a part of it out (the
        thoughts of earlier turns), it is taken as it is.

        Raises:
            InputError: the answer tokenises to nothing.
        """
        if not answer.strip():
            raise InputError(f"the answer {answer!r} tokenises to nothing; give at least one word")
        alone = self._alone(answer)
        if any(marker in answer for marker in self.showing) or not messages:
            return Reply(alone)
        guarded = self._guarded(messages)
        prompt = self._process(guarded)["input_ids"][0].tolist()
        full, other = (self._with_reply(guarded, text) for text in (answer, placeholder(answer)))
        start, stop = changed(full, other)
        usual, opening = self._opening(guarded, prompt), self._between(prompt, full, start)
        if opening is None or opening.cut != usual.cut:
            return Reply(alone)
        kept = common(opening.ids, usual.ids)
        found = full[start - len(opening.ids) + kept : stop]
        whole = bool(found) and self.text(found).strip() == self.text(alone).strip()
        return Reply(found, len(usual.ids) - kept) if whole else Reply(alone)

    def any_reply(self, answer: str) -> Reply:
        """As `reply`, where the conversation is not known: templates write one alike behind any."""
        try:
            return self.reply(conversation(PLACEHOLDERS[0], ()), answer)
        except Exception:  # processors that take no prompt without a picture raise errors of many kinds
            return self.reply((), answer)

    def _opening(self, messages: Sequence[Message], prompt: Sequence[int]) -> Opening:
        """What the template writes of its own before a reply, behind the prompt that generation begins with."""
        try:
            full, *others = (self._with_reply(messages, text) for text in PLACEHOLDERS[:2])
            if full == others[0]:  # a small vocabulary, whose tokens these letters are not
                others = [self._with_reply(messages, text) for text in PLACEHOLDERS[2:]]
        except InputError:  # a template that takes no reply
            return UNOPENED
        other = next((one for one in others if one != full), None)
        found = None if other is None else self._between(prompt, full, changed(full, other)[0])
        return found or UNOPENED

    def _between(self, prompt: Sequence[int], full: Sequence[int], start: int) -> Opening | None:
        """What stands between a prompt and a reply; None where the reply has other words around it than the prompt.

        Its text is the prompt's, and goes on; where nothing is written between both, a blank that would be one token
        with the reply is left to the prompt, as generation has it.
        """
        found = Opening.between(prompt, full, start)
        same = not found.cut or (found.ids and self.text(full).startswith(self.text(prompt)))
        return found if same else None

    def word_ids(self, word: str, blank: bool | None = None) -> list[int]:
        """Ids of a word that stands alone, or behind a blank: by default as it is written.

        Which of the two a tokenizer takes a text's beginning for differs: behind a blank, it is read behind a letter.

        Raises:
            InputError: the word tokenises to nothing.
        """
        if not word.strip():
            raise InputError(f"the word {word!r} tokenises to nothing; give at least one letter")
        blank = word[:1].isspace() if blank is None else blank
        word = word.strip() if blank else word
        if not blank:
            return self.answer_ids((), word)
        before, both = (self.answer_ids((), text) for text in ("a", f"a {word}"))
        return both[len(before) :] if both[: len(before)] == before else self.answer_ids((), f" {word}")

    def lettered_ids(self, word: str) -> list[int]:
        """As `word_ids`, without blanks that are tokens of their own: any word may stand beside them, so none is meant.

        Raises:
            InputError: the word tokenises to nothing.
        """
        ids = self.word_ids(word)
        return [token for token in ids if self.read(token).strip()] or ids

    def token_id(self, text: str) -> int:
        """The token that reads so (`read`).

        Raises:
            InputError: there is none.
        """
        need_whole("the text", text)
        found = (self.tokenizer.convert_tokens_to_ids(piece) for piece in pieces_of(text))
        for token in (*found, *(self.word_ids(text)[:1] if text.strip() else ())):
            if token is not None and self.read(token) == text:
                return int(token)
        raise InputError(f"no token of this model reads as {text!r}: compare words, unit='word'")

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as one text, letter for letter: a character's bytes may be in several tokens."""
        return str(self.tokenizer.decode(need_ids(ids), clean_up_tokenization_spaces=False))

    def read(self, token: int) -> str:
        """What a token reads as behind other text: Llama's tokenizers drop the blank that a text begins with.

        Bytes that are no whole character are shown as such, `<0xE7>`.
        """
        once, twice = self.tokenizer.decode([token]), self.tokenizer.decode([token, token])
        text = twice[len(once) :] if twice.startswith(once) else once
        return piece_text(str(self.tokenizer.convert_ids_to_tokens(token))) if LOST in text else text

    def pixels(self, shown: Sequence[Any]) -> dict[str, Tensor]:
        """What the processor makes of the pictures and videos (lists of frames) of one prompt, as it would in it."""
        parts = [{"type": (kind := "video" if isinstance(one, list) else "image"), kind: one} for one in shown]
        made = self._process([{"role": "user", "content": [*parts, {"type": "text", "text": PLACEHOLDERS[0]}]}])
        readers = (getattr(self.processor, f"{kind}_processor", None) for kind in ("image", "video"))
        names = {name for reader in readers for name in getattr(reader, "model_input_names", ())}
        return {k: v for k, v in made.items() if isinstance(v, Tensor) and (k in names or k in pixels_of(made))}

    def _guarded(self, messages: Sequence[Message]) -> list[Message]:
        """Markers inside the user's text must stay text: a placeholder stands for such a text while templates work."""
        guarded = list(messages)
        for segment in segments_of(messages):
            if self._has_marker(segment.text):
                guarded = replaced(guarded, segment, placeholder(segment.text))
        return guarded

    def _with_reply(self, messages: Sequence[Message], text: str) -> list[int]:
        reply = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        return self._process([*messages, reply])["input_ids"][0].tolist()

    def _alone(self, answer: str) -> list[int]:
        """Ids of an answer without a template around it."""
        return self._plain(answer, special=not any(marker in answer for marker in self.showing))

    def _plain(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text alone; whether special tokens in it are these tokens, or letters."""
        need_whole("the text", text)
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special).input_ids
        if not ids:
            raise InputError(f"{text!r} tokenises to nothing; give at least one word")
        return list(ids)

    def _has_marker(self, text: str) -> bool:
        return any(marker in text for marker in self.special)

    @property
    def _has_template(self) -> bool:
        return bool(getattr(self.processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None))

    def _process(self, messages: Sequence[Message]) -> dict[str, Tensor]:
        """The processor's own ids for a conversation, with a generation prompt if it ends with the user."""
        if self._has_template:
            try:
                return self._templated(messages)
            except Exception as error:  # templates are programs of their own: jinja errors, type errors, …
                need_pictures_taken(messages, self._templated, self.settings, error)
                raise InputError(f"{self._refusing(messages)} refused the conversation: {error}") from error
        return self.without_template(messages)

    def _templated(self, messages: Sequence[Message]) -> dict[str, Tensor]:
        made = self.processor.apply_chat_template(
            list(messages),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=messages[-1]["role"] != "assistant",
            **self._template(),
            **({"processor_kwargs": told} if (told := about_videos(messages)) else {}),
        )
        return dict(made)

    def _template(self) -> dict[str, str]:
        """The tokenizer's chat template, where the processor has none of its own: it would not look there."""
        own = getattr(self.processor, "chat_template", None)
        return {} if own else {"chat_template": self.tokenizer.get_chat_template()}

    def _refusing(self, messages: Sequence[Message]) -> str:
        """Which of the two it was: the template, or the processor that reads what the template wrote."""
        try:
            self.processor.apply_chat_template(list(messages), tokenize=False, **self._template())
        except Exception:  # of any kind
            return "the model's chat template"
        return f"{self.settings} (processor_config.json)"

    @property
    def settings(self) -> str:
        """The processor, and what it was told of how it writes pictures: `LlavaProcessor(patch_size=14, …)`."""
        told = (f"{name}={value!r}" for name, value in settings_of(self.processor).items())
        return f"{type(self.processor).__name__}({', '.join(told)})"

    def without_template(self, messages: Sequence[Message]) -> dict[str, Tensor]:
        """The processor's own ids for a conversation that no template writes.

        Raises:
            InputError: the processor refuses it.
            ModelError: there is no token that stands for an image.
        """
        try:
            return self._written_by_hand(messages)
        except ModelError:
            raise
        except Exception as error:  # what a processor asks for, such as an image, it says in its own way
            need_pictures_taken(messages, self._written_by_hand, self.settings, error)
            count = sum(part["type"] == "image" for message in messages for part in message["content"])
            raise InputError(
                f"{type(self.processor).__name__} refused the prompt with {count} images: {error}"
            ) from error

    def _written_by_hand(self, messages: Sequence[Message]) -> dict[str, Tensor]:
        parts = [part for message in messages for part in message["content"] if message["role"] != "assistant"]
        images = [part["image"] for part in parts if part["type"] == "image"]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        marker = getattr(self.processor, "image_token", None)
        if images and marker is None and "{image}" in self.template:
            raise ModelError("the processor has neither a chat template nor an image token")
        videos = {"videos": found} if (found := [part["video"] for part in parts if part["type"] == "video"]) else {}
        markers = {"image": str(marker), "video": str(getattr(self.processor, "video_token", None))}
        shown = "".join(markers[part["type"]] for part in parts if part["type"] in markers)
        prompt = self.template.format(image=shown, question=text)
        if messages[-1]["role"] == "assistant":
            prompt += " " + messages[-1]["content"][0]["text"]
        told = {**videos, **about_videos(messages)}
        return dict(self.processor(text=[prompt], images=images or None, return_tensors="pt", **told))

    def _spliced(self, encoded: Encoded) -> Encoded:
        """Put the ids of texts with markers in them where their placeholders stand."""
        inputs, spans = dict(encoded.model_inputs), list(encoded.spans)
        for n, segment in enumerate(encoded.segments):
            if not self._has_marker(segment.text):
                continue
            (start, stop), ids = spans[n], self._plain(segment.text.rstrip("\n"))
            inputs = splice(inputs, start, stop, ids)
            shift = len(ids) - (stop - start)
            spans = [(a + shift, b + shift) if a >= stop else (a, b) for a, b in spans]
            spans[n] = (start, start + len(ids))
        return Encoded(inputs, tuple(spans), encoded.segments, encoded.opening)
