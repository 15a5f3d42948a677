"""What goes from a sender straight to receivers and on from there, and no other way: exact, by two passes.

Path patching (Wang et al. 2022, arXiv 2211.00593; Goldowsky-Dill et al. 2023, arXiv 2304.05969): in a first pass over
the clean example the sender has what it adds in the corrupt run, and all other heads are held as they are in the clean
run, so that nothing passes through them; what receivers then read is noted. In a second one it is put into these
receivers, and all else is free. MLPs in between are part of the straight way, or are held too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch

from lvlm_interp.attribution.against import Against
from lvlm_interp.attribution.value import Value
from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Unit
from lvlm_interp.interventions.edges import EMBED, LOGITS
from lvlm_interp.interventions.effects import Effects, intervene
from lvlm_interp.interventions.intervention import Certificate, Intervention, Together, each_of, ledger_of
from lvlm_interp.interventions.leads import EMBEDDED
from lvlm_interp.interventions.nodes import Node, exchange, node_named, nodes_of
from lvlm_interp.interventions.places import Places
from lvlm_interp.interventions.sources import remembering
from lvlm_interp.interventions.states import Freeze, Patch
from lvlm_interp.interventions.tracing import need_alike
from lvlm_interp.model.capture import Capture
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.parts import recurrent_of, writers_of
from lvlm_interp.model.vlm import HookedVLM

READING = ("q", "k", "v", "mlp")
Step = tuple[int, int]
"""A layer, and whether something stands before (0) or behind (1) what its heads add."""


@explained
@in_one_go
@torch.no_grad()
def path_patching(
    vlm: HookedVLM,
    clean: Inputs,
    corrupt: Inputs,
    sender: str | Sequence[str],
    receivers: str | Sequence[str] = LOGITS,
    *,
    hold_mlps: bool = False,
    positions: Places | None = None,
    receiver_positions: Places | None = None,
    value: str | Value | None = None,
    unit: Unit = "token",
    against: Against | None = None,
    word: int = 0,
) -> Effects:
    """What the clean answer would be worth if receivers read from a sender what that adds in the corrupt run.

    `path_patching(vlm, purple, yellow, "L4H2", ["L9H1 q", "L9H3 q"], against="Yellow").change` is what the answer
    loses by what goes from head 2 of layer 4 into these queries.

    Args:
        vlm: the model.
        clean, corrupt: examples as long as each other; the clean one's answer is looked at.
        sender: a head (`L4H2`), an MLP (`L4 MLP`), the embedding (`embed`), or several, which send together.
        receivers: `L9H1 q`, `L9KV0 k` and `L9KV0 v` (key-value heads), `L9 MLP`; or `logits` alone, for what reaches
            them straight.
        hold_mlps: MLPs in between are held as well, so that only what is added to the stream itself arrives.
        positions: where the sender has what it adds in the corrupt run; None means all.
        receiver_positions: where receivers are given what they then read.
        value, unit, against, word: what is told, as in `intervene`.

    Raises:
        InputError: no answer, examples of other lengths, names that are none, a sender that does not come before a
            receiver, or one that adds the same in both runs.
        SiteError: a node that the model lacks, or heads that cannot be held since they cannot be seen.
    """
    senders = [sender] if isinstance(sender, str) else list(sender)
    wanted = [receivers] if isinstance(receivers, str) else list(receivers)
    clean.need_answer()
    need_alike((clean, corrupt))
    _need_order(vlm, clean, senders, wanted)
    other = corrupt.with_answer(clean.answer_ids.tolist(), clean.answer_tokens, clean.answer)
    way = _Way(vlm, clean, other, senders, positions, hold_mlps)
    told: dict[str, Any] = {"value": value, "unit": unit, "against": against, "word": word}
    with remembering(vlm, way.reads()):
        if wanted == [LOGITS]:
            changes, certificates = way.held([]), tuple[Certificate, ...]()
        else:
            changes, certificates = way.given([node_named(name) for name in wanted], receiver_positions)
        found = intervene(vlm, clean, changes, **told)
    about = {name: given for name, given in found.provenance.parameters.items() if name != "interventions"}
    about |= {"sender": tuple(senders), "receivers": tuple(wanted), "hold_mlps": hold_mlps}
    about |= {"positions": positions, "receiver_positions": receiver_positions}
    return dataclasses.replace(
        found,
        certificates=(*certificates, *found.certificates),
        provenance=vlm.provenance("path_patching", clean, corrupt, **about),
    )


class _Way:
    """The straight way from senders."""

    def __init__(
        self,
        vlm: HookedVLM,
        clean: Inputs,
        corrupt: Inputs,
        senders: Sequence[str],
        positions: Places | None,
        hold_mlps: bool,
    ) -> None:
        self.vlm, self.clean, self._hold_mlps = vlm, clean, hold_mlps
        nodes = [node_named(name) for name in senders if name != EMBED]
        self._changed: list[Intervention] = []
        if EMBED in senders:
            self._changed.append(Patch(EMBEDDED, positions, source=corrupt))
        if nodes:
            self._changed.append(exchange(nodes, corrupt, positions))

    def held(self, receivers: Sequence[Node]) -> Intervention:
        """Senders have what they add in the corrupt run, and nothing passes through others."""
        free = {node.site for node in receivers if node.kind == "mlp"}
        mlps = [name for name in self.vlm.sites if name.startswith("blocks.") and name.endswith("hook_mlp_out")]
        names = [*_mixing(self.vlm), *(name for name in mlps if self._hold_mlps and name not in free)]
        return Together((Freeze(names), *(one for some in self._changed for one in each_of(some))))

    def reads(self) -> list[tuple[Inputs, Sequence[str]]]:
        """Both examples, and what is taken of them."""
        return list(self.held([]).reads(self.vlm, self.clean))

    def given(
        self, receivers: Sequence[Node], positions: Places | None
    ) -> tuple[Intervention, tuple[Certificate, ...]]:
        """What the receivers read there, put into them; where MLPs are held, each that receives is free in a pass of
        its own."""
        mlps = [node for node in receivers if node.kind == "mlp"]
        others = [node for node in receivers if node.kind != "mlp"]
        groups = [others, *([node] for node in mlps)] if self._hold_mlps else [[*others, *mlps]]
        patches, certificates = list[Intervention](), list[Certificate]()
        for group in filter(None, groups):
            noted, own = self._noted(group)
            patches.append(exchange(group, noted, positions))
            certificates += own
        return functools.reduce(lambda one, more: one + more, patches), tuple(certificates)

    def _noted(self, receivers: Sequence[Node]) -> tuple[Capture, tuple[Certificate, ...]]:
        """What an MLP gives stands for what it reads."""
        ledger = ledger_of(self.vlm, self.clean, self.held(receivers))
        edits = {site.name: visit for site, visit in ledger.visits(acting=True).items()}
        found = self.vlm.capture(self.clean, [*dict.fromkeys(node.site for node in receivers)], edits=edits)
        ledger.need_done()
        return found, ledger.certificates


def _mixing(vlm: HookedVLM) -> list[str]:
    """Where one position hands something to another: heads, and what carries a state.

    Raises:
        SiteError: heads that cannot be seen, and so not held.
    """
    found = list[str]()
    for layer, block in enumerate(vlm.blocks):
        prefix = f"blocks.{layer}."
        heads = [prefix + name for name in ("attn.hook_z", "cross_attn.hook_z") if prefix + name in vlm.sites]
        if not heads and "hook_attn_out" in writers_of(block).modules:
            why = vlm.missing.get(f"{prefix}attn.hook_z", "nothing tells where they write")
            raise SiteError(f"the heads of block {layer} cannot be held: {why}")
        found += [*heads, *(f"{prefix}{name}.hook_out" for name in recurrent_of(block))]
    return found


def _need_order(vlm: HookedVLM, x: Inputs, senders: Sequence[str], receivers: Sequence[str]) -> None:
    """Raise unless these are senders, each before all of these receivers.

    Raises:
        InputError: names the first that is not.
        SiteError: one that the model lacks.
    """
    sending = {name: None if name == EMBED else node_named(name) for name in senders}
    reading = {name: None if name == LOGITS else node_named(name) for name in receivers}
    for name, node in sending.items():
        if node is not None and node.kind not in ("z", "mlp"):
            raise InputError(f"{name!r} sends nothing: a sender is a head (L4H2), an MLP (L4 MLP), or embed")
    for name, node in reading.items():
        if node is not None and node.kind not in READING:
            raise InputError(f"{name!r} is what a head writes; what it reads by is {name} q, or k and v of its KV head")
    if not sending or not reading or (LOGITS in reading and len(reading) > 1):
        raise InputError(
            f"give a sender or more, a receiver or more, and logits alone, for they read all that others change: "
            f"{list(senders)}, {list(receivers)}"
        )
    named = [node for node in (*sending.values(), *reading.values()) if node is not None]
    _need_there(vlm, x, named)
    for one, start in sending.items():
        for other, end in reading.items():
            if not _written(start) < _read(vlm, end):
                raise InputError(f"{one} does not come before {other}, so that nothing goes from it to there")


def _need_there(vlm: HookedVLM, x: Inputs, nodes: Sequence[Node]) -> None:
    there = nodes_of(vlm, x, [*{node.kind: None for node in nodes}]) if nodes else []
    for node in nodes:
        if node not in there:
            have = [one.name for one in there if one.kind == node.kind]
            raise SiteError(f"{vlm.name!r} has no {node.name}: it has {have[0]} to {have[-1]}")


def _written(node: Node | None) -> Step:
    return (-1, 1) if node is None else (node.layer, int(node.kind == "mlp"))


def _read(vlm: HookedVLM, node: Node | None) -> Step:
    """An MLP reads what the heads of its block add, except where it stands beside them."""
    if node is None:
        return vlm.depth, 0
    return node.layer, int(node.kind == "mlp" and f"blocks.{node.layer}.hook_resid_mid" in vlm.sites)
