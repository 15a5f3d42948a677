"""Parts of a model that are exchanged one by one, and their names: heads, what they read by, and MLPs."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.inputs.example import ROLES, Inputs
from lvlm_interp.interventions.intervention import Intervention
from lvlm_interp.interventions.places import LAST, PREDICTING, Places
from lvlm_interp.interventions.states import Patch
from lvlm_interp.model.choice import axes_of
from lvlm_interp.model.vlm import HookedVLM

MLP = -1  # in the place of a head's number
WRITTEN = re.compile(r"L(\d+)(?:H(\d+)( q)?|KV(\d+)( k| v)| MLP)(?: at (\w+))?")


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
    """A layer, a head (`MLP` of an MLP), a kind of `KINDS`, and a class of positions, empty where it is all of them."""

    layer: int
    head: int
    kind: str
    at: str = ""

    @property
    def name(self) -> str:
        """`L12H3`, `L12H3 q`, `L12KV1 k`, `L12 MLP`, `L12H3 at image`."""
        return f"L{self.layer}{KINDS[self.kind].called.format(self.head)}{self.at and f' at {self.at}'}"

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
        raise InputError(
            f"no node is called {name!r}: L12H3, L12H3 q, L12KV1 k, L12KV1 v, L12 MLP and L12H3 at image are such names"
        )
    layer, head, query, shared, read, at = found.groups()
    if shared is not None:
        return Node(int(layer), int(shared), read.strip(), at or "")
    kind = "mlp" if head is None else "q" if query else "z"
    return Node(int(layer), MLP if head is None else int(head), kind, at or "")


def need_kinds(kinds: Sequence[str]) -> None:
    """Raise unless these are kinds of nodes, each once.

    Raises:
        InputError: what was given instead.
    """
    if isinstance(kinds, str) or not kinds or len({*kinds}) < len(kinds) or not {*kinds} <= {*KINDS}:
        raise InputError(f"nodes= takes some of {list(KINDS)}, each once; got {kinds!r}")


def need_classes(classes: Sequence[str]) -> None:
    """Raise unless these are names of classes of positions, each once.

    Raises:
        InputError: what was given instead.
    """
    known = [*ROLES, LAST, PREDICTING]
    if isinstance(classes, str) or len({*classes}) < len(classes) or not {*classes} <= {*known}:
        raise InputError(f"positions= takes some of {known}, each once; got {classes!r}")


@torch.no_grad()
def nodes_of(
    vlm: HookedVLM, x: Inputs, kinds: Sequence[str] = ("z", "mlp"), classes: Sequence[str] = ("",)
) -> list[Node]:
    """Every node of these kinds, layer by layer, at each class of positions.

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
        Node(layer, head, kind, at)
        for layer, _, kind, _ in there
        for head in _numbers(kind, found[Node(layer, 0, kind).site].shape)
        for at in classes
    ]


def _numbers(kind: str, shape: Sequence[int]) -> Sequence[int]:
    return [MLP] if kind == "mlp" else range(shape[axes_of(KINDS["z"].site)[1]])


def exchange(nodes: Sequence[Node], source: Any, positions: Places | None = None) -> Intervention:
    """Nodes with their states of another run, at these positions where nodes name no class of them."""
    alike: dict[tuple[str, str], list[Node]] = {}
    for node in sorted(nodes, key=lambda node: list(KINDS).index(node.kind)):
        alike.setdefault((node.kind, node.at), []).append(node)
    patches: list[Intervention] = [
        Patch(f"blocks.*.{KINDS[kind].site}", at or positions, source=source, **_blocks(some))
        for (kind, at), some in alike.items()
    ]
    return functools.reduce(lambda one, other: one + other, patches)


def _blocks(alike: Sequence[Node]) -> dict[str, Any]:
    """Where nodes of one kind stand."""
    if alike[0].kind == "mlp":
        return {"layers": [node.layer for node in alike]}
    return {"heads": [(node.layer, node.head) for node in alike]}
