"""What the decoder is called with, taken down once for all coalitions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lvlm_interp.compat import EMPTY_LAYER, known_to
from lvlm_interp.engine.masks import Sight, look
from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.families.shared.registry import NAMES
from lvlm_interp.given import explained, explaining
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.touched import State, states_of
from lvlm_interp.model.holding import (
    EVERYWHERE,
    Edits,
    Put,
    hooked_before,
    hooks_of_others,
    in_one_go,
    put_by_others,
    written_by_others,
)
from lvlm_interp.model.lengths import following, unmoved
from lvlm_interp.model.training import need_evaluation
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.model.weights import sizes_of

MADE_ANEW = frozenset(  # arguments of a decoder that scoring gives itself
    {"attention_mask", "past_key_values", "use_cache", "output_hidden_states", "output_attentions", "return_dict"}
)
ROOM = 8  # positions beyond the example for which masks and position ids are taken down


@dataclass(frozen=True, eq=False)
class Prefix:
    """Rows that are computed already, with their keys and values of every layer."""

    rows: tuple[int, ...] = ()
    states: tuple[tuple[Tensor, Tensor], ...] = ()

    def first(self, count: int) -> Prefix:
        """Its first rows."""
        return Prefix(self.rows[:count], tuple((k[:, :, :count], v[:, :, :count]) for k, v in self.states))


@explaining
@dataclass(frozen=True, eq=False)
class DecoderInputs:
    """What the language model is called with, once the image has become embeddings.

    Attributes:
        embeds: `[row, width]`.
        positions: position ids `[axis, position]`; one axis, or three where time, height and width have their own
            (floats in Qwen3-Omni, whose times need not be whole).
        image: which rows are image tokens.
        extras: other arguments of the decoder, for all positions.
        of_tokens: arguments that follow from the tokens, `[row, …]` as the embeddings.
        sight: what the model's own masks let every position see.
        index: the position that each row stands at; several rows stand at one where answers are alternatives.
        kept: keys and values of the prompt with nothing hidden, once a call has computed them: later calls go on from
            there. None keeps nothing.
        source: the example that they were taken down for.
        decoder: what they are given to.
        last: the last position of the whole, where rotary embeddings turn every row by it; None where they do not.
        weights: the fingerprint of the model that they were taken down from.
        edits: those that were in front of its decoder.
        hooks: hooks of others, and forwards that they have put there, that were in front of it.
        touched: what tells that the example's tensors were written to.
    """

    embeds: Float[Tensor, "row width"]
    positions: Real[Tensor, "axis position"]
    image: Bool[Tensor, " row"]
    extras: dict[str, Any]
    of_tokens: dict[str, Tensor]
    sight: Sight
    index: Int[Tensor, " row"]
    kept: list[Prefix] | None = None
    source: Inputs | None = None
    decoder: PreTrainedModel | None = None
    last: Real[Tensor, ""] | None = None
    weights: str | None = None
    edits: Edits = ()
    hooks: Put = ()
    touched: tuple[State, ...] = ()

    def need(self, vlm: HookedVLM, x: Inputs) -> None:
        """Raise unless these were taken down for this model, and the prompt and the pictures of `x`.

        Raises:
            InputError: they are of another model or example.
            ModelError: the model, or a part of it, was put in training mode.
        """
        need_evaluation(vlm.model)
        if self.decoder is not None and self.decoder is not vlm.decoder:
            raise InputError("decoder_inputs are those of another model; take them down for this one")
        if self.weights not in (None, vlm.identity):
            raise InputError("decoder_inputs are those of the model before its weights or settings changed")
        if self.edits != edits_before(vlm):
            raise InputError("decoder_inputs were taken down under other edits before the decoder; do it anew")
        if self.hooks != hooks_before(vlm):
            raise InputError("decoder_inputs were taken down under other hooks before the decoder; do it anew")
        if self.source is None:
            return
        own, asked = (y.first(x.answer_start) for y in (self.source, x))
        if own.keys() != asked.keys() or not all(v is own[k] or torch.equal(v, own[k]) for k, v in asked.items()):
            raise InputError("decoder_inputs are those of another example; take them down for this one")
        if self.touched != states_of(self.source.model_inputs):
            raise InputError("decoder_inputs are those of the example before its tensors were written to; do it anew")

    def within(self, vlm: HookedVLM, length: int) -> DecoderInputs:
        """These for prompts and answers of this length together, which decides how rows are turned if it is large.

        Then nothing that was kept of another length can be gone on from.
        """
        last = self.positions[:, :length].max()
        return self if last < unmoved(following(vlm.decoder)) else dataclasses.replace(self, last=last, kept=None)

    def extras_of(self, rows: Int[Tensor, " some"]) -> dict[str, Any]:
        """The other arguments of the decoder for some rows."""
        at = self.index.to(rows.device)[rows]
        cut = {k: v.index_select(NAMES.row_axis[k], at) if k in NAMES.row_axis else v for k, v in self.extras.items()}
        for name in NAMES.image_rows.keys() & cut.keys():
            mask = self.extras[NAMES.image_rows[name]]
            where = mask[0].reshape(mask.shape[1], -1)[:, 0]  # some repeat it along the width
            shown, layers = (where.cumsum(0) - 1)[at[where[at]]], cut[name]
            by_layer = isinstance(layers, Mapping)  # only some layers, by number
            cut[name] = {n: layers[n][shown] for n in layers} if by_layer else [layer[shown] for layer in layers]
        return cut | {k: v[rows][None] for k, v in self.of_tokens.items()}

    def cut_before(self, row: int) -> bool:
        """Whether what stands before a row can be computed without it and what follows."""
        return self.cuts is None or self.cuts[row]

    @functools.cached_property
    def cuts(self) -> list[bool] | None:
        """`cut_before` for every row; None where it is always true."""
        at = self.index.tolist()
        if self.sight.whole:
            return [position == 0 for position in at]
        return None if self.sight.causal else [self.sight.cuts[position] for position in at]


def edits_before(vlm: HookedVLM) -> Edits:
    """The edits that are in front of the decoder now."""
    inside = set(vlm.decoder.modules())
    return tuple((site, edit) for site, edit in vlm.held.edited if site.module not in inside)


def hooks_before(vlm: HookedVLM) -> Put:
    """What others have put in front of the decoder now, and on what embeds tokens."""
    embedding = {vlm.decoder.get_input_embeddings(), *_kind_in(vlm.decoder, nn.Embedding)}
    behind = {*vlm.decoder.modules()} - {part for one in embedding for part in one.modules()}
    return put_by_others((name, module) for name, module in vlm.model.named_modules() if module not in behind)


def _kind_in(module: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, kind)]


def standing(vlm: HookedVLM) -> list[str]:
    """What is in the decoder that must find each row at its position: edits, hooks and classes of others.

    Raises:
        ModelError: hooks of others where scoring does not call what they hook, or not with all rows, or calls it with
            what they gave already.
    """
    around = [(name, module) for name, module in vlm.model.named_modules() if _holds(module, vlm.decoder)]
    _need_once(vlm, vlm.decoder)
    around = [pair for pair in around if pair[1] is not vlm.decoder] + [("the unembedding", vlm.readout.unembed)]
    if passed_by := [name or type(vlm.model).__name__ for name in hooks_of_others(around) if name != EVERYWHERE]:
        raise ModelError(
            f"there is a hook of your own on {passed_by[0]!r}, or a forward in the place of its own, which scoring "
            "passes by (it calls the decoder, and unembeds a few rows): what it does would be missing. Remove it, or "
            "hook a module inside the decoder"
        )
    inside = set(vlm.decoder.modules())
    edited = [site.name for site, _ in vlm.held.edited if site.module in inside]
    within = [*vlm.decoder.named_modules()]
    # Linear maps are asked whether their rows depend on each other (`quantised.mixing`).
    own = [name for name, module in written_by_others(vlm.model, within) if not sizes_of(module)]
    return edited + hooks_of_others(within) + own


def _need_once(vlm: HookedVLM, module: nn.Module) -> None:
    """Raise where what a module is called with was taken down behind a hook that would see it again.

    Raises:
        ModelError: names the module.
    """
    if hooked_before(module):
        name = next(name for name, own in vlm.model.named_modules() if own is module)
        raise ModelError(
            f"there is a forward pre-hook of your own on {name!r}, and scoring calls the decoder with what that hook "
            "gave: it would run twice. Remove it, or edit 'hook_embed', what enters the first block, in its place"
        )


def hooked_in_front(vlm: HookedVLM) -> bool:
    """Whether hooks of others are where tokens become rows: they must find those of an answer at their positions."""
    later = {vlm.decoder, *(module for block in vlm.blocks for module in block.modules())}
    makers = (*vlm.decoder.named_modules(), *vlm.model.get_input_embeddings().named_modules())
    return bool(hooks_of_others((name, module) for name, module in makers if module not in later))


def _holds(module: nn.Module, part: nn.Module) -> bool:
    return any(child is part for child in module.modules())


def made_of(decoder: PreTrainedModel, name: str, ids: Int[Tensor, " row"]) -> Tensor:
    """An argument that follows from the tokens, for these: `[row, …]`."""
    if (maker := NAMES.of_tokens[name]) is None:
        return ids
    make = getattr(decoder, maker)
    return make(ids[None], **known_to(make, {"inputs_embeds": None}))[0]


def _in_pieces(decoder: PreTrainedModel) -> bool:
    """Whether all that layers leave to later positions is a key and a value of each, which is what a `Prefix` holds.

    The last layers may read those of layers before them (Gemma 4, Gemma 3n), and leave nothing themselves.
    """
    kinds = [type(layer) for layer in DynamicCache(config=decoder.config).layers]
    while kinds and kinds[-1] is EMPTY_LAYER:
        kinds.pop()
    return {*kinds} <= {DynamicLayer, DynamicSlidingWindowLayer}


def _counted(ids: Int[Tensor, " row"], uncounted: int | None) -> Int[Tensor, " row"]:
    """The position ids of a decoder that is given none."""
    if uncounted is None:
        return torch.arange(len(ids))
    counts = ids != uncounted
    return counts.cumsum(0) * counts + uncounted


@explained
@in_one_go
@torch.no_grad()
def run_to_decoder(vlm: HookedVLM, x: Inputs, keep_prompt: bool = False, room: int = ROOM) -> DecoderInputs:
    """Run the model up to its decoder: the vision tower and projector are computed once for all coalitions.

    With `keep_prompt`, calls that are given the result leave the keys and values of the prompt to each other: faster
    where one prompt is scored many times, at the price of that memory. Their prompts may be longer than the first one's
    (a part of the answer) or a beginning of it; answers may be longer than that of `x` by `room`.
    """
    filler = int(x.input_ids[0, ~vlm.visual_in(x.model_inputs)[0]][-1])
    ids = [*x.answer_ids.tolist(), *[filler] * room]
    longer = x.with_answer(ids, [""] * len(ids), "")
    with vlm.held.pausing(vlm.decoder.modules()):  # embeddings are taken down as they are without edits
        called, entered, sight = look(
            vlm.decoder, vlm.blocks[0], vlm.attention_kinds, longer.length, lambda: vlm.call(longer.model_inputs)
        )
    recurrent = bool(vlm.recurrent or sight.unmasked)
    whole = bool(vlm.family.carriers) or recurrent or not _in_pieces(vlm.decoder)
    sight = dataclasses.replace(sight, whole=whole, recurrent=recurrent)
    laid = next((called.pop(name) for name in NAMES.laid_over if name in called), None)
    own = [name for name, value in called.items() if value is longer.model_inputs.get(name, ...)]
    if not vlm.family.gates and any(called[name].is_floating_point() for name in own):
        # The decoder takes the pictures itself: what it makes of them and of the tokens is what its first block gets.
        _need_once(vlm, vlm.blocks[0])
        called = {name: value for name, value in called.items() if name not in own}
        called["inputs_embeds"] = next(entered[name] for name in NAMES.hidden_states if name in entered)
    embeds, ids_called = called.pop("inputs_embeds", None), called.pop("input_ids", None)
    embeds = vlm.decoder.get_input_embeddings()(ids_called) if embeds is None else embeds
    if laid is not None:
        embeds[vlm.visual_in(longer.model_inputs)] = laid.flatten(0, 1).to(embeds.dtype)
    positions = called.pop("position_ids", None)
    if positions is None:
        positions = _counted(longer.input_ids[0], vlm.uncounted).to(embeds.device)
    extras = {k: v for k, v in called.items() if k not in MADE_ANEW and v is not None}
    of_tokens = {k: extras.pop(k)[0] for k in NAMES.of_tokens.keys() & extras.keys()}
    kept: list[Prefix] | None = [] if keep_prompt else None
    positions = positions.reshape(-1, embeds.shape[1])
    return DecoderInputs(
        embeds=embeds[0],
        positions=positions,
        image=longer.where("image"),
        extras=extras,
        of_tokens=of_tokens,
        sight=sight,
        index=torch.arange(longer.length),
        kept=kept,
        source=x,
        decoder=vlm.decoder,
        weights=vlm.identity,
        edits=edits_before(vlm),
        hooks=hooks_before(vlm),
        touched=states_of(x.model_inputs),
    )
