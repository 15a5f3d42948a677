"""Parts of a model that are exchanged one by one, and their names: heads, what they read by, and MLPs."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.interventions.intervention import Intervention
from lvlm_interp.interventions.places import Places
from lvlm_interp.interventions.states import Patch
from lvlm_interp.model.choice import axes_of
from lvlm_interp.model.vlm import HookedVLM

MLP = -1  # in the place of a head's number
WRITTEN = re.compile(r"L(\d+)(?:H(\d+)( q)?|KV(\d+)( k| v)| MLP)")


@dataclass(frozen=True)
class Kind:
    """Where nodes of a kind stand in a block, and how they are called there."""

    site: str
    called: str


KINDS = {
    "q": Kind("attn.hook_rot_q", "H{} q"),
    "k": Kind("attn.hook_rot_k", "KV{} k"),
    "v": Kind("attn.hook_v", "KV{} v"),
    "z": Kind("attn.hook_z", "H{}"),
    "mlp": Kind("hook_mlp_out", " MLP"),
}
"""In the order in which a block computes them. Keys and values are those of a key-value head, which several heads may
share: that is what can be exchanged."""


class Node(NamedTuple):
    """A layer, a head (`MLP` of an MLP), and a kind of `KINDS`."""

    layer: int
    head: int
    kind: str

    @property
    def name(self) -> str:
        """`L12H3`, `L12H3 q`, `L12KV1 k`, `L12 MLP`."""
        return f"L{self.layer}{KINDS[self.kind].called.format(self.head)}"

    @property
    def site(self) -> str:
        return f"blocks.{self.layer}.{KINDS[self.kind].site}"


def node_named(name: str) -> Node:
    """The node that is called so, whether or not a model has it.

    Raises:
        InputError: no name of a node.
    """
    found = WRITTEN.fullmatch(name)
    if found is None:
        raise InputError(f"no node is called {name!r}: L12H3, L12H3 q, L12KV1 k, L12KV1 v and L12 MLP are such names")
    layer, head, query, shared, read = found.groups()
    if shared is not None:
        return Node(int(layer), int(shared), read.strip())
    return Node(int(layer), MLP, "mlp") if head is None else Node(int(layer), int(head), "q" if query else "z")


def need_kinds(kinds: Sequence[str]) -> None:
    """Raise unless these are kinds of nodes, each once.

    Raises:
        InputError: what was given instead.
    """
    if isinstance(kinds, str) or not kinds or len({*kinds}) < len(kinds) or not {*kinds} <= {*KINDS}:
        raise InputError(f"nodes= takes some of {list(KINDS)}, each once; got {kinds!r}")


@torch.no_grad()
def nodes_of(vlm: HookedVLM, x: Inputs, kinds: Sequence[str] = ("z", "mlp")) -> list[Node]:
    """Every node of these kinds, layer by layer.

    Raises:
        SiteError: a model that has none of a kind which can be seen.
    """
    chosen = [kind for kind in KINDS if kind in kinds]
    first = [[Node(layer, 0, kind) for kind in chosen] for layer in range(vlm.depth)]
    there = [node for some in first for node in some if node.site in vlm.sites]
    for kind in chosen:
        if kind not in {node.kind for node in there}:
            why = next((vlm.missing[node.site] for some in first for node in some if node.site in vlm.missing), "")
            what = "MLPs" if kind == "mlp" else "heads"
            raise SiteError(f"{vlm.name!r} has no {what} whose {KINDS[kind].site!r} can be seen{why and f': {why}'}")
    found = vlm.capture(x, [node.site for node in there], positions=[0])
    return [
        Node(layer, head, kind)
        for layer, _, kind in there
        for head in _numbers(kind, found[Node(layer, 0, kind).site].shape)
    ]


def _numbers(kind: str, shape: Sequence[int]) -> Sequence[int]:
    return [MLP] if kind == "mlp" else range(shape[axes_of(KINDS["z"].site)[1]])


def exchange(nodes: Sequence[Node], source: Any, positions: Places | None = None) -> Intervention:
    """Nodes with their states of another run."""
    patches: list[Intervention] = []
    for kind, about in KINDS.items():
        some = [node for node in nodes if node.kind == kind]
        if some:
            where: dict[str, Any] = (
                {"layers": [node.layer for node in some]}
                if kind == "mlp"
                else {"heads": [(node.layer, node.head) for node in some]}
            )
            patches.append(Patch(f"blocks.*.{about.site}", positions, source=source, **where))
    return functools.reduce(lambda one, other: one + other, patches)
