"""The names that transformers' code gives to what is looked for in a model: the usual ones, and those a family adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Names:
    """Names by what they stand for, the most telling one first; a family's stand behind the usual ones.

    Attributes:
        attention: attention of a block.
        cross_attention: the same, where it reads the image.
        recurrent: what carries a state from position to position, in the place of attention or beside it.
        mlp: the MLP of a block.
        mlp_gate, mlp_in, mlp_out: its linear maps: whose output goes through the activation, where another's is
            multiplied by it; that other, or the only one; and the one that leads back.
        gate_and_in: the first two in one.
        before_attention: the norm of attention, or of what stands in its place.
        before_mlp: its norm, which reads the middle of the residual stream.
        after_attention: what stands between attention and residual; a norm that stands before the MLP is not meant.
        after_mlp: what stands between MLP and residual.
        others: what else a block adds to its stream: modules, and what their sites are called.
        carried: modules of a block that multiply the stream, number by number, before something is added to it.
        rescaled: what a block multiplies its whole stream by, behind all that it adds.
        norms_moved: what a block has, or the name of its class speaks of, whose norms stand behind attention and MLP
            though they are named as if they stood before.
        mixed_for_mlp: of several residual streams, side by side in the width: what mixes them for the MLP.
        mixed_apart: the same where they have an axis of their own.
        mixed_at_last: what mixes the latter for the final norm.
        streams: the axis of streams that have one of their own, by the part of a block that tells it.
        final_norm: the last norm of a decoder.
        projector: what maps the vision tower's features to embeddings.
        output_projection: what the heads of attention go into.
        inner_norm: a norm between them.
        value_norms: norms of values, after their projection.
        qkv: what computes q, k and v at once.
        head_by_head: those of `qkv` that hold q, k and v of the first head, then of the second.
        scales: what the config names that logits are multiplied (1) or divided (-1) by; some are never applied.
        hidden_states: what modules call their input.
        row_axis: arguments of a decoder that have an axis of rows, besides embeddings, positions and masks: which.
        of_tokens: those that follow from a row's token, not from its position alone; and what of the decoder makes them
            of token ids, if they are not the ids themselves.
        image_rows: those that have a row for each image token, one for each layer; and the argument that says where
            image tokens are.
        laid_over: what a decoder lays over the embeddings of image tokens itself, before it scales them.
        per_image: model inputs with a row for each image.
    """

    attention: tuple[str, ...] = ()
    cross_attention: tuple[str, ...] = ()
    recurrent: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ()
    mlp_gate: tuple[str, ...] = ()
    mlp_in: tuple[str, ...] = ()
    mlp_out: tuple[str, ...] = ()
    gate_and_in: tuple[str, ...] = ()
    before_attention: tuple[str, ...] = ()
    before_mlp: tuple[str, ...] = ()
    after_attention: tuple[str, ...] = ()
    after_mlp: tuple[str, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)
    carried: tuple[str, ...] = ()
    rescaled: tuple[str, ...] = ()
    norms_moved: tuple[str, ...] = ()
    mixed_for_mlp: tuple[str, ...] = ()
    mixed_apart: tuple[str, ...] = ()
    mixed_at_last: tuple[str, ...] = ()
    streams: Mapping[str, int] = field(default_factory=dict)
    final_norm: tuple[str, ...] = ()
    projector: tuple[str, ...] = ()
    output_projection: tuple[str, ...] = ()
    inner_norm: tuple[str, ...] = ()
    value_norms: tuple[str, ...] = ()
    qkv: tuple[str, ...] = ()
    head_by_head: tuple[str, ...] = ()
    scales: Mapping[str, int] = field(default_factory=dict)
    hidden_states: tuple[str, ...] = ()
    row_axis: Mapping[str, int] = field(default_factory=dict)
    of_tokens: Mapping[str, str | None] = field(default_factory=dict)
    image_rows: Mapping[str, str] = field(default_factory=dict)
    laid_over: tuple[str, ...] = ()
    per_image: tuple[str, ...] = ()

    def __or__(self, other: Names) -> Names:
        """Both together.

        Raises:
            ValueError: they say different things of one name.
        """
        kinds = [one.name for one in dataclasses.fields(self)]
        return Names(**{kind: _joined(kind, getattr(self, kind), getattr(other, kind)) for kind in kinds})


def _joined(kind: str, first: Any, second: Any) -> Any:
    if isinstance(first, tuple):
        return tuple(dict.fromkeys((*first, *second)))
    for name in first.keys() & second.keys():
        if first[name] != second[name]:
            raise ValueError(f"two families say different things of {kind} {name!r}: {first[name]}, {second[name]}")
    return {**first, **second}


USUAL = Names(
    attention=("self_attn", "attention", "attn", "self_attention"),
    cross_attention=("cross_attn",),
    recurrent=("linear_attn", "conv", "mamba", "mixer"),
    mlp=("mlp", "feed_forward", "feedforward", "ffn", "block_sparse_moe", "moe", "fc2"),
    mlp_gate=("gate_proj", "w1"),
    mlp_in=("up_proj", "w3", "fc1", "linear_fc1", "lin1", "c_fc"),
    mlp_out=("down_proj", "w2", "fc2", "linear_fc2", "lin2", "c_proj"),
    gate_and_in=("gate_up_proj",),
    before_attention=(
        "input_layernorm",
        "layer_norm1",
        "norm1",
        "ln_1",
        "layernorm_before",
        "self_attn_layer_norm",
        "attention_norm",
        "operator_norm",
        "rms_norm1",
    ),
    before_mlp=(
        "pre_feedforward_layernorm",
        "pre_mlp_layernorm",
        "layer_norm2",
        "norm2",
        "ln_2",
        "layernorm_after",
        "final_layer_norm",
        "post_attention_layernorm",
        "ffn_norm",
    ),
    after_attention=("layer_scale1", "post_self_attn_layernorm", "post_attention_layernorm"),
    after_mlp=("layer_scale2", "post_mlp_layernorm", "post_feedforward_layernorm"),
    final_norm=("norm", "final_layernorm", "final_layer_norm", "ln_f", "layer_norm"),
    projector=(
        "multi_modal_projector",
        "connector",
        "vision_projection",
        "image_projection",
        "projector",
        "merger",
    ),
    output_projection=("o_proj", "out_proj", "proj", "projection", "dense", "attn_out", "c_proj"),
    qkv=("qkv", "qkv_proj", "query_key_value"),
    scales={"logit_scale": 1, "logits_scaling": -1},
    hidden_states=("hidden_states", "hidden_state", "x"),
    row_axis={"visual_pos_masks": 1},
    image_rows={"deepstack_visual_embeds": "visual_pos_masks"},
    per_image=("image_grid_thw", "image_sizes"),
)
