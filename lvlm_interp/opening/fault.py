"""Which field of a model's files is at fault: the one without which they can be read.

Whatever transformers and peft trip over, and whatever they say of it: on a copy without weights, each field is left out
in turn. That takes a while, and is done only where opening has failed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig
from transformers.utils import is_peft_available, logging

from lvlm_interp.families.shared.registry import family_of
from lvlm_interp.fields import shown
from lvlm_interp.inputs.chat import Message
from lvlm_interp.inputs.prompt import Prompter
from lvlm_interp.inputs.refused import settings_of
from lvlm_interp.opening.broken import kept_file
from lvlm_interp.shown import gist

SMALL = (".json", ".jinja", ".model", ".py", ".txt")  # all but weights
PICTURE = Image.linear_gradient("L").resize((128, 96)).convert("RGB")
PROCESSING = (
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
WORDS = ({"type": "text", "text": "a word"},)
KINDS = ("_type", "_class", "_map")  # fields that say what reads the others: left out last, as something else may
MOST = 200  # fields of an object in which one is looked for: more are entries, as of a vocabulary

Read = Callable[..., Any]
"""Reads what a directory holds, with options of `from_pretrained`; raises what is wrong with it."""
Failing = Callable[[], Exception | None]
"""What is wrong with a copy as it is now."""


def field_at_fault(path: str, revision: str | None, **options: Any) -> str | None:
    """The file and the field without which a model's files can be read, and the error with it; None if there is none.

    Args:
        path, revision: the model.
        options: of `from_pretrained`.
    """
    kept = kept_file(path, "config.json", revision)
    if kept is None:
        return None
    origin = Path(kept).parent
    with TemporaryDirectory() as scratch, _quiet():
        for file in origin.iterdir():
            if file.suffix in SMALL and file.is_file():
                shutil.copyfile(file, Path(scratch) / file.name)
        for read, names in _readers().items():
            failing = functools.partial(_error, read, scratch, options)
            if (error := failing()) is not None:
                lost = _lost(Path(scratch), options) if read is _processor else None
                found = lost or _field(Path(scratch), names, failing)
                return found and f"{origin / found[0]} {found[1]} it cannot be used ({gist(error)})"
    return None


def _readers() -> Mapping[Read, tuple[str, ...]]:
    """What reads the files of a model, one behind the other, and the files whose fields it reads."""
    adapters: dict[Read, tuple[str, ...]] = {}
    if is_peft_available():
        adapters = {_adapter: ("adapter_config.json",), _adapted: ("adapter_config.json",)}
    return {
        _config: ("config.json",),
        _processor: PROCESSING,
        _built: ("config.json",),
        **adapters,
        _generation: ("generation_config.json",),
    }


def _config(folder: str, **options: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, **options)


def _processor(folder: str, **options: Any) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, **options)
    pictures = any((Path(folder) / name).is_file() for name in PROCESSING[:2])
    if pictures and not hasattr(processor, "image_processor"):  # a field was left out that says which one it is
        raise ValueError(f"{type(processor).__name__} reads no pictures")
    need_processing(processor, family_of(_config(folder, **options)).prompt)


def _built(folder: str, **options: Any) -> Any:
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):  # where no weights are made
        return AutoModelForImageTextToText.from_config(_config(folder, **options), **options)


def _adapter(folder: str, **_: Any) -> Any:
    from peft import PeftConfig

    return PeftConfig.from_pretrained(folder) if (Path(folder) / "adapter_config.json").is_file() else None


def _adapted(folder: str, **options: Any) -> None:
    if config := _adapter(folder):
        with torch.device("meta"):
            _built(folder, **options).add_adapter(config)


def _generation(folder: str, **_: Any) -> None:
    if (Path(folder) / "generation_config.json").is_file():
        need_ends(GenerationConfig.from_pretrained(folder))


def need_processing(processor: Any, prompt: str) -> None:
    """Raise where no picture and no word can be processed, whatever either is, nor both together.

    Args:
        processor: the processor.
        prompt: of the family, for a question without a chat template.

    Raises:
        Exception: of transformers' own; ValueError where it gives what is none.
    """
    if pixels := getattr(processor, "image_processor", None):
        made = pixels(images=[PICTURE], return_tensors="pt")
        found = [one for one in made.values() if isinstance(one, torch.Tensor)]
        if any(not one.numel() for one in found):
            raise ValueError("no pixels are left of a picture")
        if any(not one.isfinite().all() for one in found):
            raise ValueError("pixels become NaN or infinity")
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer("a word")
    for one in (processor, tokenizer):
        if not isinstance(template := getattr(one, "chat_template", None), str | Mapping | None):
            raise ValueError(f"a chat template is a text, not {template!r}")
    if pixels and tokenizer is not processor:
        _need_question(processor, prompt)


def _need_question(processor: Any, prompt: str) -> None:
    """Raise where no question about a picture can be asked: templates may want more than one, and some write no image.

    Raises:
        Exception: of the processor, where no template is at fault.
    """
    words: list[Message] = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, *WORDS]}]
    begin = str(getattr(processor, "boi_token", None))  # which some take for an image, and not what they call its token
    asked, begun = Prompter(processor, prompt), Prompter(processor, prompt.replace("{image}", begin))
    errors = []
    for ask in (asked.without_template, lambda _: asked.pixels([PICTURE]), begun.without_template):
        if (error := _error(lambda _, ask=ask: ask(words), "", {})) is None:
            return
        errors.append(error)
    raise errors[0]


def need_ends(generation: GenerationConfig) -> None:
    """Raise for ends of an answer, and beginnings, that are no tokens.

    Raises:
        ValueError: says what they are.
    """
    for name in ("eos_token_id", "bos_token_id", "decoder_start_token_id"):
        ends = getattr(generation, name, None)
        for end in ends if isinstance(ends, (list, tuple)) else () if ends is None else (ends,):
            if not isinstance(end, int) or isinstance(end, bool):
                raise ValueError(f"{name} is the id of a token, or a list of ids, not {ends!r}")


def _error(read: Read, folder: str, options: Mapping[str, Any]) -> Exception | None:
    try:
        read(folder, **options)
    except Exception as error:  # of any kind
        return error
    return None


def _lost(folder: Path, options: Mapping[str, Any]) -> tuple[str, str] | None:
    """The processor's file, and settings that it lacks and the config has, if with them all is read."""
    from transformers import AutoProcessor

    with contextlib.suppress(Exception):  # of any kind: then it is something else
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        processor = AutoProcessor.from_pretrained(folder, **options)
        known = {**config, **(config.get("vision_config") or {})}
        lost = {name for name, value in settings_of(processor).items() if value is None}
        given = {name: value for name, value in known.items() if name in lost and value is not None}
        for name, value in given.items():
            setattr(processor, name, value)
        need_processing(processor, family_of(_config(str(folder), **options)).prompt)
        return "processor_config.json", f"lacks {given} (so says config.json: write it there), without which"
    return None


