"""What the embedding, heads and MLPs each add to the residual stream, position by position: these add up to it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lvlm_interp.errors import SiteError
from lvlm_interp.inside.frozen import frozen
from lvlm_interp.interventions.leads import EMBEDDED
from lvlm_interp.interventions.nodes import MLP, Node
from lvlm_interp.model.parts import rescale_of, writers_of
from lvlm_interp.model.sites import reads_z
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.model.weights import map_of, sizes_of

READ = 0.1  # share of what attention adds by which it may miss what its heads write: half precision misses it by 0.02
CLOSED = {torch.float16: 2e-2, torch.bfloat16: 1e-1}  # and of the stream by which a block may miss what it adds

KEPT = 2 * 2**30  # bytes of what senders add, of which some is made anew otherwise


def need_sum(vlm: HookedVLM) -> None:
    """Raise unless every block adds what its heads and its MLP give to one residual stream, and nothing else.

    Raises:
        SiteError: names the first block that does not, and what else it has.
    """
    for layer, block in enumerate(vlm.blocks):
        written = writers_of(block)
        others = [name for name in written.modules if name not in ("hook_attn_out", "hook_mlp_out")]
        seen = f"blocks.{layer}.attn.hook_z" in vlm.sites or "hook_attn_out" not in written.modules
        why = (
            f"it has {others[0]!r} too, which hands a state on, or reads other inputs"
            if others
            else "it has several residual streams, or mixes what is added"
            if not written.as_it_is
            else vlm.missing.get(f"blocks.{layer}.attn.hook_z", "what its attention reads is no position of the prompt")
            if not seen
            else ""
        )
        if why:
            raise SiteError(f"block {layer} does not only add what its heads and its MLP give: {why}")


class Writes:
    """What senders add in one run less what they add in another, as it arrives further on.

    Attributes:
        heads: how many each layer has.
    """

    def __init__(self, vlm: HookedVLM, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        self.vlm, self._runs = vlm, (after, before)
        own = before[EMBEDDED].dtype
        self._wide, self._closed = torch.promote_types(own, torch.float32), CLOSED.get(own, 1e-4)
        self._scales = [rescale_of(block) for block in vlm.blocks]
        sites = {n: before.get(f"blocks.{n}.attn.hook_z") for n in range(vlm.depth)}
        self.heads = {n: 0 if z is None else z.shape[2] for n, z in sites.items()}
        for layer in range(vlm.depth):
            self._need_closed(layer)
        self._jumps = {n for n in range(vlm.depth - 1) if self._jumps_behind(n)}
        self._kept: dict[int, Tensor] = {}

    @staticmethod
    def sites(vlm: HookedVLM) -> list[str]:
        """What has to be known of both runs."""
        endings = ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z")
        names = [f"blocks.{layer}.{ending}" for layer in range(vlm.depth) for ending in endings]
        return [name for name in names if name in vlm.sites]

    def names(self) -> list[list[str]]:
        """Those of the embedding, then of each layer: heads, its MLP, and what else is added behind it, if anything."""
        found = [["embed"]]
        for layer, heads in self.heads.items():
            mlp = [Node(layer, MLP, "mlp").name] if self._has(layer, "hook_mlp_out") else []
            jump = [f"L{layer} added"] if layer in self._jumps else []
            found.append([*(Node(layer, head, "z").name for head in range(heads)), *mlp, *jump])
        return found

    def embedded(self) -> Float[Tensor, "1 position width"]:
        return self.gap(EMBEDDED)[None]

    def of_heads(self, layer: int) -> Float[Tensor, "head position width"]:
        """As the MLP of their layer is given it."""
        return self.of_layer(layer)[: self.heads[layer]] / self._scales[layer]

    def of_layer(self, layer: int) -> Float[Tensor, "sender position width"]:
        """In the order of the names, as the next layer is given it; kept for later, as far as there is room."""
        if layer in self._kept:
            return self._kept[layer]
        made = torch.cat(self._parts(layer))
        if sum(one.nbytes for one in self._kept.values()) + made.nbytes <= KEPT:
            self._kept[layer] = made
        return made

    def _parts(self, layer: int) -> list[Float[Tensor, "_ position width"]]:
        scale, parts = self._scales[layer], list[Tensor]()
        if self.heads[layer]:
            after, before = (self._written(layer, run) for run in self._runs)
            parts.append(scale * (after - before))
        if self._has(layer, "hook_mlp_out"):
            parts.append(scale * self.gap(f"blocks.{layer}.hook_mlp_out")[None])
        if layer in self._jumps:
            ends = (f"blocks.{layer + 1}.hook_resid_pre", f"blocks.{layer}.hook_resid_post")
            parts.append((self.gap(ends[0]) - self.gap(ends[1]))[None])
        return parts

    def gain(self, first: int, last: int) -> float:
        """What blocks multiply the stream by between two layers."""
        return math.prod(self._scales[first:last])

    def gap(self, name: str) -> Float[Tensor, "position width"]:
        """Of a site of the stream."""
        after, before = (run[name][0].to(self._wide) for run in self._runs)
        return after - before

    def _jumps_behind(self, layer: int) -> bool:
        """Whether something is added between a block and the next: features of the image (DeepStack)."""
        post, pre = (
            self._runs[1][name][0].to(self._wide)
            for name in (f"blocks.{layer}.hook_resid_post", f"blocks.{layer + 1}.hook_resid_pre")
        )
        return self._is_there(pre - post, post)

    def _is_there(self, part: Tensor, whole: Tensor) -> bool:
        return bool(part.norm() > self._closed * whole.norm())

    def _has(self, layer: int, ending: str) -> bool:
        return f"blocks.{layer}.{ending}" in self._runs[0]

    def _need_closed(self, layer: int) -> None:
        """Raise where a block does something else to the stream than to add.

        Raises:
            SiteError: names it.
        """
        parts = [name for name in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out") if self._has(layer, name)]
        for run in self._runs:
            added = sum((run[f"blocks.{layer}.{name}"][0].to(self._wide) for name in parts), torch.zeros(()))
            post = run[f"blocks.{layer}.hook_resid_post"][0].to(self._wide)
            if self._is_there(post - self._scales[layer] * added, post):
                raise SiteError(f"what block {layer} makes of its stream is not the sum of what is added to it")

    def _written(self, layer: int, run: Mapping[str, Tensor]) -> Float[Tensor, "head position width"]:
        """What each head adds in one run: a norm behind them is taken with the scale that it has there.

        Raises:
            SiteError: what is added is not made of what heads write.
        """
        z, added = (run[f"blocks.{layer}.{name}"][0].to(self._wide) for name in ("attn.hook_z", "hook_attn_out"))
        weight, bias, after = self._projection(layer)
        by_head = rearrange(weight.to(z), "width (head inner) -> head inner width", head=z.shape[1])
        each = torch.einsum("phi,hiw->hpw", z, by_head)
        whole = each.sum(0) if bias is None else each.sum(0) + bias.to(z)
        if after is not None:
            norm = frozen(after, whole.to(run[EMBEDDED].dtype))
            each = (each - each.mean(-1, keepdim=True) if norm.centred else each) * norm.weight.to(z)
            whole = norm(whole.double()).to(z)
        gain = (added * whole).sum() / (whole * whole).sum()  # 1, or a multiplier that some families have
        if not (added - gain * whole).norm() <= READ * added.norm():
            raise SiteError(f"what the attention of block {layer} adds is no multiple of what its heads write")
        return gain * each

    def _projection(self, layer: int) -> tuple[Tensor, Tensor | None, nn.Module | None]:
        """The map that heads write through, what it adds anyway, and the norm behind it.

        Raises:
            SiteError: there is no such map, or what it adds anyway is divided among heads by the norm.
        """
        site, added = (self.vlm.sites[f"blocks.{layer}.{name}"] for name in ("attn.hook_z", "hook_attn_out"))
        project = reads_z(site)
        if project is None or sizes_of(project) is None:
            raise SiteError(f"block {layer} has no linear output projection that heads could be split through")
        weight, bias = map_of(project)
        after = None if any(module is site.module for module in added.module.modules()) else added.module
        if after is not None and bias is not None and bool(bias.any()):
            raise SiteError(f"a norm stands behind the output projection of block {layer}, which has a bias: no head's")
        return weight.detach(), bias if bias is None else bias.detach(), after
