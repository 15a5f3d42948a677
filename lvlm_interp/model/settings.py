"""What decides a model's numbers beside its weights: the kinds of its modules, their settings, its configurations.

Settings are what modules hold under public names: numbers, texts, several of them, namespaces of them, configurations,
activation functions. Under private names (`_scale`) only numbers with a point are: whole numbers, truth values, texts
and tensors there are counters, marks and caches too often, which passes write, and a model would be another after each.
What objects of other classes hold is not looked at.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from types import BuiltinFunctionType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

# Attributes of modules that change no number, change from pass to pass, or say where a model is or was kept.
PASSING = frozenset(
    {
        *("gradient_checkpointing", "is_quantized", "warnings_issued", "model_tags"),
        *("name_or_path", "hf_device_map", "device", "attn_implementation", "loss_type"),
        "rope_deltas",  # how far positions of the last example's pictures were moved
    }
)
LONGEST = "max_seq_len_cached"  # of a rotary embedding, or of one kind of its layers: how long a pass has been
SWITCHES = ("_active_adapter", "_disable_adapters", "merged_adapters")  # of peft's layers
MARKS = frozenset({"_is_hf_initialized", "_is_expert_parallel"})  # on most modules; spares a look at each
LEFT_OUT = PASSING | MARKS | frozenset(vars(nn.Module()))
ACTIVATION = re.compile("act(ivation)?(_.*|[0-9]*)|hidden_act")  # attributes that may be plain functions
# What a configuration says of files, labels, training, kernels, and of what is returned beside the logits. What is left
# of `tie_word_embeddings` and `model_type` are the weights, and the classes.
IDLE = re.compile(
    "_.*|output_(attentions|hidden_states|scores|logits|router_logits)|(use_)?return_dict|use_cache|gradient_checkpointing|attn_implementation|(torch_)?dtype|torchscript"
    "|name_or_path|model_type|architectures|auto_map|transformers_version|tokenizer_class|initializer_.*|tie_word_embeddings"
    "|(bos|eos|pad|sep|decoder_start)_token_id|id2label|label2id|num_labels|problem_type|finetuning_task"
    "|task_specific_params"
)
PLAIN = frozenset({int, float, str, bool})
SCALARS = (int, float, str, np.generic)
# Types of what changes by being set anew.
SETTLED = PLAIN | {FunctionType, BuiltinFunctionType, type(None), torch.dtype, torch.device, torch.Size}
NAMESPACES = (SimpleNamespace, argparse.Namespace)
DEEP = 4  # namespaces within each other that are looked at
SHARDING = "torch.distributed."  # it makes a class of its own of each that it shards


def kind_of(module: nn.Module) -> str:
    """The class of a module, by the name of its file and its own: remote code is kept in folders named by chance."""
    return _name_of(type(module))  # type: ignore[arg-type]  # a class can be hashed


@functools.lru_cache(maxsize=4096)
def _name_of(kind: type) -> str:
    kind = next(kind for kind in kind.__mro__ if not kind.__module__.startswith(SHARDING))
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__qualname__}"


def settings_of(module: nn.Module, stated: frozenset[int] = frozenset()) -> str:
    """The kind of a module, the numbers and texts that it holds, its switches, and its configuration if it is a model.

    A number that is set to None is left out, as one that is not there; `stated` are `configurations_of` its model.
    """
    public = [(k, vars(module)[k]) for k in telling(module)]
    held = [pair for pair in public if type(pair[1]) in PLAIN]  # most of them
    held += [(k, _value(v)) for k, v in public if type(v) not in PLAIN and _is_setting(k, v)]
    held += [(k, _value(v)) for k in SWITCHES if (v := vars(module).get(k))]  # off, or never touched: the same
    held += [(k, told) for k, v in public if (told := _of_object(v, stated)) is not None]
    private = ((k, vars(module)[k]) for k in _names(tuple(vars(module)))[1])
    held += [pair for pair in private if _has_a_point(pair[1])]
    held.sort(key=itemgetter(0))
    return f"{kind_of(module)}{held}{_of_model(module) if isinstance(module, PreTrainedModel) else ''}"


def held_for(module: nn.Module) -> tuple[Any, ...]:
    """What `settings_of` follows from: the class of a module, and what it holds."""
    held = vars(module)
    getter = _getter(tuple(held))
    return (type(module), getter, *getter(held))


@functools.lru_cache(maxsize=4096)
def _getter(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    public, private = _names(names)
    told = [*public, *private, *(name for name in SWITCHES if name in names)]
    return itemgetter("training", "training", *told)  # of a single name it would give no tuple


def is_settled(module: nn.Module, held: Iterable[Any], stated: frozenset[int]) -> bool:
    """Whether settings stay as they are while each of what they follow from (`held_for`) is the same object."""
    return not isinstance(module, PreTrainedModel) and all(_stays(value, stated) for value in held)


def _stays(value: Any, stated: frozenset[int]) -> bool:
    kind = type(value)
    return (
        kind in SETTLED
        or (kind is tuple and all(type(one) in PLAIN for one in value))
        or (isinstance(value, PretrainedConfig) and id(value) in stated)
    )


def configurations_of(modules: Iterable[nn.Module]) -> frozenset[int]:
    """By identity, the configurations that models among these have, and the parts of each: most modules share them."""
    models = (module.config for module in modules if isinstance(module, PreTrainedModel))
    return frozenset(id(one) for config in models for one in _with_parts(config))


def _with_parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    yield config
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):
            yield from _with_parts(part)


def telling(module: nn.Module) -> tuple[str, ...]:
    """The names of what a module holds that may be settings."""
    return _names(tuple(vars(module)))[0]


@functools.lru_cache(maxsize=4096)
def _names(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Attributes that may be settings, public and private: most modules of a class have the same."""
    told = [name for name in names if name not in LEFT_OUT and not name.endswith(LONGEST)]
    told = [name for name in told if name not in SWITCHES]
    return tuple(name for name in told if name[0] != "_"), tuple(name for name in told if name[0] == "_")


