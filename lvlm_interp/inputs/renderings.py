"""Where two renderings of a conversation differ, and what template and processor make of it with another text."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lvlm_interp.inputs.chat import Message, Segment

PLACEHOLDERS = ("X", "Q", "k", "7")


def placeholder(*texts: str) -> str:
    """A word that shares neither its first nor its last character with the texts that it is compared with."""
    edges = {edge for text in texts if (core := text.strip()) for edge in (core[0], core[-1])} | set(texts)
    return next(word for word in PLACEHOLDERS if word not in edges)


def replaced(messages: Sequence[Message], segment: Segment, text: str) -> list[Message]:
    changed = [{**m, "content": [copy.copy(p) for p in m["content"]]} for m in messages]
    kept = segment.text.rstrip("\n") or segment.text  # all that there is may be an end of a line
    end = segment.text[len(kept) :]  # so that what follows is tokenised alike
    changed[segment.message]["content"][segment.part]["text"] = text.rstrip("\n") + end
    return changed


def changed(ids: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """The span of `ids` outside the common beginning and the common end with `other`."""
    limit, start = min(len(ids), len(other)), 0
    while start < limit and ids[start] == other[start]:
        start += 1
    end = 0
    while end < limit - start and ids[-1 - end] == other[-1 - end]:
        end += 1
    return start, len(ids) - end


def splice(inputs: Mapping[str, Tensor], start: int, stop: int, ids: Sequence[int]) -> dict[str, Tensor]:
    shape, added = inputs["input_ids"].shape, torch.tensor([list(ids)])
    spliced = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == shape:
            fill = added if name == "input_ids" else torch.full_like(added, 1 if name == "attention_mask" else 0)
            value = torch.cat([value[:, :start], fill.to(value.dtype), value[:, stop:]], 1)
        spliced[name] = value
    return spliced
