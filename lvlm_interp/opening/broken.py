"""Which file of a model is broken, and what to do about it: transformers does not always say which one it was."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lvlm_interp.errors import ModelError
from lvlm_interp.opening.shards import wrong_shards
from lvlm_interp.shown import gist

OBJECTS: dict[str, tuple[str, ...]] = {  # files that hold an object of JSON, and keys without which it is not read
    "config.json": (),
    "adapter_config.json": ("peft_type",),
    "generation_config.json": (),
    "chat_template.json": ("chat_template",),
    "processor_config.json": (),
    "preprocessor_config.json": (),
    "video_preprocessor_config.json": (),
    "tokenizer_config.json": (),
    "tokenizer.json": ("added_tokens", "model"),
    "special_tokens_map.json": (),
    "added_tokens.json": (),
    "model.safetensors.index.json": ("weight_map",),
}
INDEX = "model.safetensors.index.json"
PASSED_OVER = ("generation_config.json",)  # transformers opens a model without what it cannot read of these
TEMPLATE = "chat_template.jinja"
WEIGHTS = "*.safetensors"


def broken(path: str, revision: str | None) -> Iterator[str]:
    """What is wrong with files of a model, each with its name."""
    yield from _wrong(path, revision, OBJECTS, _wrong_object)
    yield from _wrong(path, revision, (TEMPLATE,), _wrong_text)
    yield from _wrong(path, revision, (INDEX,) if os.path.isdir(path) else (), _wrong_index)
    yield from _wrong(path, revision, _weights(path, revision), _wrong_weights)


def _weights(path: str, revision: str | None) -> list[str]:
    """The names of the files of weights that are there."""
    folder = kept_file(path, "config.json", revision)
    return [file.name for file in sorted(Path(folder).parent.glob(WEIGHTS))] if folder else []


def need_read(name: str, path: str, revision: str | None) -> None:
    """Raise for a file that transformers could not read, and did without, and for weights of which it took one."""
    if found := next(_wrong(path, revision, PASSED_OVER, _wrong_object), None):
        raise ModelError(f"could not open {name!r}: {found}. {remedy(path)}; or remove that file, if you mean to")
    others = ((INDEX, _wrong_index), (TEMPLATE, _wrong_text))
    if found := next((wrong for name, look in others for wrong in _wrong(path, revision, (name,), look)), None):
        raise ModelError(f"could not open {name!r}: {found}. {remedy(path)}")


def need_numbers_with_a_point(name: str, path: str, revision: str | None) -> None:
    """Raise for weights that are stored as whole numbers, which would be taken as they are, without their scales.

    Those of a quantised model, whose config.json says so, are none of these.
    """
    if found := next(_wrong(path, revision, _weights(path, revision), _whole_numbers), None):
        raise ModelError(f"could not open {name!r}: {found}. {remedy(path)}")


def remedy(path: str) -> str:
    """What to do about a file that is broken."""
    if os.path.isdir(path):
        return "Put back what was there, or make the directory anew"
    return "Fetch it anew: load(…, force_download=True), or remove it from the cache that `hf cache list` shows"


def kept_file(path: str, name: str, revision: str | None) -> str | None:
    """A file of a model, in its directory or in the cache of its hub, where it is there."""
    from huggingface_hub import try_to_load_from_cache

    kept: Any = os.path.join(path, name)
    if not os.path.isdir(path):
        with contextlib.suppress(ValueError):  # what no model of a hub can be called
            kept = try_to_load_from_cache(path, name, revision=revision)
    return kept if isinstance(kept, str) and os.path.isfile(kept) else None


def _wrong(
    path: str, revision: str | None, names: Iterable[str], with_it: Callable[[str], str | None]
) -> Iterator[str]:
    for name in names:
        file = kept_file(path, name, revision)
        if file is not None and (wrong := with_it(file)):
            yield f"{file} {wrong}"


def _wrong_object(file: str) -> str | None:
    try:
        with open(file, encoding="utf-8") as stream:
            found = json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        return f"cannot be read as JSON ({gist(error)})" if os.path.getsize(file) else "is empty"
    if not isinstance(found, dict):
        return f"holds a {type(found).__name__} of JSON, not an object"
    lost = next((key for key in OBJECTS[os.path.basename(file)] if key not in found), None)
    return None if lost is None else f"has no {lost!r}"


def _wrong_index(file: str) -> str | None:
    """Of weights in several files: one that is not there, or two for one weight, by the index or by the files. One file
    of all goes before them."""
    if (Path(file).parent / "model.safetensors").is_file():
        return None
    with open(file, encoding="utf-8") as stream:
        weights = dict(json.load(stream, object_pairs_hook=_Pairs))["weight_map"]
    if not isinstance(weights, _Pairs) or not weights:
        return f"has weight_map: {weights or {}!r}, where each weight should stand with the name of its file"
    last = dict(weights)
    for weight, part in weights:
        if not isinstance(part, str) or not (Path(file).parent / part).is_file():
            return f"names {part!r} as the file of {weight!r}, and it is not there"
        if last[weight] != part:
            return f"names two files for {weight!r}: {part!r} and {last[weight]!r}"
    return wrong_shards(Path(file).parent, last)


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON as it is written, in which a key may stand twice."""


def _wrong_text(file: str) -> str | None:
    try:
        written = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        return f"cannot be read as text in UTF-8 ({gist(error)})"
    return None if written.strip() else "is empty"


def _wrong_weights(file: str) -> str | None:
    try:
        with safe_open(file, "pt"):
            return None
    except (OSError, SafetensorError) as error:
        return f"is damaged ({gist(error)})"


def _whole_numbers(file: str) -> str | None:
    with safe_open(file, "pt") as stored:
        for name in stored.keys():  # noqa: SIM118
            kind = stored.get_slice(name).get_dtype()
            if name.endswith((".weight", ".bias")) and kind.startswith(("I", "U", "BOOL")):
                return f"holds {name!r} as {kind}, and its config.json says of no quantisation"
    return None
