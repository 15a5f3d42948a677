"""Exact joint effects of a few players: regions of a picture and phrases of the prompt.

v(S) is the value (`attribution.value`) of a part of the answer where only the players in S are seen, and what is in no
player. Its Harsanyi dividends d(S) = Σ_{T ⊆ S} (−1)^{|S|−|T|} v(T) are what the players of S do together beyond what
fewer of them do, so that each coalition is of one kind, and

    image only + text only + joint = v(all) − v(∅).

A heatmap has one number for a region, whatever that region needs beside it to be of use. Whether maps rank regions as
they do at all, or as they do together with words, is told by `JointEffects.scored`: the two need not agree.

Harsanyi 1963, A simplified bargaining model for the n-person cooperative game.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lvlm_interp.attribution.against import Against
from lvlm_interp.attribution.asked import Asked, asked_of
from lvlm_interp.attribution.occlusion import usual
from lvlm_interp.attribution.players import MOST, Named, Player, named_players, need_apart, runs_of
from lvlm_interp.attribution.shapley import dividends
from lvlm_interp.attribution.value import Value, Valued, texts_of, values_of
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.engine.score import HideFrom, need_hide_from
from lvlm_interp.errors import InputError, VisibilityError
from lvlm_interp.given import explained
from lvlm_interp.heatmaps.joint_effects import JointEffects, Kind, coalitions_of
from lvlm_interp.heatmaps.regions import Regions, regions_of
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.words import Unit
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM

FEWEST = 2  # players that can do something together


@explained
@in_one_go
def interactions(
    vlm: HookedVLM,
    x: Inputs,
    players: Named = "roles",
    *,
    regions: Regions = 2,
    image: int = 0,
    hide_from: HideFrom | None = None,
    value: str | Value | None = None,
    unit: Unit | None = None,
    target: int | str | None = None,
    against: Against | None = None,
    progress: bool = False,
) -> JointEffects:
    """What regions of a picture and phrases of the prompt do, alone and together, exactly: all coalitions are scored.

    `interactions(vlm, x, ["color", "the banana"], regions=2)` has four regions and two phrases. Up to 12 players; what
    is in none, template and answer among it, is always seen.

    Args:
        vlm: the model.
        x: an example with an image and an answer.
        players: phrases: `roles`, each of question, context and system; the `sentences` of the context, the `turns` of
            a chat; texts that stand in the prompt once; texts, masks or positions by name; several of these; or
            none, `()`.
        regions: of the picture (`heatmaps.regions`): a number n makes n × n blocks, labels by patch or pixel make any.
        image: which image of the prompt.
        hide_from: of regions. `text`: image tokens go on seeing the hidden one; `all`: nobody sees it, as in `credit`.
            By default `text`, as in heatmaps, or `all` where only that is possible. Phrases are hidden from all.
        value, unit, target, against: what is explained, as in `attribute`. Alternatives are those that are found where
            all players are seen, and where none is.
        progress: show a progress bar.

    Returns:
        The dividends, in the value's unit. Of 12 players 4096 coalitions are scored, packed by the engine.

    Raises:
        InputError: no image, no answer, fewer than 2 or more than 12 players, a text that is not in the prompt or is
            there several times, or what `attribute` refuses.
        ImageError: the image's tokens have no place in the picture, or it is not known.
        VisibilityError: players that overlap, are empty, cover what cannot be hidden, or image and text at once.
    """
    asked = asked_of(vlm, x, image, None, value, unit, target, against, progress)
    hidden = usual(asked) if hide_from is None else hide_from
    need_hide_from(hidden)
    labels = regions_of(asked, regions)
    parts = _players(asked, labels, named_players(x, players, vlm.decode))
    kinds = tuple(_kind(x, one) for one in parts)
    found, ends = _values(asked, parts, hidden)
    told = {one.name: runs_of(one.positions.nonzero().flatten().tolist()) for one in parts}
    return JointEffects(
        tokens=texts_of(asked.target.parts),
        players=tuple(one.name for one in parts),
        kinds=kinds,
        player_texts=tuple(one.text for one in parts),
        regions=labels.view(asked.cells.shape),
        dividends=dividends(found.numbers[0]),
        total=ends.numbers[0, :, 1] - ends.numbers[0, :, 0],
        value=asked.value.name,
        unit=asked.value.unit,
        hide_from=hidden,
        **asked.compared(found),
        provenance=vlm.provenance("interactions", x, players=told, hide_from=hidden, **asked.told),
    )


def _players(asked: Asked, labels: Int[Tensor, " patch"], phrases: Sequence[Player]) -> list[Player]:
    """The regions, by their numbers, and the phrases; a token that shows two regions (a thumbnail's) is of both."""
    count = int(labels.max()) + 1
    _need_few(count, phrases)
    shown = [Player(f"region {n}", "image", asked.patches[labels == n].any(0), "") for n in range(count)]
    for region in shown:
        need_apart([region, *phrases])
    return [*shown, *phrases]


def _need_few(regions: int, phrases: Sequence[Player]) -> None:
    """Raise unless all coalitions can be scored, before there is a mask of each region."""
    if not FEWEST <= (count := regions + len(phrases)) <= MOST:
        names = [phrase.name for phrase in phrases]
        raise InputError(
            f"{FEWEST} to {MOST} players have their joint effects told exactly, all 2^k coalitions of them; these are "
            f"{count}, {regions} regions and {names}: give other regions= (2 makes 2 × 2 blocks, labels make any) or "
            "other players="
        )


def _kind(x: Inputs, player: Player) -> Kind:
    """Raise for what is of both kinds: whose would its effect be?"""
    roles = {x.roles[p] for p in player.positions.nonzero().flatten().tolist()}
    if "image" in roles and len(roles) > 1:
        raise VisibilityError(f"the player {player.name!r} covers image and text: make two of it, one of each")
    return "image" if "image" in roles else "text"


def _values(asked: Asked, players: Sequence[Player], hide_from: HideFrom) -> tuple[Valued, Valued]:
    """The value under all coalitions, and under none and all; alternatives are those that these two have."""
    masks, seen = torch.stack([one.positions for one in players]), coalitions_of(len(players))
    visible = ~((~seen).float() @ masks.float() > 0)  # what is of two regions is hidden with either
    given = run_to_decoder(asked.vlm, asked.x, keep_prompt=hide_from == "all")
    options: dict[str, Any] = {"hide_from": hide_from, "decoder_inputs": given}
    ends = values_of(asked.vlm, asked.x, visible[[0, -1]], asked.target, **options)
    held = ends.held(asked.target)
    return values_of(asked.vlm, asked.x, visible, held, progress=asked.progress, **options), ends
