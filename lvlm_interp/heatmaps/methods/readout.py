"""What is read out at, or of, the image's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.attribution.alternatives import given_rivals
from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.errors import InputError
from lvlm_interp.heatmaps.differentiable import by_patch
from lvlm_interp.heatmaps.method import Kind, Method
from lvlm_interp.inputs.words import Word
from lvlm_interp.inside.direct import direct
from lvlm_interp.inside.lens import lens


@dataclass(frozen=True)
class Direct(Method):
    """What heads that read a patch write straight into the logit of the part's tokens; see `inside.direct`.

    With a foil, into the difference of two logits. The numbers of all positions, and what else is written, add up to
    the logit; those of the image are the part of it that was read there.
    """

    name: ClassVar[str] = "direct"
    kind: ClassVar[Kind] = "readout"
    cost: ClassVar[str] = "1"
    sums: ClassVar[str] = "what heads read from the image's tokens"
    needs: ClassVar[str] = "attention through transformers' AttentionInterface; an end without edits"
    source: ClassVar[str] = "Elhage et al. 2021"

    def map(self, asked: Asked) -> PatchMap:
        foil = _foil(asked)
        found = direct(asked.vlm, asked.x, against=foil)
        read = found.sources.double().sum((1, 2))
        rows = torch.stack([read[part.start : part.stop].sum(0) for part in asked.target.parts])
        values = by_patch(asked, rows[:, asked.view.positions])
        total = rows[:, asked.view.positions].sum(1)
        about: dict[str, Any] = {}
        if foil is not None:
            about = {"alternatives": (asked.vlm.token_strings([foil]),), "alternative_ids": (((foil,),),)}
        return asked.mapped(
            self.name,
            values,
            total,
            {},
            value="logit",
            says="written by heads that read it",
            unit="logits",
            residual=(total - values.sum(1)).float(),
            **about,
        )


def _foil(asked: Asked) -> int | None:
    """The one token that a part is held against."""
    target = asked.target
    if not target.search.given:
        return None
    rivals = given_rivals(asked.vlm, asked.x, target.parts, target.search)
    ids = [list(one) for rival in rivals.values() for one in rival.ids]
    part = target.parts[0]
    if len(target.parts) != 1 or len(ids) != 1 or len(ids[0]) != 1 or part.stop - part.start != 1:
        raise InputError(
            "'direct' takes the logits of two single tokens apart: one part of one token, and a foil of one token; "
            "'occlusion', 'shapley' and 'integrated_gradients' take words and answers of any length"
        )
    return ids[0][0]


@dataclass(frozen=True)
class Lens(Method):
    """How likely the part's first token with letters is at each image token, by the logit lens.

    Attributes:
        layers: after how many blocks; the likeliest of several counts. By default all but the embeddings.
    """

    name: ClassVar[str] = "lens"
    kind: ClassVar[Kind] = "readout"
    cost: ClassVar[str] = "1, and an unembedding of every layer's image tokens"
    signed: ClassVar[bool] = False
    source: ClassVar[str] = "nostalgebraist 2020; Jiang et al. 2024"
    layers: int | tuple[int, ...] | None = None

    def map(self, asked: Asked) -> PatchMap:
        vlm, x = asked.vlm, asked.x
        layers = range(1, vlm.depth + 1) if self.layers is None else self.layers
        ids = [lettered(asked, part) for part in asked.target.parts]
        chances = torch.stack(
            [lens(vlm, x, layers, asked.view.positions, target=i, k=1).target_logprob[0].amax(0).exp() for i in ids]
        ).double()
        at = asked.patches[:, asked.view.positions]
        values = torch.stack([one.where(at, 0.0).amax(1) for one in chances])  # the likeliest of a patch's tokens
        return asked.mapped(
            self.name,
            values,
            chances.amax(1),
            {"layers": list(layers) if not isinstance(layers, int) else [layers]},
            value="probability",
            says="of its first token, read at the patch",
            unit="probability",
            adds=False,
        )


def lettered(asked: Asked, part: Word) -> int:
    """The part's first token that has letters or digits; its first, where none has."""
    places = range(part.start, part.stop)
    place = next((i for i in places if any(c.isalnum() for c in asked.x.answer_tokens[i])), part.start)
    return int(asked.x.answer_ids[place])