def _field(folder: Path, names: tuple[str, ...], failing: Failing) -> tuple[str, str] | None:
    """The file, and what it has: the field with its value, without which all is read."""
    for file in (folder / name for name in names if (folder / name).is_file()):
        text = file.read_text(encoding="utf-8")
        whole = json.loads(text)
        found = _without(file, whole, whole, failing)
        file.write_text(text, encoding="utf-8")
        if found:
            return file.name, f"has {found}, with which"
    return None


def _without(file: Path, whole: Any, inside: dict[str, Any], failing: Failing) -> str | None:
    """The field that is at fault, as deep inside others as it is one alone.

    It is the one without which there is no error; or, of what cannot be left out, the one that the error speaks of.
    """
    before = _failing_so(file, whole, failing)
    for name in sorted(inside, key=lambda name: name.endswith(KINDS)):
        value = inside[name]
        if isinstance(value, dict) and len(value) <= MOST and (deeper := _without(file, whole, value, failing)):
            return f"{name}.{deeper}"
        del inside[name]
        without = _failing_so(file, whole, failing)
        inside[name] = other = "another value" if isinstance(value, str) else 0.5  # no less wrong
        if without is None or _speaks(before, value, other, _failing_so(file, whole, failing)):
            return f"{name}: {shown(value)}"
        inside[name] = value
    return None


def _failing_so(file: Path, whole: Any, failing: Failing) -> Exception | None:
    file.write_text(json.dumps(whole), encoding="utf-8")
    return failing()


def _speaks(error: Exception | None, value: Any, other: Any, now: Exception | None) -> bool:
    """Whether an error of one value is that of the other, but for these values or their kinds."""
    kind, another = (f"'{type(one).__name__}'" for one in (value, other))
    told = {str(error).replace(repr(value), repr(other)), str(error).replace(kind, another)} - {str(error)}
    return type(now) is type(error) and str(now) in told


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within the `with` transformers does not log what it makes of each copy."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
