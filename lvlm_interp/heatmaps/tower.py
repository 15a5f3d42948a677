"""Which place of the vision tower each of an image's tokens is made of, asked of the model itself."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.errors import ImageError
from lvlm_interp.heatmaps.differentiable import EMBEDDED

STREAM = "vision.blocks.*.hook_resid_post"
INSTEAD = "tower=False, the default, stops at the image's tokens"


@dataclass(frozen=True, eq=False)
class Places:
    """The places of a vision tower, one picture or tile after the other.

    Attributes:
        positions: of an image's tokens in the prompt.
        tokens: which of these tokens each place becomes; -1 of what becomes none (a class token, another picture).
    """

    positions: Int[Tensor, " token"]
    tokens: Int[Tensor, " place"]

    def entered(self, flows: Float[Tensor, "part position"]) -> Float[Tensor, "part place"]:
        """What stands at tokens, in equal shares at the places that they are made of."""
        own = self.tokens >= 0
        sizes = torch.bincount(self.tokens[own], minlength=len(self.positions)).clamp(min=1)
        shares = flows[:, self.positions] / sizes
        return torch.where(own, shares[:, self.tokens.clamp(min=0)], 0.0)

    def left(self, flows: Float[Tensor, "part place"], length: int) -> Float[Tensor, "part position"]:
        """What stands at places, added up at the positions of their tokens."""
        own = self.tokens >= 0
        found = flows.new_zeros(len(flows), length)
        return found.index_add(1, self.positions[self.tokens[own]], flows[:, own])


def places_of(asked: Asked) -> Places:
    """Which token of the image each place of the tower becomes, behind the last block that the tokens are made of.

    By the derivatives of the tokens, so that nothing is assumed of a family's order: of those whose number has a
    certain bit set, and of the others, for each bit. What becomes one token has a derivative of one of the two.

    Raises:
        ImageError: a place that becomes several tokens, or none that becomes any.
    """
    with torch.inference_mode(False):
        positions, names = asked.view.positions.clone(), fnmatch.filter(asked.vlm.sites, STREAM)
        found = asked.vlm.capture(asked.x, [*names, EMBEDDED], grad=True)
        embedded = found[EMBEDDED][0, positions.to(found[EMBEDDED].device)]
        reached = _last_reached(embedded, [found[name] for name in names])
        return Places(positions, _told_apart(embedded, reached))


def _last_reached(embedded: Float[Tensor, "token width"], streams: Sequence[Tensor]) -> Tensor:
    """The last stream that the tokens are made of: what a tower computes behind it is not used."""
    with torch.enable_grad():
        total = embedded.sum()
    if streams and total.requires_grad:
        derivatives = torch.autograd.grad(total, streams, retain_graph=True, allow_unused=True)
        reached = [stream for stream, one in zip(streams, derivatives, strict=True) if one is not None]
        if reached:
            return reached[-1]
    raise ImageError(f"the image's tokens have no derivative by the blocks of this model's vision tower; {INSTEAD}")


def _told_apart(embedded: Float[Tensor, "token width"], stream: Tensor) -> Int[Tensor, " place"]:
    numbers = torch.arange(len(embedded))
    tokens, several = torch.zeros(stream.shape[:-1], dtype=torch.long), torch.zeros(stream.shape[:-1], dtype=torch.bool)
    reached = several
    for bit in range(max(len(embedded) - 1, 1).bit_length()):
        chosen = (numbers >> bit & 1).bool()
        one, other = (_reaching(embedded, stream, some) for some in (chosen, ~chosen))
        tokens, several, reached = tokens + (one.long() << bit), several | (one & other), reached | one | other
    if several.any() or not reached.any():
        raise ImageError(
            f"{int(several.sum())} of the {several.numel()} places of this model's vision tower become several of the "
            f"image's tokens, so that relevance cannot be handed on to one place from each; {INSTEAD}"
        )
    return tokens.masked_fill(~reached, -1).flatten()


def _reaching(embedded: Float[Tensor, "token width"], stream: Tensor, some: Bool[Tensor, " token"]) -> Tensor:
    """The places that some of the tokens have a derivative by; along a drawn direction, as a norm's sum has none."""
    drawn = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    direction = (drawn * some[:, None]).to(embedded)
    (derivative,) = torch.autograd.grad(embedded, stream, direction, retain_graph=True)
    return (derivative != 0).any(-1).cpu()
