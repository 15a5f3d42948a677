"""Whether a directory names the readers of pictures, videos and words that its model is made for.

Another one than models of its type have is no fault by itself, if what it makes has the same axes: LLaVA's pictures may
be read as SigLIP's. Otherwise the first picture, or every word, would tell.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

# Under the top of the package, older releases have something else in their place where torchvision is missing.
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

from lvlm_interp.errors import ModelError
from lvlm_interp.opening.broken import kept_file
from lvlm_interp.opening.fault import PICTURE

VIDEO = torch.from_numpy(np.stack([np.asarray(PICTURE)] * 8)).permute(0, 3, 1, 2)
READERS: dict[
    str, tuple[Any, dict[str, Any], str]
] = {  # what a processor has, types of models → their own, what it reads, and the file that may name it
    "image_processor": (IMAGE_PROCESSOR_MAPPING, {"images": [PICTURE]}, "preprocessor_config.json"),
    "video_processor": (VIDEO_PROCESSOR_MAPPING, {"videos": [VIDEO]}, "video_preprocessor_config.json"),
}
BACKENDS = ("Fast", "Pil")  # ends of names of the same reader
SENTENCE = "What is it, Sir?"

Axes = Mapping[str, int]
"""How many axes each tensor has, by name."""


def need_own_readers(name: str, path: str, revision: str | None, processor: Any, model: PreTrainedModel) -> None:
    """Raise where what a directory names reads pictures, videos or words as its model cannot take them.

    Raises:
        ModelError: names the file, the field, and what models of this type have.
    """
    for what in READERS:
        if wrong := _of_others(what, path, revision, processor, model):
            raise ModelError(f"could not open {name!r}: {wrong}, or put back the files that belong to the weights")
    if wrong := _words_lost(path, revision, processor):
        raise ModelError(f"could not open {name!r}: {wrong}")


def _of_others(what: str, path: str, revision: str | None, processor: Any, model: PreTrainedModel) -> str | None:
    known, sample, _ = READERS[what]
    given, kind = getattr(processor, what, None), type(model.config)
    if given is None or kind not in known or not type(given).__module__.startswith("transformers."):
        return None
    own = [one for one in dict(known[kind]).values() if one is not None]  # by what each computes with
    if _plain(type(given)) in map(_plain, own):
        return None
    made = _axes(given, sample)
    right, one = next(((axes, one) for one in own if (axes := _axes(one, sample))), ({}, None))
    if not made or one is None or all(made.get(tensor) == count for tensor, count in right.items()):
        return None
    named, asking = _named(what, path, revision, given), model.config.model_type
    return (
        f"{named}, which makes {_told(made)}; a model of type {asking!r} "
        f"takes {_told(right)}. Write {what}_type: {_plain(one)!r} there, with its settings"
    )


def _plain(kind: type) -> str:
    """The name of a reader without that of what it computes with."""
    name = kind.__name__
    return next((name.removesuffix(end) for end in BACKENDS if name.endswith(end)), name)


def _axes(reader: Any, sample: Mapping[str, Any]) -> Axes:
    """Of what a reader, or one of a class by default, makes; none where it cannot be tried, which says nothing."""
    with contextlib.suppress(Exception):  # of transformers, of any kind
        made = (reader() if isinstance(reader, type) else reader)(**sample, return_tensors="pt")
        return {name: one.ndim for name, one in made.items() if isinstance(one, torch.Tensor)}
    return {}


def _told(axes: Axes) -> str:
    return ", ".join(f"{name} of {count} axes" for name, count in axes.items())


def _named(what: str, path: str, revision: str | None, given: Any) -> str:
    """The file and the field that name a reader, or its class where none does."""
    for file, inside in (("processor_config.json", what), (READERS[what][2], None), ("preprocessor_config.json", None)):
        for field, value in _fields(path, revision, file, inside):
            if field in (f"{what}_type", "feature_extractor_type"):
                return f"{kept_file(path, file, revision)} has {field}: {value!r}"
    return f"its files make a {type(given).__name__}"


def _fields(path: str, revision: str | None, name: str, inside: str | None) -> Iterator[tuple[str, Any]]:
    file = kept_file(path, name, revision)
    if file is not None:
        with open(file, encoding="utf-8") as stream:
            found = json.load(stream)
        found = found.get(inside) if inside else found
        yield from found.items() if isinstance(found, dict) else ()


def _words_lost(path: str, revision: str | None, processor: Any) -> str | None:
    """The class of a tokenizer that does not give back a sentence, where tokenizer.json itself does."""
    tokenizer, file = getattr(processor, "tokenizer", processor), kept_file(path, "tokenizer.json", revision)
    named = dict(_fields(path, revision, "tokenizer_config.json", None)).get("tokenizer_class")
    if file is None or named is None or not hasattr(tokenizer, "decode"):
        return None
    read = tokenizer.decode(tokenizer(SENTENCE, add_special_tokens=False)["input_ids"])
    if read.strip() == SENTENCE:
        return None
    kept = Tokenizer.from_file(file)
    if kept.decode(kept.encode(SENTENCE, add_special_tokens=False).ids, skip_special_tokens=False).strip() != SENTENCE:
        return None
    return (
        f"{kept_file(path, 'tokenizer_config.json', revision)} has tokenizer_class: {named!r}, with which {SENTENCE!r} "
        f"is read as {read!r}, where tokenizer.json beside it reads it whole. Put back the class that belongs to it"
    )