@dataclass(frozen=True)
class Tam(Method):
    """Token activation map: the logit of the part's tokens at the image's tokens, less what earlier tokens leave.

    The map of a token is relu(logit) at the last layer. Earlier tokens of the prompt's text and of the answer have maps
    too; their mean, each weighted by how much the token is read at that earlier place, is taken off as far as it fits
    (least squares). Then a filter over the grid evens out what stands alone, by rank.

    Attributes:
        filtered: whether that filter is applied.
    """

    name: ClassVar[str] = "tam"
    kind: ClassVar[Kind] = "readout"
    cost: ClassVar[str] = "1"
    signed: ClassVar[bool] = False
    source: ClassVar[str] = "Li et al. 2025 (TAM)"
    filtered: bool = True

    @torch.no_grad()
    def map(self, asked: Asked) -> PatchMap:
        x, image = asked.x, asked.view.positions
        text = (torch.arange(x.length) > image.max()) & ~x.where("image")  # of other pictures no token is a word
        places = text.nonzero().flatten()
        # [position, text]: the logit of each token of the text, at the image's tokens and where the text stands
        logits = logits_at(asked, torch.cat([image, places]), x.input_ids[0, places])
        at_image, at_text = logits.split([len(image), len(places)])
        number = {int(place): n for n, place in enumerate(places)}
        own = [[number[x.answer_start + i] for i in range(part.start, part.stop)] for part in asked.target.parts]
        ids = x.input_ids[0, places].cpu()
        found = [torch.stack([cleared(at_image, at_text, ids, n) for n in some]).mean(0) for some in own]
        grid = by_patch(asked, torch.stack(found))
        if self.filtered:
            grid = torch.stack([rank_filter(one.view(asked.cells.shape)).flatten() for one in grid])
        told = {"filtered": self.filtered}
        about: dict[str, Any] = {
            "value": "logit",
            "says": "read at the patch, cleared",
            "unit": "logits",
            "adds": False,
        }
        return asked.mapped(self.name, grid, grid.sum(1), told, **about)


def logits_at(
    asked: Asked, positions: Int[Tensor, " position"], ids: Int[Tensor, " token"]
) -> Float[Tensor, "position token"]:
    """The model's own logits of some tokens at some positions."""
    name = "ln_final.hook_out"
    states = asked.vlm.capture(asked.x, name, positions=positions)[name][0]
    read = [logits[:, ids.to(logits.device)].double().cpu() for _, logits in asked.vlm.readout.few_at_once(states)]
    return torch.cat(read)


def cleared(
    at_image: Float[Tensor, "token text"],
    at_text: Float[Tensor, "text text"],
    ids: Int[Tensor, " text"],
    number: int,
) -> Float[Tensor, " token"]:
    """The map of one token of the text, less the interference of those before it."""
    maps = at_image.relu().T
    told = at_text[:number, number].relu() * (ids[:number] != ids[number])
    if not told.sum() > 0:
        return maps[number]
    noise = (told[:, None] * maps[:number]).sum(0) / told.sum()
    scale = (maps[number] @ noise) / (noise @ noise).clamp(min=1e-12)
    return (maps[number] - scale * noise).relu()


def rank_filter(values: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    """Each place the mean of its 3 × 3 window, weighted by how far a number's rank is from the middle one's.

    The wider a window's numbers, the more ranks count: the deviation is that of the window over its mean.
    """
    if min(values.shape) < 2:
        return values
    padded = torch.nn.functional.pad(values[None, None], (1, 1, 1, 1), mode="reflect")[0, 0]
    window = padded.unfold(0, 3, 1).unfold(1, 3, 1).flatten(2).sort(-1).values
    width = (window.std(-1) / window.mean(-1).clamp(min=1e-12)).clamp(min=1e-6)
    rank = torch.arange(9, dtype=values.dtype) - 4
    shares = (-rank.square() / (2 * width[..., None].square())).softmax(-1)
    return (shares * window).sum(-1)
