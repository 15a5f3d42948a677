"""Tiny random models with their processors, in directories, as a user would bring them.

A token is a character; the tokens that a family's processor looks for stand where `tests.families` has them. Families
whose processors read videos too are in `WITH_VIDEO`: transformers makes and opens those with torchvision only.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.families import collected, tiny_model
from tests.families.shared.saved import Saved
from tests.families.shared.tiny import BEGIN, END, IMAGE, VIDEO, VOCABULARY

SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<image>": IMAGE, "<begin>": BEGIN, "<end>": END}
SPECIAL["<video>"] = VIDEO
IDEFICS = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
IDEFICS += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}MARKER{% elif part['type'] == 'video' %}CLIP"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
NAMED = {  # what tokenizers of the families call these tokens
    "<image>": ("image_token", "context_image_token"),
    "<video>": ("video_token",),
    "<begin>": ("boi_token", "vision_start_token", "start_image_token"),
    "<end>": ("eoi_token", "vision_end_token", "end_image_token"),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each printable character."""
    special = SPECIAL | {token: VIDEO + 1 + n for n, token in enumerate(IDEFICS)}
    known = special | {character: 4 + n for n, character in enumerate(string.printable[:95] + "\n")}
    vocabulary = known | {f"<unused{i}>": i for i in set(range(VOCABULARY)) - set(known.values())}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    made.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        **{f"{name[1:-1]}_token": name for name in ("<pad>", "<unk>")},
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={name: token for token, names in NAMED.items() for name in names},
    )


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """As those of Llama 2: `▁` is a blank, every text begins with one, and decoding drops it. A word begins with a
    token of two characters, its blank and a letter."""
    pieces = ["▁", *string.ascii_letters, *":.?\n", *(f"▁{c}" for c in string.ascii_letters)]
    known = SPECIAL | {piece: 4 + n for n, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(known, [("▁", c) for c in string.ascii_letters], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(list(SPECIAL))
    names = {name: token for token, others in NAMED.items() for name in others}
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **named, extra_special_tokens=names)


ROWS: dict[str, Saved] = collected("SAVED")
SAVED = {name: row for name, row in ROWS.items() if not row.frames}
# Before 5.18, transformers takes this image processor for one that needs torchvision, since a comment speaks of that.
UNOPENED = {"idefics3"} if getattr(transformers.Idefics3ImageProcessorPil, "is_dummy", False) else set()
WITH_VIDEO = {name: row for name, row in ROWS.items() if row.frames}
"""Families whose processors read videos too."""


def processor(name: str, pixels: Any = None, frames: Any = None, **changes: Any) -> Any:
    """A family's own processor, with its own image and video processors or those that are given."""
    row = ROWS[name]
    template = TEMPLATE.replace("MARKER", row.marker).replace("CLIP", row.clip)
    parts = {"video_processor": frames or row.frames()} if row.frames else {}
    return getattr(transformers, row.kind)(
        pixels or row.pixels(), tokenizer(), **parts, chat_template=template, **{**row.options, **changes}
    )


def save(name: str, folder: Path, model: Any = None, **changes: Any) -> Path:
    """A directory with a model and its processor; `changes` are of the processor."""
    (tiny_model(name) if model is None else model).save_pretrained(folder)
    processor(name, **changes).save_pretrained(folder)
    return folder
