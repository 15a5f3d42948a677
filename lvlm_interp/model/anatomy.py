"""Where the parts of a vision-language model are: asked of transformers, of the family's row, or found by name."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedModel

from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.families.shared import registry
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.registry import NAMES
from lvlm_interp.given import explaining
from lvlm_interp.model.acting import acting, called_again, is_wrapper
from lvlm_interp.model.listing import Sites
from lvlm_interp.model.parts import (
    attention_of,
    axis_of_streams,
    find_blocks,
    names_in_forward,
    need_places,
    owner_of,
    part,
    recurrent_of,
    repeated,
)
from lvlm_interp.model.quantised import need_weights_to_read
from lvlm_interp.model.readout import Behind, Mixing, Readout
from lvlm_interp.model.sites import Site, find_sites, missing_sites
from lvlm_interp.model.walking import looked_up
from lvlm_interp.model.weights import sizes_of

# What is found among the modules of a model, and kept.
FOUND = (
    *("decoder", "blocks", "depth", "attention_kinds", "recurrent", "vision", "projector", "nnsight"),
    *("_read_out", "_scaled_by", "_named", "_missing", "_sites"),
)
SOFTCAP = "final_logit_softcapping"


@explaining
class Anatomy:
    """The parts of a model, each looked for once, when it is first asked for.

    Attributes:
        model: the transformers model, in evaluation mode.
        processor: its processor, or None.
        family: what transformers does not say itself about models of this type.
    """

    def __init__(self, model: PreTrainedModel, processor: Any = None) -> None:
        self.model, self.processor = model.eval(), processor
        self.family: Family = registry.family_of(model.config)
        self._need_decoder_only()
        self.image_token_id  # noqa: B018  a model without images is refused at once

    def _need_decoder_only(self) -> None:
        """Raise unless the answer stands in one row with the prompt.

        Raises:
            ModelError: a model whose answer stands in a row of its own.
        """
        config = self.model.config
        if config.is_encoder_decoder or config.get_text_config().is_encoder_decoder:
            raise ModelError(
                f"this model of type {config.model_type!r} cannot be read: it is an encoder-decoder, whose answer is "
                "read from an encoder by cross-attention. Models that continue a prompt can be read."
            )

    def _at(self, path: str) -> Any:
        """What an attribute path of the family's row leads to."""
        found = attrgetter(path)(self.model.base_model)
        return acting(found) if isinstance(found, nn.Module) else found

    @property
    def device(self) -> torch.device:
        """Where inputs go; weights that are kept elsewhere (a `device_map`) stand on no device until they are used."""
        held = itertools.chain(self.model.parameters(), self.model.buffers())
        return next((weight.device for weight in held if not weight.is_meta), torch.device("cpu"))

    @functools.cached_property
    def decoder(self) -> PreTrainedModel:
        """The language model's transformer, without unembedding."""
        found = acting(self.model.get_decoder())
        while (inner := acting(found.get_decoder())) is not found:
            found = inner
        return acting(found.model) if hasattr(found, "lm_head") else found

    @functools.cached_property
    def blocks(self) -> list[nn.Module]:
        """The decoder's transformer blocks, as they run."""
        found = find_blocks(self.decoder, self.vision)
        need_places(found)
        return found

    @functools.cached_property
    def depth(self) -> int:
        """How many blocks the decoder has."""
        return len(self.blocks)

    @functools.cached_property
    def attention_kinds(self) -> list[tuple[nn.Module, ...]]:
        """The attention modules of the decoder, grouped by the masks that they get."""
        attentions = [attention_of(block) for block in self.blocks]
        return _by_kind(attentions, getattr(self.model.config.get_text_config(), "layer_types", None))

    @functools.cached_property
    def recurrent(self) -> tuple[nn.Module, ...]:
        """What carries a state from position to position in the decoder: linear attention, short convolutions."""
        return tuple(module for block in self.blocks for module in recurrent_of(block).values())

    @property
    def readout(self) -> Readout:
        """Final norm and unembedding, and what scales or caps the logits now."""
        self.notice_modules()
        text, found = self.model.config.get_text_config(), self._read_out
        stated = {k: v for k in self._scaled_by if (v := getattr(text, k, None)) is not None}
        powers = {**NAMES.scales, "logits_scaling": 1} if self.family.multiplied else NAMES.scales
        scale = math.prod(stated[k] ** power for k, power in powers.items() if k in stated)
        same = (scale, stated.get(SOFTCAP)) == (found.scale, found.softcap)
        return found if same else dataclasses.replace(found, scale=scale, softcap=stated.get(SOFTCAP))

    @functools.cached_property
    def _scaled_by(self) -> list[str]:
        """The names of the configuration that the logits are scaled and capped by."""
        used = names_in_forward(owner_of(self.model, acting(self._unembedding)))
        return [name for name in (*NAMES.scales, SOFTCAP) if name in used]

    @property
    def _unembedding(self) -> Any:
        found = self.model.get_output_embeddings()
        if found is not None or self.decoder is self.model:
            return found
        language = owner_of(self.model, self.decoder)  # some name it in the language model only
        return language.get_output_embeddings() if isinstance(language, PreTrainedModel) else None

    @functools.cached_property
    def _read_out(self) -> Readout:
        norm, unembed = part(self.decoder, NAMES.final_norm), self._unembedding
        sizes = sizes_of(unembed)
        if norm is None or unembed is None or sizes is None:
            raise ModelError(
                f"found no final norm or no unembedding in {type(self.model).__name__}, so it gives no words. If it is "
                "a part of a model, open the whole one: …ForConditionalGeneration or …ForCausalLM, and its processor"
            )
        unembed = acting(unembed)
        if (mixer := part(self.decoder, NAMES.mixed_at_last)) is not None:
            norm = Mixing(mixer, norm, sizes[0])
        elif (axis := axis_of_streams(self.blocks[-1])) is not None:
            norm = Behind(self.decoder, self.blocks[-1], axis, sizes[0])
        never = torch.tensor(self._at(self.family.never)) if self.family.never else None
        return Readout(norm, unembed, never=never)

    @functools.cached_property
    def _named(self) -> dict[str, Site]:
        return find_sites(self.blocks, self.decoder, self.vision, self.projector)

    @functools.cached_property
    def _missing(self) -> dict[str, str]:
        towers = [self.decoder, *([] if self.vision is None else [self.vision])]
        return missing_sites(self._named, called_again(self.decoder), repeated(towers))

    @functools.cached_property
    def _sites(self) -> dict[str, Site]:
        return Sites({name: site for name, site in self._named.items() if name not in self._missing})

    @property
    def missing(self) -> dict[str, str]:
        """Places that cannot be captured in this model, with the reason."""
        self.notice_modules()
        return self._missing

    @property
    def sites(self) -> dict[str, Site]:
        """Every place that can be captured, by name."""
        self.notice_modules()
        return self._sites

    def notice_modules(self) -> None:
        """Forget what was found where other modules run than did: an adapter put in or switched, a part replaced.

        Raises:
            ModelError: what stands there now cannot be read.
        """
        modules, known = looked_up(_all_modules, self.model), vars(self).get("_modules")
        if known is not None and (len(known) != len(modules) or any(map(operator.is_not, known, modules))):
            for name in FOUND:
                vars(self).pop(name, None)
            need_weights_to_read(self.model)
        self._modules = modules

    @property
    def dtype(self) -> torch.dtype:
        """The type of the numbers that the language model computes in; a vision tower may have a wider one."""
        return self.decoder.dtype

    @functools.cached_property
    def vision(self) -> nn.Module | None:
        """The vision tower."""
        if self.family.vision:
            return self._at(self.family.vision)
        found = self.model.get_encoder(modality="image")
        return None if acting(found) in (self.model, self.model.base_model, self.decoder) else acting(found)

    @functools.cached_property
    def projector(self) -> nn.Module | None:
        """What maps the vision tower's features to embeddings of the language model."""
        if self.family.projector:
            return self._at(self.family.projector)
        return part(self.model.base_model, NAMES.projector) or (
            part(self.vision, NAMES.projector) if self.vision else None
        )

    @property
    def visual_codes(self) -> tuple[int, ...]:
        """Ids of visual codes, where the vocabulary has some."""
        return tuple(self._at(self.family.codes)) if self.family.codes else ()

    @functools.cached_property
    def image_token_id(self) -> int | None:
        """The id that stands for a piece of the image in a prompt; None where a model input marks these positions.

        Raises:
            ModelError: neither the config nor the processor names one.
        """
        if self.family.image_mask:
            return None
        names = (self.family.image_token, "image_token_id", "image_token_index")
        found = next((i for name in names if (i := getattr(self.model.config, name, None)) is not None), None)
        found = getattr(self.processor, "image_token_id", None) if found is None else found
        if found is None:
            processor = "no processor was given" if self.processor is None else "its processor names none either"
            raise ModelError(
                f"models of type {self.model.config.model_type!r} cannot be read: the config names no image token "
                f"(looked for {list(dict.fromkeys(names))}), and {processor}. "
                f"These families are known: {sorted(registry.FAMILIES)}."
            )
        return int(found)

    @functools.cached_property
    def video_token_id(self) -> int | None:
        """The id that stands for a piece of a video, if it is another than that of images."""
        names = ("video_token_id", "video_token_index")
        found = next((i for name in names if (i := getattr(self.model.config, name, None)) is not None), None)
        return None if found is None or found == self.image_token_id else int(found)

    @property
    def visual_token_ids(self) -> tuple[int, ...]:
        """The ids that stand for a piece of an image or of a video."""
        return tuple(i for i in (self.image_token_id, self.video_token_id) if i is not None)

    @property
    def embedding_rows(self) -> int:
        """How many ids the embedding has; 0 if unknown."""
        rows = getattr(getattr(self.model.get_input_embeddings(), "weight", None), "shape", (0,))[0]
        more = getattr(self.model.config.get_text_config(), "additional_vocab_size", 0) or 0  # Idefics
        return int(rows + more if rows else 0)

    @property
    def token_count(self) -> int:
        """How many ids there are, of the embedding or of the tokenizer, whichever has more; 0 if unknown."""
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        rows = self.embedding_rows
        return max(rows, len(tokenizer) if rows and hasattr(tokenizer, "__len__") else 0)

    def visual_in(self, model_inputs: Mapping[str, Any]) -> Bool[Tensor, "batch position"]:
        """Which positions of a prompt stand for a piece of an image or of a video.

        Raises:
            InputError: there is no prompt.
        """
        if "input_ids" not in model_inputs:
            raise InputError(f"the prompt is under 'input_ids' in what a model is called with; got {[*model_inputs]}")
        ids = model_inputs["input_ids"]
        marked = model_inputs.get(self.family.image_mask) if self.family.image_mask else None
        known = torch.tensor(self.visual_token_ids, dtype=ids.dtype, device=ids.device)
        return torch.isin(ids, known) if marked is None else marked == 1

    @functools.cached_property
    def uncounted(self) -> int | None:
        """The padding token, where positions are counted from beyond its id and it has none itself."""
        return getattr(getattr(self.decoder, "embed_positions", None), "padding_idx", None)


def _all_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a model, those in two places twice: quicker than torch's, as it is asked for with each capture.

    Behind them those that adapters run in the place of others.
    """
    found = [model]
    for module in found:
        found.extend(child for child in module._modules.values() if child is not None)
    return found + [acting(module) for module in found if is_wrapper(module)]


def _by_kind(attentions: Sequence[nn.Module | None], layer_types: Sequence[str] | None) -> list[tuple[nn.Module, ...]]:
    """The attention modules of the decoder, grouped by what transformers calls the type of their layer."""
    groups: dict[str, list[nn.Module]] = defaultdict(list)
    for n, attention in enumerate(attentions):
        if attention is not None:
            groups[layer_types[n] if layer_types and n < len(layer_types) else ""].append(attention)
    return [tuple(group) for group in groups.values()]
