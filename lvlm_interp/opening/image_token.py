"""Whether a model and its processor mean one token by the image: what a config calls so may be a word's."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from lvlm_interp.errors import ModelError
from lvlm_interp.inputs.prompt import SHOWING

USUAL = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")  # tokens of all texts


def need_image_token(processor: Any, found: int | None, name: str) -> None:
    """Raise where the config's image token is a word, or a mark of another kind, and the processor has one of its own.

    Some families have several tokens of images, of which the processor names another one (Gemma 3): those are none of
    the words, nor what a tokenizer ends texts with.

    Args:
        processor: the processor, or None.
        found: the id of the image token by the config; None where a model input marks what stands for an image.
        name: of the model.

    Raises:
        ModelError: names both tokens.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if found is None or not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    own = _own(processor, tokenizer)
    if own is None or found == own or found in _marks(processor, tokenizer):
        return
    there, known = f"{own} ({str(tokenizer.convert_ids_to_tokens(own))!r})", found < len(tokenizer)
    here = f"{found} ({repr(str(tokenizer.convert_ids_to_tokens(found))) if known else 'beyond its tokenizer'})"
    raise ModelError(
        f"the config of {name!r} has the image token {here}, and its processor writes {there} for an image: put "
        "back the config, or the tokenizer, that belongs to the weights"
    )


def _own(processor: Any, tokenizer: Any) -> int | None:
    """The id that the processor writes for an image; None where it names no token that its tokenizer has."""
    token = getattr(processor, "image_token", None)
    found = tokenizer.convert_tokens_to_ids(str(token)) if token else None
    return None if found is None or found == tokenizer.unk_token_id else int(found)


def _marks(processor: Any, tokenizer: Any) -> set[int]:
    """The ids of tokens that may stand for an image: what was added to the words, but ends and blanks of texts."""
    named = {str(getattr(one, name)) for one in (processor, tokenizer) for name in SHOWING if getattr(one, name, None)}
    usual = {str(getattr(tokenizer, f"{name}_token", None)) for name in USUAL}
    return {i for token, i in tokenizer.get_added_vocab().items() if str(token) in named or str(token) not in usual}
