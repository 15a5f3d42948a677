"""Opens a model: by name, from a directory, or one that is in memory already; refused where it cannot be read truly."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lvlm_interp.adapters.nnsight import traced
from lvlm_interp.errors import InputError, LvlmInterpError, ModelError
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.compiled import need_python, original
from lvlm_interp.model.place import floating, moved, need_device, need_kernels
from lvlm_interp.model.quantised import need_weights_to_read
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.opening.broken import kept_file, need_numbers_with_a_point, need_read
from lvlm_interp.opening.config import need_sound, need_weights_for
from lvlm_interp.opening.conformance import check, check_at_load
from lvlm_interp.opening.image_token import need_image_token
from lvlm_interp.opening.own import need_own_readers
from lvlm_interp.opening.refusals import REFERENCE, as_told, need_all_weights, need_usable, why_not_opened

PROCESSING = ("tokenizer", "apply_chat_template", "get_added_vocab")  # what processors and tokenizers have, one of them


@explained
def wrap(model: nn.Module, processor: Any = None, name: str | None = None) -> HookedVLM:
    """Open a transformers model that is in memory already.

    Args:
        model: an image-text-to-text model; what of it was compiled runs without the compiler, which knows no hooks.
        processor: its processor; without one, only `vlm.inputs` makes inputs.

    Raises:
        ModelError: a kind of model that cannot be read.
        InputError: what is no processor, or a name that is no text.
    """
    model = original(model)
    need_python(model.named_modules())
    known = not isinstance(processor, type) and any(hasattr(processor, name) for name in PROCESSING)
    if processor is not None and not known:
        got = processor if isinstance(processor, type | str) else type(processor).__name__
        raise InputError(f"processor= is transformers' processor, AutoProcessor.from_pretrained(…); got {got!r}")
    if not isinstance(name, str | None):
        raise InputError(f"name= is a text that results tell the model by; got {name!r}")
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"wrap() takes a transformers model, got {type(model).__name__}; {_how_to_wrap(model)}")
    need_weights_to_read(model)
    need_kernels(model)
    need_sound(model.config, "the config of this model")
    return _opened(model, processor, name or model.name_or_path or None)


def _how_to_wrap(model: object) -> str:
    """What would work in the place of what was given."""
    if isinstance(model, (str, os.PathLike)):
        return f"to open one by its name, load({str(model)!r})"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "prompts that peft has learnt stand in front of the model and not in it, and cannot be read here"
    if hasattr(model, "get_base_model"):  # peft's
        return "the model that it adapts has its adapters in it: wrap(model.get_base_model(), processor)"
    return "that of `AutoModelForImageTextToText.from_pretrained(…)`, say, and its processor"


@explained
def load(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> HookedVLM:
    """Open a model by name.

    Args:
        name: `"reference"` (the small model that ships; `"reference@tune"` and
            `"reference@align"` are its earlier stages, `"reference@0.1"` an older version), a hub id such as
            `llava-hf/llava-1.5-7b-hf`, or a directory.
        dtype: as in transformers; `"auto"` keeps what the weights are stored in.
        device: where to put it; or pass transformers' `device_map`.
        revision: commit or branch on the hub.
        trust_remote_code: run code that the repository brings. Off unless you ask.
        options: handed to `from_pretrained`.

    Raises:
        ModelError: nothing is there, it cannot be opened, weights are missing, or its kind cannot be read.
        DownloadError: the reference model's parts cannot be fetched.
        InputError: no such dtype, a device that is not there, or an option that `from_pretrained` does not take.
    """
    need_device(device)
    dtype = dtype if dtype == "auto" else floating(dtype, "'auto'")
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    if device is not None and options.get("device_map") is not None:
        raise ModelError("device= and device_map= both say where the model goes: give one of them")
    shown, path = str(name), _locate(name)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    told = (shown, path, revision, trust_remote_code)
    with _explained_by_files(*told, options):
        # First: what runs code of its own is refused before anything else.
        config = AutoConfig.from_pretrained(path, **common)
        need_sound(config, f"could not open {shown!r}: its config.json")
        need_weights_for(config, Path(path))
        processor = AutoProcessor.from_pretrained(path, **common)
        # With other shapes it would only point to what it logs; they are refused below.
        shapes = {"ignore_mismatched_sizes": True, **options}
        model, report = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True, **common, **shapes
        )
    need_all_weights(shown, report, options.get("ignore_mismatched_sizes", False))
    need_read(shown, path, revision)
    if getattr(model, "hf_quantizer", None) is None and getattr(model.config, "quantization_config", None) is None:
        need_numbers_with_a_point(shown, path, revision)
    need_usable(*told, processor, model)
    need_own_readers(shown, path, revision, processor, model)
    if device is not None:
        model = moved(model, device, shown)
    with _explained_by_files(*told):
        return _opened(model, processor, shown, _commit(path, revision))


@contextlib.contextmanager
def _explained_by_files(
    name: str, path: str, revision: str | None, trust_remote_code: bool, options: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """An error within the `with` says which file is at fault: a config that somebody else wrote fails in any way."""
    try:
        yield
    except LvlmInterpError:
        raise
    except Exception as error:
        if why := why_not_opened(name, path, revision, trust_remote_code, error):
            raise ModelError(why) from error
        if isinstance(error, TypeError) and options:
            raise InputError(
                f"load() hands its other options to from_pretrained, which does not take {list(options)} so: {error}"
            ) from error
        raise ModelError(as_told(name, error)) from error


def _commit(path: str, revision: str | None) -> str | None:
    """The commit that was opened, that of a branch too, which may move on; of a directory none is known."""
    kept = None if os.path.isdir(path) else kept_file(path, "config.json", revision)
    return revision if kept is None else Path(kept).parent.name


def _opened(model: PreTrainedModel, processor: Any, name: str | None, revision: str | None = None) -> HookedVLM:
    vlm = HookedVLM(model, processor, name, revision, _first_check, traced)
    with torch.autocast(vlm.device.type, enabled=False):  # the user's; results name it, and checks are of the model
        check_at_load(vlm)
    need_image_token(processor, vlm.image_token_id, vlm.name)
    return vlm


def _first_check(vlm: HookedVLM, x: Inputs) -> None:
    check(vlm, x).need()


def _locate(name: str | os.PathLike[str]) -> str:
    first, at, version = str(name).partition("@")
    if first == REFERENCE:
        from lvlm_interp.reference import ready

        return str(ready(version if at else None))
    if not isinstance(name, (str, os.PathLike)):
        raise InputError(
            f"load() takes the name of a model, or its directory, got {type(name).__name__}; a model that is in memory "
            "already is opened by wrap(model, processor)"
        )
    if isinstance(name, os.PathLike) or os.path.exists(name) or str(name).startswith((".", "/", "~")):
        folder = Path(os.path.expanduser(name))  # Path.expanduser() raises where there is no such user
        if os.path.isfile(folder / "adapter_config.json") and not os.path.isfile(folder / "config.json"):
            raise ModelError(
                f"{folder} is an adapter of peft, and no model. Open the model that it adapts, and put it in: "
                f"vlm = load(…); vlm.model.load_adapter({str(folder)!r})"
            )
        if not os.path.isfile(folder / "config.json"):
            raise ModelError(f"{folder} is not a model directory: it has no config.json")
        return str(folder)
    if str(name).count("/") != 1:
        raise ModelError(
            f"no model is called {str(name)!r}. Known names: {REFERENCE!r} (ships with the package), a hub id such as "
            "'llava-hf/llava-1.5-7b-hf' (owner/name), or the path of a directory with config.json."
        )
    return str(name)
