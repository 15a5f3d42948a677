"""Conversations: messages of a system, a user and an assistant, and what the user wrote in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.fields import shown
from lvlm_interp.inputs.example import Role
from lvlm_interp.inputs.media import open_image, open_video
from lvlm_interp.inputs.sources import looks_like_picture

Message = dict[str, Any]
SHOWN: Mapping[str, Callable[[Any], Any]] = {"image": open_image, "video": open_video}
"""What opens the parts of a message that are shown, by their type."""
SOURCES = {"image": ("image", "url", "path", "base64"), "video": ("video", "url", "path")}
"""Where a part has what it shows, as transformers takes it."""
PICTURED = ("image", "images", "image_url", "video", "videos")
"""Where others keep what is shown, beside a text; nothing is read there."""
AS_PARTS = 'give it as a part of its own, {"type": "image", "image": …}'
SYSTEM = ("system", "developer")
"""Who speaks for the system: OpenAI's newer models call it the developer."""


@dataclass(frozen=True)
class Segment:
    """One piece of the user's text: which message, which part of its content, and its role."""

    message: int
    part: int
    role: Role
    text: str


def need_texts(question: Any, image: Any, **texts: Any) -> None:
    """Raise unless what should be text is text, before anything is opened.

    Args:
        question, image: what was asked, and of which picture.
        texts: other texts, by their argument's name; None where there is none.

    Raises:
        InputError: says what was given; that question and image stand the other way round, if they do.
    """
    if stand_swapped(question, image):
        raise InputError(
            f"question and image stand the other way round: the question is {_told(question)}, and the image "
            f"{_told(image)}; it is (question, image), or name them, question=…, image=…"
        )
    for name, text in {"question": question, **texts}.items():
        if not isinstance(text, str) and not (name in texts and text is None):
            several = "; ask about each in a call of its own" if isinstance(text, (list, tuple)) else ""
            if name == "answer" and several and all(isinstance(one, int) for one in text):
                several = "; tokens are an answer as li.Answer(text, ids)"
            raise InputError(f"{name}= is one text, got {_told(text)}{several}")
        need_whole(f"{name}=", text)


def need_whole(where: str, text: str | None) -> None:
    """Raise where a text holds half of a pair that stands for one character in UTF-16: no tokenizer reads it.

    Raises:
        InputError: says where.
    """
    half = [(n, letter) for n, letter in enumerate(text or "") if "\ud800" <= letter <= "\udfff"]
    if half:
        place, letter = half[0]
        raise InputError(
            f"{where} holds half a character, {letter!r}, at {place} (a lone surrogate): it was cut in the "
            "middle, or decoded with another encoding than it was written in"
        )


def stand_swapped(question: Any, image: Any) -> bool:
    """Whether a picture was given for the question, and text for the picture."""
    if not isinstance(image, str):
        return False
    return looks_like_picture(question) and not (isinstance(question, str) and looks_like_picture(image))


def _told(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float, list, tuple, type(None))) else ""
    return f"{type(value).__name__} {text if len(text) < 80 else text[:60] + '…'}".rstrip()


def conversation(
    question: str,
    images: Sequence[Any],
    context: str | None = None,
    system: str | None = None,
    video: Mapping[str, Any] | None = None,
) -> list[Message]:
    """Messages that ask one question: images first, then the video, the context, and the question.

    Raises:
        InputError: the question is empty.
    """
    if not question or not question.strip():
        raise InputError("the question is empty; ask something about the image")
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    if video:
        content.append({"type": "video", **video})
    if context:
        content.append({"type": "text", "text": context if context.endswith("\n") else context + "\n"})
    content.append({"type": "text", "text": question})
    start = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*start, {"role": "user", "content": content}]


def segments_of(messages: Sequence[Message]) -> list[Segment]:
    """The user's texts: the last text is the question, messages of the system are system, all before is context.

    Raises:
        InputError: the conversation does not end with a question.
    """
    if not messages or messages[-1].get("role") != "user":
        raise InputError("a conversation ends with a message of the user that asks the question")
    found = [
        Segment(i, j, "system" if message["role"] in SYSTEM else "context", part["text"])
        for i, message in enumerate(messages)
        for j, part in enumerate(message["content"])
        if part.get("type") == "text"
    ]
    if not found or found[-1].message != len(messages) - 1 or not found[-1].text.strip():
        raise InputError("the last message asks nothing: it has no text")
    last = found[-1]
    return [*found[:-1], Segment(last.message, last.part, "question", last.text)]


