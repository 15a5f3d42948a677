"""Where pictures come from: files, addresses, bytes, arrays, rows of data sets, whatever holds a PIL image."""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import io
import os
import re
import urllib.request
from collections.abc import Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lvlm_interp.errors import ImageError
from lvlm_interp.inputs.arrays import from_array


@runtime_checkable
class Readable(Protocol):
    """A file that is open, or is in memory."""

    def read(self, size: int = -1, /) -> Any: ...


@runtime_checkable
class Pictured(Protocol):
    """What has a PIL image, such as a scene of the reference model."""

    @property
    def image(self) -> Any: ...


ImageLike = (
    Image.Image
    | str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | np.ndarray
    | Tensor
    | Mapping[str, Any]
    | Readable
    | Pictured
)
"""A PIL image; a path or an address (http, https, file or data); the bytes of a file, or the file; an array or tensor
(`inputs.arrays` says of what shape and type); a row of a data set (`{"bytes": …, "path": …}`) or part of a message;
what has a PIL image as `.image`."""

SECONDS = 30  # that an address has to answer
AGENT = {"User-Agent": "lvlm-interp"}  # some ask for a name
ADDRESS = re.compile(r"(https?|file)://|(data):(image|application)/", re.IGNORECASE)
OTHER_SCHEME = re.compile("[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # one letter is a drive
SHORTENED = re.compile(r"(https?):/+", re.IGNORECASE)  # what paths make of an address
KINDS = (Image.Image, str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Tensor, Mapping, Readable, Pictured)
KEYS = ("image", "bytes", "url", "path", "base64")
SHORTEST = 64  # a text that is shorter is no picture in base64
OTHERS = (
    (rb".{4}ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", "a HEIC picture", "install pillow-heif and call "
     "pillow_heif.register_heif_opener() first, or convert it to PNG or JPEG"),
    (rb".{4}ftypavi[fs]", "an AVIF picture", "Pillow reads it from 11.3 on; or convert it to PNG or JPEG"),
    (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", "a video", "read it and give its frames, video=[…]"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture", "install pillow-jxl-plugin and import pillow_jxl first, or "
     "convert it to PNG or JPEG"),
    (rb"\s*(<\?xml.*)?(<!--.*-->\s*)?(<!DOCTYPE svg.*)?<svg", "an SVG drawing", "it has no pixels yet: convert it to "
     "PNG, with cairosvg or a browser"),
    (rb"\s*(<!doctype html|<html)", "a web page", "give the address of the picture itself"),
    (rb"%PDF", "a PDF document", "convert the page to PNG first"),
    (rb"\x93NUMPY", "an array of numpy", "give np.load(path)"),
)  # fmt: skip
"""What files begin with that Pillow cannot read, what they are, and what would work."""


def is_picture(image: Any) -> bool:
    """Whether something is one picture; lists and iterators are several."""
    return isinstance(image, KINDS)


def named(image: Any) -> str:
    """What errors call a picture."""
    if not isinstance(image, (str, os.PathLike)):
        return "the image"
    text = os.fspath(image)
    return repr(text if len(text) < 160 else f"{text[:80]}…")


def looks_like_picture(value: Any) -> bool:
    """Whether something stands where a picture is meant, rather than text: a file, an address, a name as files have."""
    if not isinstance(value, str):
        return is_picture(value)
    ending = os.path.splitext(value)[1].lower()
    return os.path.isfile(value) or bool(ADDRESS.match(value)) or ending in Image.registered_extensions()


@singledispatch
def picture_of(image: Any) -> Image.Image:
    """A PIL image, as it was saved.

    Raises:
        ImageError: nothing is there, it is of another format, or it is no picture at all.
    """
    if isinstance(inner := getattr(image, "image", None), Image.Image):
        return inner
    if isinstance(image, Readable):
        return decoded(_whole(image), "the image")
    raise ImageError(
        "an image is a PIL image, a path, an address, bytes, an open file, an array or a tensor; got "
        f"{type(image).__name__}"
    )


@picture_of.register(Image.Image)
def _itself(image: Image.Image) -> Image.Image:
    return image


@picture_of.register(np.ndarray)
@picture_of.register(Tensor)
def _of_numbers(image: Any) -> Image.Image:
    return from_array(image)


@picture_of.register(bytes)
@picture_of.register(bytearray)
@picture_of.register(memoryview)
def _of_bytes(image: Any) -> Image.Image:
    return decoded(bytes(image), "the image")


def _why_none(path: Path, name: str) -> str:
    """Why there is no picture at a path."""
    if os.path.isdir(path):
        return f"{name} is a folder: give one picture in it"
    try:
        os.stat(path)
    except PermissionError:
        return f"{name} is in a folder that may not be entered"
    except (OSError, ValueError):  # what else is wrong with it is that there is none
        pass
    if OTHER_SCHEME.match(os.fspath(path)):
        return f"{name} is an address of a kind that is not read: http://, https://, file:// and data: are"
    return f"no image file at {name}"


@picture_of.register(os.PathLike)
def _of_path(image: Any) -> Image.Image:
    path, name = Path(image), named(image)
    if address := SHORTENED.match(os.fspath(path)):
        return _of_text(f"{address[1]}://{path.as_posix()[address.end() :]}")
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise ImageError(_why_none(path, name))
    return decoded(path.read_bytes(), name)


@picture_of.register(str)
def _of_text(image: str) -> Image.Image:
    if not image.strip():
        raise ImageError(f"an image was given as {image!r}, which names nothing: give a path or an address")
    scheme = _scheme(image)
    if scheme == "file":
        return _of_path(Path(urllib.request.url2pathname(urlsplit(image).path)))
    if scheme:
        return decoded(_fetched(image), named(image))
    if not os.path.isfile(image) and (data := _from_base64(image)):
        with contextlib.suppress(ImageError):  # then it is a long name that is spelled like base64
            return decoded(data, "the image")
    return _of_path(image)


@picture_of.register(Mapping)
def _of_row(image: Mapping[str, Any]) -> Image.Image:
    if (key := next((key for key in KEYS if image.get(key) is not None), None)) is None:
        raise ImageError(
            f"a picture in a dictionary stands under one of {list(KEYS)}; this one has {sorted(map(str, image))}, "
            "and no picture there"
        )
    if key != "base64":
        return picture_of(image[key])
    if data := _from_base64(str(image[key]).rpartition(",")[2], 0):
        return decoded(data, "the image")
    raise ImageError("what stands under 'base64' is not the base64 of a file")


def decoded(data: bytes, name: str) -> Image.Image:
    """The picture that a file's bytes are.

    Raises:
        ImageError: names the format, if it is known.
    """
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        for start, what, advice in OTHERS:
            if re.match(start, data[:4096], re.DOTALL | re.IGNORECASE):
                raise ImageError(f"{name} is {what}, which cannot be read as it is: {advice}") from error
        why = "empty or broken file?" if data else "it has 0 bytes"
        raise ImageError(f"{name} is not an image that Pillow can read ({why})") from error


def _scheme(text: str) -> str:
    """What an address begins with; nothing where a text is none."""
    return text.partition(":")[0].lower() if ADDRESS.match(text) else ""


def _whole(file: Readable) -> bytes:
    """All that a file holds, wherever it was read or written up to; it stands there again afterwards."""
    seek, tell = getattr(file, "seek", None), getattr(file, "tell", None)
    if seek is None or tell is None or not getattr(file, "seekable", lambda: True)():
        data = file.read()
    else:
        place = tell()
        seek(0)
        data = file.read()
        seek(place)
    if not isinstance(data, bytes):
        raise ImageError("the image is a file that was opened as text: open it as bytes, open(path, 'rb')")
    return data


def _fetched(address: str) -> bytes:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=AGENT), timeout=SECONDS) as answer:
            return bytes(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        remote = "" if _scheme(address) == "data" else ". Without a network, save the picture and give its path"
        raise ImageError(f"no image could be fetched from {named(address)}: {error}{remote}") from error


def _from_base64(text: str, shortest: int = SHORTEST) -> bytes | None:
    """What a text is in base64, or None if it is none."""
    try:
        return base64.b64decode("".join(text.split()), validate=True) if len(text) >= shortest else None
    except (binascii.Error, ValueError):
        return None