def _is_setting(name: str, value: Any) -> bool:
    return _is_plain(value) or (callable(value) and ACTIVATION.fullmatch(name) is not None)


def _has_a_point(value: Any) -> bool:
    """Whether a value is a number with a point, or several."""
    several = isinstance(value, (list, tuple)) and bool(value) and all(map(_has_a_point, value))
    return several or isinstance(value, (float, np.floating))


def _of_object(value: Any, stated: frozenset[int]) -> Any:
    """What a namespace says, or a configuration that is not the model's own; None of anything else."""
    if isinstance(value, NAMESPACES):
        return _told(value)
    return _stated(value) if isinstance(value, PretrainedConfig) and id(value) not in stated else None


def _told(value: Any, deep: int = DEEP) -> Any:
    """The numbers and texts of a namespace, and of those in it."""
    if not isinstance(value, NAMESPACES):
        return str(value) if _is_plain(value) else None
    return sorted((k, told) for k, v in vars(value).items() if deep and (told := _told(v, deep - 1)) is not None)


def _is_plain(value: Any) -> bool:
    """Whether a value is a number or a text, or several."""
    if isinstance(value, SCALARS):
        return True
    if isinstance(value, (list, tuple)):
        return any(map(_is_plain, value)) and all(one is None or _is_plain(one) for one in value)
    return isinstance(value, Mapping) and bool(value) and all(map(_is_plain, value.values()))


def _value(value: Any) -> Any:
    """As it is told: the same in whichever order it is kept, and as a list or as a tuple."""
    if isinstance(value, Mapping):
        return sorted((str(k), _value(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return [_value(one) for one in value]
    return _function(value) if callable(value) else value


def _function(function: Callable[..., Any]) -> str:
    """The name of a function, and what it is given beforehand."""
    if isinstance(function, functools.partial):
        return f"{_function(function.func)}{function.args}{function.keywords}"
    return getattr(function, "__qualname__", type(function).__qualname__)


def _stated(value: Any) -> Any:
    """What a configuration, or a part of it, says about numbers."""
    if value is None or isinstance(value, (int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_stated(one) for one in value]
    if isinstance(value, (set, frozenset)):  # kept in another order by each process
        return sorted(str(_stated(one)) for one in value)
    if (named := value if isinstance(value, Mapping) else getattr(value, "__dict__", None)) is None:
        return str(value)
    said = {str(k): _stated(v) for k, v in named.items() if v is not None and not _is_idle(str(k))}
    return sorted(said.items())


def _of_model(model: PreTrainedModel) -> Any:
    """What a model's configuration says; which token pads only where its own code reads that (Gemma 4)."""
    said = _stated(model.config)
    return [said, model.config.get_text_config().pad_token_id] if _reads_padding(type(model)) else said  # type: ignore[arg-type]


@functools.lru_cache(maxsize=4096)
def _reads_padding(kind: Any) -> bool:
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is not None and "pad_token_id" in code.co_names


@functools.lru_cache(maxsize=4096)
def _is_idle(name: str) -> bool:
    return IDLE.fullmatch(name) is not None