def opened(messages: Any) -> list[Message]:
    """Messages as transformers takes them, each with a list of parts, and with pictures and videos opened.

    Contents may be a text, a list of parts, or None; a picture stands under `image`, `url`, `path` or `base64`, or as
    OpenAI writes it (`{"type": "image_url", "image_url": {"url": …}}`). Nothing that was given is changed.

    Raises:
        InputError: no messages, or a part that cannot be read; it is named.
        ImageError: a picture or a video that cannot be opened.
    """
    messages = messages if isinstance(messages, (str, Mapping)) else list(messages)  # an iterator is read once
    if given := _no_messages(messages):
        raise InputError(
            f'a conversation is a list of messages, each {{"role": "user", "content": …}}; got {given}; '
            "vlm.prepare(question, image) asks one question"
        )
    for n, message in enumerate(messages):
        if beside := [key for key in PICTURED if _is_given(message.get(key))]:
            raise InputError(f"message {n} has {beside[0]!r} beside its content, which would not be shown: {AS_PARTS}")
    return [{**m, "content": _parts(m.get("content"), f"message {n}")} for n, m in enumerate(messages)]


def _is_given(value: Any) -> bool:
    return value is not None and not (isinstance(value, (str, list, tuple, dict)) and not value)


def _no_messages(messages: Any) -> str:
    """What stands in the place of messages, or of the first that is none; empty where all are."""
    if isinstance(messages, (str, Mapping)):
        return shown(messages)
    kinds = (isinstance(message, Mapping) and "role" in message for message in messages)
    return next((f"message {n}, {shown(messages[n])}" for n, fits in enumerate(kinds) if not fits), "")


def _parts(content: Any, where: str) -> list[dict[str, Any]]:
    if content is None:
        return []
    if isinstance(content, str):
        return [_part(content, f"the content of {where}")] if content else []
    if isinstance(content, (np.ndarray, pd.Series)) and content.ndim == 1 and content.dtype == object:
        content = content.tolist()  # as a table holds a list
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise InputError(f"the content of {where} is a text or a list of parts, got {type(content).__name__}")
    parts = [_part(part, f"part {k} of {where}, counted from 0,") for k, part in enumerate(content)]
    return [part for part in parts if part.get("text") != ""]  # which says nothing


def _part(part: Any, where: str) -> dict[str, Any]:
    if isinstance(part, str):
        if looks_like_picture(part):
            raise InputError(f'{where} names a picture, and is text: give {{"type": "image", "path": …}} to show it')
        part = {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise InputError(f'{where} is no part: give {{"type": "text", "text": …}}; got {type(part).__name__}')
    if part.get("type") == "image_url":
        address = part.get("image_url")
        part = {"type": "image", "url": address.get("url") if isinstance(address, Mapping) else address}
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        need_whole(where, part["text"])
        if beside := [key for key in PICTURED if _is_given(part.get(key))]:
            raise InputError(f"{where} is a text, and has {beside[0]!r} as well, which would not be shown: {AS_PARTS}")
        return {key: value for key, value in part.items() if key not in PICTURED}
    if not isinstance(kind, str) or kind not in SHOWN:
        raise InputError(
            f"{where} has the type {kind!r} and the keys {sorted(map(str, part))}: parts are text (with a text under "
            '"text"), image and video'
        )
    return _shown_part(part, kind, where)


def _shown_part(part: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """A picture or a video, opened, under the name of its type and no other: templates take what they find twice."""
    sources = SOURCES[kind]
    key = next((key for key in sources if part.get(key) is not None), None)
    if key is None:
        raise ImageError(f"{where} is of type {kind!r} and shows nothing: give one of {list(sources)}")
    given = {"base64": part[key]} if key == "base64" else part[key]
    rest = {name: value for name, value in part.items() if name not in sources}
    return {**rest, kind: SHOWN[kind](given)}


def about_videos(messages: Sequence[Message]) -> dict[str, Any]:
    """What processors are told of videos: all frames are to be shown, and how far they are apart."""
    parts = [part for message in messages for part in message["content"] if part["type"] == "video"]
    counts = [len(part["video"]) for part in parts]
    told = [
        {
            "total_num_frames": count,
            "frames_indices": list(range(count)),
            "fps": fps,
            "duration": None if fps is None else count / fps,
        }
        for count, fps in zip(counts, (part.get("fps") for part in parts), strict=True)
    ]
    return {"do_sample_frames": False, "video_metadata": told} if told else {}
