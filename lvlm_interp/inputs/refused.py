"""What a processor is told, and which picture it does not take: the one without which it takes the prompt."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from lvlm_interp.errors import ImageError
from lvlm_interp.inputs.chat import SHOWN, Message

SMALLEST, LARGEST = 64, 1024  # sides of the squares that are tried in the place of pictures
PARTS = ("processor", "extractor", "tokenizer", "template")  # how processors call their arguments that are no settings


def need_pictures_taken(
    messages: Sequence[Message], make: Callable[[Sequence[Message]], Any], settings: str, error: Exception
) -> None:
    """Raise where a refusal is of a picture or a video: with squares in the place of all, the prompt is taken.

    Args:
        messages: what was refused.
        make: what refused it.
        settings: the processor, as messages name it.
        error: what it said.

    Raises:
        ImageError: names the picture, its size and a size that is taken.
    """
    places = [(m, p) for m, message in enumerate(messages) for p, part in enumerate(message["content"]) if _shows(part)]
    if not places or not _taken(make, _squared(messages, places)):
        return
    at_fault = (at for at in places if not _taken(make, _squared(messages, [other for other in places if other != at])))
    place = next(at_fault, None)
    if place is None:  # each is taken beside squares: it is how they stand together
        return
    part = messages[place[0]]["content"][place[1]]
    (width, height), side = _size(part), _side(part)
    raise ImageError(
        f"{part['type']} {places.index(place)} of {len(places)}, counted from 0, is of {width}×{height} pixels (width, "
        f"height), and {settings} takes none of this size: {error}. Larger, or nearer to a square, it is taken: "
        f"PIL.ImageOps.pad(image, ({side}, {side})), say"
    ) from error


def _shows(part: Message) -> bool:
    return part["type"] in SHOWN


def _size(part: Message) -> tuple[int, int]:
    shown = part["video"][0] if part["type"] == "video" else part["image"]
    return shown.size


def _side(part: Message) -> int:
    return min(max(*_size(part), SMALLEST), LARGEST)


def _squared(messages: Sequence[Message], places: Sequence[tuple[int, int]]) -> list[Message]:
    """The messages with grey squares at these places."""
    changed = [{**message, "content": list(message["content"])} for message in messages]
    for m, p in places:
        part = changed[m]["content"][p]
        square = Image.new("RGB", (_side(part),) * 2, "grey")
        video = part["type"] == "video"
        changed[m]["content"][p] = {**part, part["type"]: [square] * len(part["video"]) if video else square}
    return changed


def _taken(make: Callable[[Sequence[Message]], Any], messages: Sequence[Message]) -> bool:
    try:
        make(messages)
    except Exception:  # of any kind, as that which is explained
        return False
    return True


def settings_of(processor: Any) -> dict[str, Any]:
    """What a processor takes besides its parts, texts and numbers; None where its files do not say it."""
    names = inspect.signature(type(processor).__init__).parameters
    found = {name: getattr(processor, name) for name in names if not name.endswith(PARTS) and hasattr(processor, name)}
    return {name: value for name, value in found.items() if isinstance(value, str | int | float | None)}
