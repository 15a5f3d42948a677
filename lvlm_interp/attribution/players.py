"""Among whom credit is split: roles, or images, turns, sentences, or positions that a user names.

A player is a set of positions that is seen or hidden as one. What is not split stays the player of its role.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lvlm_interp.attribution.phrases import phrase_in, positions_in, written_in
from lvlm_interp.errors import InputError, VisibilityError
from lvlm_interp.fields import shown
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import CREDITED, ROLES, Inputs, Role, Written
from lvlm_interp.inputs.spelling import Decode, spelled
from lvlm_interp.inputs.words import split_sentences

MOST = 12  # players; all their 2^12 coalitions are scored
SHOWN = 4  # positions or names that a message lists

Mask = (
    Bool[Tensor, " position"]
    | Int[Tensor, " some"]
    | Bool[np.ndarray, " position"]
    | Int[np.ndarray, " some"]
    | Sequence[int]
)
Split = str | Mapping[str, Mask]
Players = Split | Sequence[Split]
"""`roles`, `images`, `turns`, `sentences`; masks or positions by name; or several of these."""
Named = str | Mapping[str, str | Mask] | Sequence[str | Mapping[str, str | Mask]]
"""`roles` (those of text), `images`, `turns`, `sentences`; one role; a text of the prompt; roles, texts, masks or
positions by name; or several of these."""


@dataclass(frozen=True, eq=False)
class Player:
    """What is seen or hidden as one.

    Attributes:
        name: in results.
        role: the role that it is, or is a part of; empty where it has positions of several.
        positions: true where it stands, `[position]`.
        text: what stands there, for display; empty for images.
    """

    name: str
    role: str
    positions: Bool[Tensor, " position"]
    text: str


@explained
def players_of(
    x: Inputs, players: Players = "roles", keep: Sequence[str] = (), decode: Decode | None = None
) -> tuple[Player, ...]:
    """The players of an example, in the order of their roles, those that users name behind them.

    Args:
        x: the example.
        players: `roles`; `images`: each by its number; `turns`: the context by the message that it stands in;
            `sentences`: of the context; a mapping from names to bool masks `[position]` or positions; or several.
        keep: roles and players that are always visible, and so are none.
        decode: what makes text of token ids (`Prompter.text`).

    Raises:
        InputError: an unknown way to split, nothing to split, or more than `MOST` players.
        VisibilityError: an unknown role in `keep`, or masks that are empty, overlap, or cover what cannot be hidden or
            is kept.
    """
    splits = [players] if isinstance(players, (str, Mapping)) else list(players)
    if not splits or {} in splits:
        raise InputError(f"players holds none: {_ways()}; players='roles', the default, splits by role")
    parts = [player for split in splits for player in _split(x, split, decode)]
    need_apart(parts)
    found = _ordered(x, parts, decode)
    kept = _kept_roles(x, found, keep)
    _need_unkept(x, parts, kept)
    found = [player for player in found if player.role not in kept and player.name not in keep]
    if len(found) > MOST:
        raise InputError(
            f"{len(found)} players have 2^{len(found)} coalitions; up to {MOST} are split exactly. Keep some always "
            f"visible, as in keep={('template', found[-1].name)}, or merge some into one, as in "
            f"players={{'the rest': mask}}, true at the positions of all of them. The players are {_names(found)}"
        )
    return tuple(found)


@explained
def named_players(x: Inputs, players: Named = "roles", decode: Decode | None = None) -> tuple[Player, ...]:
    """The players that are named, and no others: what stands in none of them is nobody's.

    Args:
        x: the example.
        players: `roles`: each of question, context and system that there is; `images`, `turns` or `sentences`, as in
            `players_of`; one role; a text that stands in the prompt once, as whole words ("the banana"); roles, texts,
            bool masks `[position]` or positions by name; or several, or none.
        decode: what makes text of token ids (`vlm.decode`).

    Raises:
        InputError: a text that is not in the prompt or is there several times, a role that is not.
        VisibilityError: masks that are empty, overlap, or cover what cannot be hidden.
    """
    splits = [players] if isinstance(players, (str, Mapping)) else list(players)
    found = [player for split in splits for player in _named(x, split, decode)]
    need_apart(found)
    return tuple(found)


@explained
def coalitions(x: Inputs, roles: Sequence[Role], keep: Sequence[str]) -> Bool[Tensor, "coalition position"]:
    """The 2^k coalitions of these roles, each with what is kept; coalition S has bit i set where role i is seen."""
    return subsets([x.where(role) for role in roles], x.visible(*keep))


@explained
def subsets(
    masks: Sequence[Bool[Tensor, " position"]], always: Bool[Tensor, " position"]
) -> Bool[Tensor, "coalition position"]:
    """All unions of these masks, each with what is always visible; number S has bit i set where mask i is in it."""
    visible = always.repeat(1 << len(masks), 1)
    numbers = torch.arange(len(visible))
    for i, mask in enumerate(masks):
        visible |= (numbers >> i & 1).bool()[:, None] & mask
    return visible


def runs_of(positions: Sequence[int]) -> str:
    """Positions as a short text: "3-17, 20"."""
    steps = itertools.groupby(enumerate(positions), key=lambda pair: pair[1] - pair[0])
    runs = [[position for _, position in run] for _, run in steps]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


# --- ways to split --------------------------------------------------------------------------------


def _roles(x: Inputs, decode: Decode | None) -> list[Player]:
    return []  # what is not split is a role's


def _images(x: Inputs, decode: Decode | None) -> list[Player]:
    x.need_image()
    return [Player(f"image {n}", "image", _mask(x, view.positions.tolist()), "") for n, view in enumerate(x.images)]


def _turns(x: Inputs, decode: Decode | None) -> list[Player]:
    turns: dict[int, list[int]] = defaultdict(list)
    for piece in _context(x, "turns"):
        turns[piece.turn] += positions_in(x, piece)
    return [_player(x, f"turn {turn}", "context", positions, decode) for turn, positions in turns.items()]


def _sentences(x: Inputs, decode: Decode | None) -> list[Player]:
    found: list[tuple[list[int], str]] = []
    for piece in _context(x, "sentences"):
        positions = positions_in(x, piece)
        ids = x.input_ids[0, positions].tolist()
        for one in split_sentences([x.tokens[p] for p in positions], ids, decode):
            found.append((positions[one.start : one.stop], one.text))
    return [Player(f"sentence {n}", "context", _mask(x, where), text) for n, (where, text) in enumerate(found)]


SPLITS: dict[str, Callable[[Inputs, Decode | None], list[Player]]] = {
    "roles": _roles,
    "images": _images,
    "turns": _turns,
    "sentences": _sentences,
}


def _split(x: Inputs, split: Split, decode: Decode | None) -> list[Player]:
    if isinstance(split, Mapping):
        return [_masked(x, name, mask, decode) for name, mask in split.items()]
    if not isinstance(split, str) or split not in SPLITS:
        raise InputError(f"{_ways()}; got {split!r}")
    return SPLITS[split](x, decode)


def _named(x: Inputs, split: str | Mapping[str, Any], decode: Decode | None) -> list[Player]:
    if isinstance(split, Mapping):
        return [_called(x, name, what, decode) for name, what in split.items()]
    if not isinstance(split, str):
        raise InputError(f"{_ways()}, or texts of the prompt; got {shown(split)}")
    if split == "roles":
        return [_called(x, role, role, decode) for role in CREDITED if role in x.roles and role != "image"]
    return SPLITS[split](x, decode) if split in SPLITS else [_called(x, split, split, decode)]


def _called(x: Inputs, name: str, what: str | Mask, decode: Decode | None) -> Player:
    """A role, a text of the prompt, or what a mask covers, by its name."""
    if not isinstance(what, str):
        return _masked(x, name, what, decode)
    if what not in CREDITED:
        positions = phrase_in(x, what, decode)
        return _player(x, name, x.roles[positions[0]], positions, decode)
    positions = x.where(what).nonzero().flatten().tolist()
    if not positions:
        raise InputError(f"there is no {what} to be a player: {_roles_here(x)}")
    return _player(x, name, what, positions, decode)


def _ways() -> str:
    return f"players are {', '.join(map(repr, SPLITS))}, masks by name, or several"


def _context(x: Inputs, asked: str) -> list[Written]:
    """The pieces of the context; where what was written is not known, runs of its positions, all of one turn."""
    pieces = [piece for piece in written_in(x) if piece.role == "context"]
    if not x.written and asked == "turns":
        raise InputError(
            "which turn is which is not known of tensors that are processed already: give players as masks by name, "
            "or make the example with vlm.prepare_chat"
        )
    if not pieces:
        raise InputError(f"there is no context to split into {asked}: {_roles_here(x)}")
    return pieces


def _mask(x: Inputs, positions: Iterable[int]) -> Bool[Tensor, " position"]:
    mask = torch.zeros(x.length, dtype=torch.bool)
    mask[list(positions)] = True
    return mask


def _player(x: Inputs, name: str, role: str, positions: Sequence[int], decode: Decode | None) -> Player:
    read = [p for p in positions if x.roles[p] != "image"] if x.tokens else []
    text = spelled([x.tokens[p] for p in read], x.input_ids[0, read].tolist(), decode).text.strip()
    return Player(name, role, _mask(x, positions), text)


def _masked(x: Inputs, name: str, mask: Mask, decode: Decode | None) -> Player:
    """A player that a user names."""
    if name in (*ROLES, "prior", "total"):
        raise VisibilityError(f"no player can be named {name!r}: results call something else so")
    positions = _where(x, name, mask)
    if fixed := [p for p in positions if x.roles[p] not in CREDITED]:
        shown = [f"{p} ({x.roles[p]} {x.tokens[p]!r})" for p in fixed[:SHOWN]]
        raise VisibilityError(
            f"the player {name!r} covers {len(fixed)} positions that are always visible, template or answer, such as "
            f"{', '.join(shown)}; those of {list(CREDITED)} can be hidden"
        )
    roles = {x.roles[p] for p in positions}
    return _player(x, name, roles.pop() if len(roles) == 1 else "", positions, decode)


def _where(x: Inputs, name: str, mask: Mask) -> list[int]:
    """The positions of a mask."""
    if isinstance(mask, str):
        raise VisibilityError(f"the player {name!r} is a mask or positions; got the text {mask!r}, x.where({mask!r})?")
    mask = _numbers(name, mask)
    if mask.dtype == torch.bool:
        if mask.shape not in ((x.length,), (x.answer_start,)):
            raise VisibilityError(f"the mask of {name!r} is {tuple(mask.shape)}; the example has {x.length} positions")
        positions = mask.nonzero().flatten().tolist()
    else:
        positions = sorted(mask.flatten().tolist())
        if len({*positions}) < len(positions):
            raise VisibilityError(f"the player {name!r} has a position twice; a mask is of True and False, not 0 and 1")
    if outside := [p for p in positions if not 0 <= p < x.length]:
        raise VisibilityError(f"{name!r} has no position {outside[0]}: the example has {x.length}, counted from 0")
    if not positions:
        raise VisibilityError(f"the player {name!r} covers no position")
    return positions


def _numbers(name: str, given: Any) -> Bool[Tensor, "*shape"] | Int[Tensor, "*shape"]:
    """Truth values or whole numbers, in whatever they are given."""
    try:
        listed = given if hasattr(given, "__array__") or isinstance(given, Tensor) else list(given)
        found = torch.as_tensor(listed)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise VisibilityError(f"the player {name!r} is a mask or positions; got {shown(given)}") from error
    if found.numel() and (found.is_floating_point() or found.is_complex()):
        raise VisibilityError(f"the player {name!r} is a mask or positions, whole numbers; got {shown(given)}")
    return found.cpu() if found.numel() else found.cpu().long()  # nothing listed is of torch's default dtype


# --- what must hold -------------------------------------------------------------------------------


def _ordered(x: Inputs, parts: Sequence[Player], decode: Decode | None) -> list[Player]:
    """Parts in the place of their roles, and what is left of a role behind its parts."""
    named = [player for player in parts if player.role in CREDITED]
    taken = torch.stack([p.positions for p in parts]).any(0) if parts else torch.zeros(x.length, dtype=torch.bool)
    found: list[Player] = []
    for role in CREDITED:
        found += [player for player in named if player.role == role]
        if left := (x.where(role) & ~taken).nonzero().flatten().tolist():
            found.append(_player(x, role, role, left, decode))
    return [*found, *(player for player in parts if player.role not in CREDITED)]


def need_apart(parts: Sequence[Player]) -> None:
    """Raise where two players stand at one position, or have one name.

    Raises:
        VisibilityError: names both.
    """
    for one, other in itertools.combinations(parts, 2):
        if one.name == other.name:
            raise VisibilityError(f"two players are named {one.name!r}")
        if both := (one.positions & other.positions).nonzero().flatten().tolist():
            raise VisibilityError(
                f"the players {one.name!r} and {other.name!r} overlap at {len(both)} positions, such as "
                f"{both[:SHOWN]}; each position is of one"
            )


def _kept_roles(x: Inputs, found: Sequence[Player], keep: Sequence[str]) -> set[str]:
    """The roles among what is kept; the rest are names of players."""
    names = {player.name for player in found}
    kept: set[str] = {name for name in keep if name in ROLES}
    for name in keep:
        if name not in names and name.rsplit(" ", 1)[0] in {player.rsplit(" ", 1)[0] for player in names - {*ROLES}}:
            raise VisibilityError(f"keep: there is no player {name!r}; there are {sorted(names)}")
    x.where(*(name for name in keep if name not in names))  # raises for what is neither
    return kept


def _need_unkept(x: Inputs, parts: Sequence[Player], kept: set[str]) -> None:
    for player in parts:
        if kept & {x.roles[p] for p in player.positions.nonzero().flatten().tolist()}:
            raise VisibilityError(
                f"the player {player.name!r} stands in {sorted(kept - {'template'})}, which keep= leaves always "
                "visible: keep the players instead, by their names, or split something else"
            )


def _names(players: Sequence[Player]) -> str:
    return ", ".join(player.name for player in players)


def _roles_here(x: Inputs) -> str:
    return f"the example has {', '.join(x.present)}"
