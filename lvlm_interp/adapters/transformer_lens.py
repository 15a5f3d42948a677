"""Our captures and models as TransformerLens's, for its analysis functions.

Importing this module imports transformer_lens, which takes seconds.
"""

from __future__ import annotations

import copy
import re
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import ActivationCache
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lvlm_interp.errors import InputError, LvlmInterpWarning, ModelError, SiteError
from lvlm_interp.given import explained
from lvlm_interp.model.acting import wrapped_by
from lvlm_interp.model.capture import Capture
from lvlm_interp.model.norms import centres, gain_of, scale_of
from lvlm_interp.model.parts import attention_of, find_blocks, head_width, output_of
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.model.weights import is_stored, map_of, sizes_of

FIRST = "blocks.0.hook_resid_pre"
MADE_FROM = {"hook_embed": FIRST, "ln_final.hook_scale": "blocks.*.hook_resid_post"}


@explained
def as_bridge(vlm: HookedVLM) -> TransformerBridge:
    """The model as a `TransformerBridge`.

        bridge = as_bridge(vlm)
        inputs = dict(x.model_inputs)
        output, cache = bridge.run_with_cache(inputs.pop("input_ids"), **inputs)

    A bridge replaces modules of the model that it is built on and makes it compute attention eagerly, so it is built on
    a copy, weights included. It has no tokenizer: give it prepared inputs. Its runs are the model's; its weights
    (`bridge.blocks[0].attn.W_O`) are those that are stored, without an adapter that is not merged, which is warned of.

    Raises:
        ModelError: TransformerLens does not know this kind of model, lacks a package that it wants for it, or
            expects other parts (its LLaVA has CLIP's vision tower); an adapter on the output of attention.
    """
    kind = type(vlm.model).__name__
    if kind not in SUPPORTED_ARCHITECTURES:
        known = sorted(set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()) & set(SUPPORTED_ARCHITECTURES))
        raise ModelError(
            f"TransformerLens has no bridge for {kind}; it has one for {known}. "
            "vlm.capture and vlm.nnsight work without, and as_activation_cache takes captures of any model"
        )
    if adapted := _adapted_outputs(vlm):
        raise ModelError(
            f"there is an adapter on the attention output of block {adapted[0]}, whose weights TransformerLens's "
            "bridge would give the other way round: merge it first (model.merge_and_unload()). vlm.capture and "
            "as_activation_cache take the model as it is"
        )
    if partly := [n for n, module in vlm.decoder.named_modules() if sizes_of(module) and not is_stored(module)]:
        warnings.warn(
            f"of {len(partly)} maps, such as {partly[0]!r}, this bridge has weights that are a part only, or packed: "
            "an adapter, or quantisation, makes the rest. Runs of the bridge are right; as_activation_cache has the "
            "whole maps, and so has a bridge of the model with the adapter merged",
            LvlmInterpWarning,
            stacklevel=3,
        )
    own = copy.deepcopy(vlm.model)
    try:
        return build_bridge_from_module(own, kind, hf_config=own.config, model_name=vlm.name)
    except (ImportError, AttributeError) as error:  # a package or, for another vision tower, a module that it expects
        raise ModelError(f"TransformerLens cannot build its bridge for this {kind}: {error}") from error


def _adapted_outputs(vlm: HookedVLM) -> list[int]:
    """Blocks whose attention writes through an adapter that is not merged."""
    outputs = [output_of(attention) if (attention := attention_of(b)) is not None else None for b in vlm.blocks]
    return [n for n, project in enumerate(outputs) if wrapped_by(project) is not None]


