"""Base weights + adapter → an ordinary LLaVA checkpoint, which transformers opens without our code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.image_utils import PILImageResampling

from lvlm_interp import files
from lvlm_interp.errors import DownloadError, LvlmInterpError, ModelError, OutputError
from lvlm_interp.reference.adapters import LATEST, adapter_files, read
from lvlm_interp.reference.architecture import (
    END,
    FEATURE_LAYERS,
    IMAGE_MEAN,
    IMAGE_STD,
    IMAGE_TOKEN,
    PATCH,
    RESERVED_TOKEN,
    merged,
)
from lvlm_interp.reference.base_weights import load_language_model, load_tokenizer, load_vision_tower
from lvlm_interp.reference.scenes import SIZE
from lvlm_interp.reference.sources import LANGUAGE_MODEL, VISION_TOWER, cache_directory, lock, reason

MANIFEST = "manifest.json"
"""In the checkpoint's directory: the SHA-256 of every file that was built."""
BUILDING = ".building-"
BUILT = re.compile("reference-[0-9a-f]{12}")
OF_SYSTEMS = ("Thumbs.db", "desktop.ini")  # what systems put into folders by themselves
WEIGHTS = "model.safetensors"
TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def where(version: str = LATEST) -> Path:
    """The checkpoint directory of a version of the reference model, whether it is built yet or not."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in adapter_files(version)))
    digest.update(TEMPLATE.encode())
    digest.update(MANIFEST.encode())  # those built without one stand elsewhere
    return cache_directory() / f"reference-{digest.hexdigest()[:12]}"


def build(version: str = LATEST) -> Path:
    """Make the reference checkpoint if it is not there, or not whole, and return its directory.

    Two processes at once do no harm, and a build that is cut off, or killed, leaves nothing that stands in the way.

    Raises:
        ModelError: there is no such version.
        DownloadError: the base weights cannot be fetched, or the disk is full.
    """
    folder = where(version)
    if damage(folder):
        with lock("reference"):
            if damage(folder):
                _build_into(folder, version)
    return folder


def ready(version: str = LATEST) -> Path:
    """The directory of the checkpoint, known to be what was built; made if it is not there.

    Raises:
        ModelError: one is there, but something of it was lost or changed; or there is no such version.
        DownloadError: as `build` does.
    """
    folder = where(version)
    if not os.path.exists(folder):
        return build(version)
    if found := damage(folder):
        raise ModelError(
            f"the reference model in {folder} is damaged: {found}. Repair it with `lvlm-interp reference build`, or "
            "lvlm_interp.reference.build(), which builds it anew from the parts that are whole"
        )
    return folder


def damage(folder: Path) -> str | None:
    """What of a checkpoint is not as it was built, or None. All of it is read: half a second where that is usual."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {str(name): str(digest) for name, digest in listed.items()}
        if WEIGHTS not in expected:
            return f"{MANIFEST} does not name {WEIGHTS}"
        there = {name for name in os.listdir(folder) if not name.startswith(".") and name not in OF_SYSTEMS}
        if strange := there - {*expected, MANIFEST}:
            return f"{min(strange)} was not built"
        for name, digest in expected.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if files.sha256(folder / name) != digest:
                return f"{name} is not what was built"
    except FileNotFoundError:
        return f"{MANIFEST}, which says what was built, is missing"
    except OSError as error:
        return f"{error.filename} cannot be read ({reason(error)})"
    except (ValueError, AttributeError, RecursionError):
        return f"{MANIFEST} is not what was built"
    return None


def clear() -> list[Path]:
    """Remove everything that was fetched or built, and nothing else that stands beside it; returns what was removed.

    Raises:
        OutputError: something cannot be removed.
    """
    removed = sorted(_ours(cache_directory()))
    for path in removed:
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise OutputError(f"could not remove {path}: {reason(error)}") from error
    with contextlib.suppress(OSError):  # something of another's is in it, or it is not there
        (cache_directory() / "sources").rmdir()
    return removed


def _ours(kept: Path) -> Iterator[Path]:
    """The directories that fetching and building make: another's may begin with the same words."""
    for path in kept.glob("*"):
        if BUILT.fullmatch(path.name) or path.name.startswith(BUILDING):
            yield path
    for source in (LANGUAGE_MODEL, VISION_TOWER):
        yield from (kept / "sources").glob(f"{source.package}-*")


def assemble(adapter: dict[str, Tensor]) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model and processor, from the base weights and an adapter's tensors, in single precision."""
    with _made_in(torch.float32):
        return _assembled(adapter)


@contextlib.contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """Within the `with` torch makes modules of this type, whatever type the user has made the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _assembled(adapter: dict[str, Tensor]) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    language, tokenizer = load_language_model(), load_tokenizer()
    _merge(language, adapter)
    tokenizer = _with_image_token(tokenizer)
    image_token = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    vision = load_vision_tower()
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=language.config,
        image_token_id=image_token,
        vision_feature_layer=list(FEATURE_LAYERS),
        vision_feature_select_strategy="default",
        image_seq_length=(SIZE // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).to(torch.float32).eval()
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.model.vision_tower.load_state_dict(vision.state_dict())
    projector = {k.removeprefix("projector."): v.float() for k, v in adapter.items() if k.startswith("projector.")}
    model.model.multi_modal_projector.load_state_dict(projector)
    model.tie_weights()
    end = tokenizer.convert_tokens_to_ids(END)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = end
    return model, _processor(tokenizer)


def _merge(language: LlamaForCausalLM, adapter: dict[str, Tensor]) -> None:
    modules = dict(language.model.named_modules())
    with torch.no_grad():
        for name, lora_a in adapter.items():
            if name.endswith(".lora_A"):
                weight = modules[name.removesuffix(".lora_A")].weight
                weight.copy_(merged(weight, lora_a, adapter[name.replace("lora_A", "lora_B")]))


def _with_image_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer with a reserved token, which no text uses, renamed: the vocabulary keeps its size."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    vocabulary[IMAGE_TOKEN] = vocabulary.pop(RESERVED_TOKEN)
    for token in described["added_tokens"]:
        if token["content"] == RESERVED_TOKEN:
            token["content"] = IMAGE_TOKEN
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        bos_token=tokenizer.bos_token,
        eos_token=END,
        pad_token=END,
        unk_token=tokenizer.unk_token,
        model_max_length=8192,
        padding_side="left",
    )


def _processor(tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    pixels = CLIPImageProcessorPil(  # the same pixels with and without torchvision
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        resample=PILImageResampling.BICUBIC,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
    return LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,  # DINOv2's class token, which the strategy "default" drops again
    )


def _build_into(folder: Path, version: str) -> None:
    """Make the checkpoint beside its place, its manifest last, and put it there; in the place of a damaged one."""
    try:
        with files.aside(folder.parent, BUILDING, alone=True) as aside:
            model, processor = assemble(read(version))
            made = aside / folder.name
            model.save_pretrained(made)
            processor.save_pretrained(made)
            (made / MANIFEST).write_text(json.dumps({p.name: files.sha256(p) for p in sorted(made.iterdir())}))
            if os.path.exists(folder):
                os.replace(folder, aside / "damaged")
            os.replace(made, folder)
    except LvlmInterpError:
        raise
    except (OSError, SafetensorError) as error:  # what safetensors says of a full disk
        said = reason(error) if isinstance(error, OSError) else error
        raise DownloadError(f"could not write the reference model to {folder}: {said}") from error
