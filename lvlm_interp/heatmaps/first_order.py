"""What hiding each token would take from the value, to first order: one pass forward, and one back for each part.

In each head, a row that loses sight of key j goes on with (z − A_j v_j) / (1 − A_j) instead of z: exactly so, whatever
the scores were. What that does to the value is taken from its derivative by z. Effects of one token add up over layers,
heads and rows; that they change one another is what first order leaves out. Only the rows that lose sight are read of
each pattern, and attention stays on the model's own kernel.

Attribution patching (Nanda 2023) of keys, with the softmax done exactly (AtP*: Kramár et al. 2024, §3.1).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.engine.packed import out_of_memory
from lvlm_interp.errors import LvlmInterpWarning, ModelError
from lvlm_interp.heatmaps.differentiable import Differentiable, Watched
from lvlm_interp.heatmaps.filling import TOKENS
from lvlm_interp.heatmaps.game import Game
from lvlm_interp.model.taps import Reading
from lvlm_interp.model.vlm import HookedVLM

PATTERN = "blocks.*.attn.hook_pattern"
PARTS = ("pattern", "v", "z")  # of what attention itself computes: a z behind a gate is another
FULL = "memory ran out on the way back to the strongest patches: every patch is hidden instead, which takes longer"
LEAST = 1e-6  # of what a row sees beside a key: less is rounding, and a quotient by it would be too


def lost_to_first_order(game: Game) -> Float[Tensor, "part player"] | None:
    """What the value loses without each player; None where the model or the value does not allow it.

    It takes attention that can be read in every layer, gradients, and alternatives of one token: others have passes of
    their own. A state that is handed on beside attention would carry what is hidden.
    """
    asked = dataclasses.replace(game.asked, target=game.target)
    several = any(len(ids) > 1 for each in game.valued.alternative_ids for ids in each)
    if game.hiding.substrate != TOKENS or several or not _readable(asked.vlm):
        return None
    rows = torch.arange(asked.x.length)
    if game.hiding.hide_from == "text":
        rows = rows[~asked.x.where("image")]
    try:
        found = _of_positions(Differentiable(asked, game.valued), rows)
    except ModelError:  # no gradients: hiding the tokens does without
        return None
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        warnings.warn(f"{FULL} ({error})", LvlmInterpWarning, stacklevel=2)
        return None
    of_players = game.members.float() @ asked.patches.float() > 0
    return found @ of_players.double().T


def _readable(vlm: HookedVLM) -> bool:
    """Whether attention of every layer can be seen, and is what its scores and values make of it."""
    edited = any(site.read == "attention" for site, _ in vlm.held.edited)
    return not edited and not vlm.recurrent and len(fnmatch.filter(vlm.sites, PATTERN)) == len(vlm.blocks)


def _of_positions(of: Differentiable, rows: Int[Tensor, " row"]) -> Float[Tensor, "part position"]:
    sites = of.asked.vlm.sites
    layers = {sites[name]: Layer(rows) for name in fnmatch.filter(sites, PATTERN)}
    visits = {
        dataclasses.replace(site, name=f"{site.name}: {part}", part=part): visit
        for site, layer in layers.items()
        for part, visit in layer.visits.items()
    }
    with torch.inference_mode(False), torch.enable_grad():
        with of.asked.vlm.visiting(visits):
            values = of(None)[0]
        return torch.stack([_back(value, [*layers.values()]) for value in values])


def _back(value: Float[Tensor, ""], layers: list[Layer]) -> Float[Tensor, " position"]:
    """What one part loses, added up over layers while the derivative goes back."""
    for layer in layers:
        layer.lost = torch.zeros(())
    torch.autograd.grad(value, [layer.z for layer in layers], retain_graph=True, allow_unused=True)
    return torch.stack([layer.lost.expand(layers[-1].pattern.shape[-1]) for layer in layers]).sum(0)


class Layer:
    """Reads the rows of one layer's pattern that lose sight, its values, and on the way back the derivative by z.

    Attributes:
        pattern: `[head, row, key]`.
        v: `[key, head, width]`, where heads may share them.
        z: what the model goes on with.
        lost: what the value loses by what this layer reads, `[position]`.
    """

    def __init__(self, rows: Int[Tensor, " row"]) -> None:
        self._rows = rows
        self.pattern = self.v = self.z = self.lost = torch.empty(0)

    @property
    def visits(self) -> dict[str, Reading]:
        seen = (self._see_pattern, self._see_v, self._see_z)
        return {part: Reading(visit, self._rows, visit) for part, visit in zip(PARTS, seen, strict=True)}

    def _see_pattern(self, pattern: Tensor) -> Tensor:
        self.pattern = pattern[0].detach()
        return pattern

    def _see_v(self, v: Tensor) -> Tensor:
        self.v = v[0].detach()
        return v

    def _see_z(self, z: Tensor) -> Tensor:
        self.z = z if z.requires_grad else z.detach().requires_grad_()
        seen: Tensor = Watched.apply(self.z, lambda value, derivative: self._read(derivative))
        return seen

    def _read(self, derivative: Float[Tensor, "1 position head width"]) -> None:
        """Add up, over rows and heads, what goes with each key: derivative · (v − z) A / (1 − A)."""
        pattern, v = self.pattern.double(), self.v.double()
        v = v.repeat_interleave(pattern.shape[0] // v.shape[1], 1)
        rows = self._rows.to(pattern.device)
        by_z = derivative[0].double().index_select(0, rows).to(pattern.device)
        each = torch.einsum("rhd,khd->hrk", by_z, v)
        less = (pattern * each).sum(-1, keepdim=True)
        lost = pattern / (1 - pattern).clamp(min=LEAST) * (each - less)
        lost = lost.scatter(2, rows[None, :, None].expand(len(lost), -1, 1), 0.0)  # no row loses sight of itself
        self.lost = lost.sum((0, 1)).cpu()