@explained
def as_activation_cache(vlm: HookedVLM, capture: Capture) -> ActivationCache:
    """A capture as an `ActivationCache`, with what its analysis functions ask of a model.

    `accumulated_resid` works where `blocks.*.hook_resid_pre` and the last `hook_resid_post` were captured;
    `decompose_resid` where `blocks.*.hook_attn_out`, `blocks.*.hook_mlp_out` and the first `hook_resid_pre`, which is
    its `hook_embed`, were; `stack_head_results` where `blocks.*.attn.hook_z` was. What goes through the final norm
    (`apply_ln=True`, `logit_attrs`) needs the last `hook_resid_post`. `logit_attrs` takes token ids. Every name has
    TransformerLens's value; scores of what is masked become -inf, as there.

    The weights are the maps that the model computes, adapters and all; where they are stored as they are, nothing is
    copied. Where a family adds something between two blocks (the
    DeepStack features of Qwen3-VL), a decomposition lacks it.

    Raises:
        SiteError: heads or a reduction were chosen, so that the axes are not those of TransformerLens; and later, when
            a function needs a site that was not captured.
    """
    if capture.choice.heads is not None or capture.choice.reduce is not None:
        raise SiteError("an ActivationCache holds all heads, unreduced: capture without heads= and reduce=")
    values = {name: value for name, value in capture.items() if name != "logits"}
    parts, norm = _Parts(vlm), vlm.readout.norm
    read = {
        f"blocks.{i}.ln{n}": f"blocks.{i}.hook_resid_{at}" for i in parts.layers for n, at in ((1, "pre"), (2, "mid"))
    }
    read["ln_final"] = f"blocks.{parts.layers[-1]}.hook_resid_post"
    scales = {f"{ln}.hook_scale": scale_of(norm, values[name]) for ln, name in read.items() if name in values}
    embedded = {"hook_embed": values[FIRST]} if FIRST in values else {}
    masked = {name: _unmasked(value) for name, value in values.items() if name.endswith("attn_scores")}
    return _Cache({**scales, **embedded, **values, **masked}, parts)


def _unmasked(scores: Float[Tensor, "*rows key"]) -> Float[Tensor, "*rows key"]:
    """The scores of what is masked are -inf in TransformerLens, and the lowest number in transformers."""
    return scores.masked_fill(scores <= torch.finfo(scores.dtype).min / 2, -torch.inf)


class _Cache(ActivationCache):
    """An `ActivationCache` whose errors say which sites to capture."""

    def __getitem__(self, key: Any) -> Tensor:
        try:
            return super().__getitem__(key)
        except KeyError as error:
            name = str(error.args[0])
            source = MADE_FROM.get(name, re.sub(r"^blocks\.\d+\.", "blocks.*.", name))
            raise SiteError(
                f"{name!r} is not in this cache: capture {source!r} too. It holds {list(self.cache_dict)[:6]} …"
            ) from error

    def apply_ln_to_stack(self, *stack: Any, **options: Any) -> Tensor:
        """As in TransformerLens, which looks for the reason of a missing scale in a block that need not be there."""
        try:
            return super().apply_ln_to_stack(*stack, **options)
        except (KeyError, IndexError) as error:
            if isinstance(missing := error.__context__, SiteError):
                raise missing from None
            raise


class _Parts:
    """What an `ActivationCache` asks of a model, by TransformerLens's names."""

    def __init__(self, vlm: HookedVLM) -> None:
        blocks = find_blocks(vlm.decoder, vlm.vision)
        self.layers, self.readout, self.ln_final = range(len(blocks)), vlm.readout, vlm.readout.norm
        added = [vlm.sites.get(f"blocks.{i}.hook_attn_out") for i in self.layers]
        self.blocks = [
            SimpleNamespace(attn=_Heads(b, site.module if site else None))
            for b, site in zip(blocks, added, strict=True)
        ]
        self.cfg = SimpleNamespace(
            n_layers=len(blocks),
            n_heads=vlm.model.config.get_text_config().num_attention_heads,
            attn_only=False,
            normalization_type="LN" if centres(self.ln_final) else "RMS",
        )

    def to_single_token(self, token: str) -> int:
        raise InputError(f"give token ids, not {token!r}: a capture has no tokenizer")

    def tokens_to_residual_directions(self, tokens: int | Tensor) -> Float[Tensor, "*shape width"]:
        """Where each token's logit is read in the normalised stream, the weights of the norm included.

        A family's soft cap on logits is not linear, so what is read is the logit before it.
        """
        weight = self.readout.weight[torch.as_tensor(tokens)]
        return weight * gain_of(self.ln_final, weight.shape[-1]) * self.readout.scale


class _Heads:
    """How the heads of one block write to the residual stream."""

    def __init__(self, block: nn.Module, added: nn.Module | None) -> None:
        self._block, self._added = block, added

    @property
    def W_O(self) -> Float[Tensor, "head head_width width"]:
        attention = attention_of(self._block)
        project: Any = output_of(attention) if attention is not None else None
        width = head_width(attention) if attention is not None else None
        if attention is None or project is None or width is None or sizes_of(project) is None:
            raise ModelError(f"{type(self._block).__name__} has no attention output that splits by head")
        if self._added is None or attention not in self._added.modules():
            raise ModelError(
                f"in {type(self._block).__name__} a norm or gate stands between the heads and the residual stream, so "
                "what a head adds is no sum over heads; hook_attn_out is what they add together"
            )
        return map_of(project)[0].T.unflatten(0, (-1, width))
