"""All families, collected from the files beside this folder: none of them is listed anywhere."""

from __future__ import annotations

import functools
import importlib
import operator
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from transformers import PretrainedConfig

from lvlm_interp import families
from lvlm_interp.compat import has_transformers
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.names import USUAL, Names


def files() -> list[ModuleType]:
    """The files of families, by name."""
    names = sorted(found.name for found in pkgutil.iter_modules(families.__path__) if not found.ispkg)
    return [importlib.import_module(f"{families.__name__}.{name}") for name in names]


def collected(modules: Iterable[ModuleType]) -> dict[str, Family]:
    """The rows of several files, by type.

    Raises:
        ValueError: two files have a row for one type.
    """
    rows: dict[str, Family] = {}
    owners: dict[str, str] = {}
    for module in modules:
        for kind, family in getattr(module, "FAMILIES", {}).items():
            if kind in owners:
                raise ValueError(f"type {kind!r} has a row in {owners[kind]} and another in {module.__name__}")
            rows[kind], owners[kind] = family, module.__name__
    return rows


def named(modules: Iterable[ModuleType]) -> Names:
    """The usual names and those that several files add."""
    return functools.reduce(operator.or_, (getattr(module, "NAMES", Names()) for module in modules), USUAL)


FAMILIES: dict[str, Family] = collected(files())
NAMES: Names = named(files())


def family_of(config: PretrainedConfig) -> Family:
    """The row of a model; a type that has none gets what holds for most, and must pass the checks."""
    return FAMILIES.get(config.model_type, Family())


PLAIN = frozenset(
    {
        *("llama", "mistral", "ministral", "ministral3", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
        *("phi", "phi3", "opt", "olmo", "olmo2", "olmo3", "granite", "smollm3", "starcoder2", "stablelm", "nemotron"),
        *("cohere", "cohere2", "glm", "glm4", "exaone4", "helium", "arcee", "seed_oss", "gpt_neox", "falcon"),
    }
)
"""Language models whose rows go by their positions alone, in whichever model they are."""


def tried(config: PretrainedConfig) -> bool:
    """Whether models of a type are known, and their language model is their type's own, or a plain one."""
    text = config.get_text_config().model_type
    return known(config.model_type) and (text in PLAIN or text == type(config)().get_text_config().model_type)


def known(model_type: str) -> bool:
    """Whether models of a type are known to be read truly with the transformers installed here."""
    row = FAMILIES.get(model_type)
    return row is not None and has_transformers(row.since)
