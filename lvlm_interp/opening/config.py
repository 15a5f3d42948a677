"""Fields of a configuration with which a model opens, or breaks off somewhere, and cannot be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from lvlm_interp.compat import READS_LAYER_ZERO
from lvlm_interp.errors import ModelError
from lvlm_interp.families.shared import registry

COUNTS = {  # what there is one of at least
    *("num_hidden_layers", "num_layers", "depth", "num_attention_heads", "num_key_value_heads", "num_heads"),
    *("hidden_size", "embed_dim", "intermediate_size", "patch_size", "image_size", "vocab_size"),
}
MOST_NUMBERS = 16  # in a byte of a weight file: weights of 2 bits, which hold 4, are well within
IMAGE_TOKENS = ("image_token_id", "image_token_index")
LAYERS = ("vision_feature_layer", "vision_feature_layers")  # of the vision tower, which the projector reads


def need_sound(config: PretrainedConfig, where: str) -> None:
    """Raise for a field that no model can have.

    Raises:
        ModelError: names the field, where it stands, and what it may be.
    """
    settings = config.to_dict()
    wrong = (*_no_numbers(settings), *_no_tokens(config), *_no_layers(settings))
    for field, value, right in wrong:
        raise ModelError(f"{where} has {field}: {value!r}; {right}. Put back the number that belongs to the weights")


def need_weights_for(config: PretrainedConfig, folder: Path) -> None:
    """Raise where a model is many times what the weight files beside its config hold: it would be allocated first.

    Raises:
        ModelError: says how many numbers the model has at least, and how much is there.
    """
    held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    settings = config.to_dict()
    least = sum(_least(part) for part in (settings, *settings.values()) if isinstance(part, Mapping))
    if held and least > MOST_NUMBERS * held:
        raise ModelError(
            f"could not open {str(folder)!r}: its config.json is of a model of {least:.1e} numbers or more, and its "
            f"weight files hold {held:.1e} bytes. Put back the config.json that belongs to the weights"
        )


def _least(part: Mapping[Any, Any]) -> int:
    """How many numbers a part of a model has at least: a square of its width in each layer, and its vocabulary."""
    told = (part.get(name) for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
    width, depth, vocabulary = (value if isinstance(value, int) else 0 for value in told)
    return width * (width * depth + vocabulary)


Wrong = Iterator[tuple[str, Any, str]]
"""Fields, their values, and what they may be."""


def _fields(settings: Mapping[Any, Any], at: str = "") -> Iterator[tuple[str, str, Any, Mapping[Any, Any]]]:
    """Where each field stands, its name, its value, and the part that it is of."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{at}{name}.")
        else:
            yield f"{at}{name}", str(name), value, settings


def _no_numbers(settings: Mapping[str, Any]) -> Wrong:
    for field, name, value, part in _fields(settings):
        some = value if isinstance(value, (list, tuple)) else [value]
        if name in COUNTS and isinstance(value, int) and value < 1:
            yield field, value, "it is 1 or more"
        if any(isinstance(one, float) and one != one for one in some):
            yield field, value, "NaN is no number, and all that is computed with it is none"
        if name == "rope_theta" and isinstance(value, (int, float)) and value <= 0:
            yield field, value, "it is above 0: its powers are what positions turn by"
        if name == "sliding_window" and value is None and "sliding_attention" in (part.get("layer_types") or ()):
            yield field, value, "layer_types has sliding_attention, whose layers see so many positions"


def _no_tokens(config: PretrainedConfig) -> Wrong:
    """Of ids of image tokens: one that is no id, and null where models of this type have one of their own."""
    names = dict.fromkeys((registry.family_of(config).image_token, *IMAGE_TOKENS))
    found = {name: getattr(config, name) for name in names if hasattr(config, name)}
    for name, value in found.items():
        own = value is None and not any(one is not None for one in found.values())
        if (value is not None and not _is_id(value)) or (own and getattr(type(config)(), name, None) is not None):
            yield name, value, "it is the id of the token that stands for a piece of an image, 0 or more"


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _no_layers(settings: Mapping[str, Any]) -> Wrong:
    depth: Any = (settings.get("vision_config") or {}).get("num_hidden_layers")
    for name in LAYERS if isinstance(depth, int) else ():
        found = settings.get(name)
        if found == 0 and not READS_LAYER_ZERO:
            yield name, found, f"this transformers takes 0 for none: {-depth - 1} is the same layer"
        for layer in found if isinstance(found, Sequence) else [found]:
            if isinstance(layer, int) and not -depth - 1 <= layer <= depth:
                right = f"a vision tower of {depth} layers has {-depth - 1} … {depth}, those before the first included"
                yield name, found, right
