"""Roles that are given by hand, held against what the positions are."""

from __future__ import annotations

from collections.abc import Sequence

from lvlm_interp.errors import InputError, VisibilityError
from lvlm_interp.inputs.example import need_role


def need_roles(roles: Sequence[str], visual: Sequence[bool], start: int) -> None:
    """Raise unless each of the roles can be what stands at its position.

    Args:
        roles: one for each position.
        visual: whether an image token stands there.
        start: where the answer begins.

    Raises:
        VisibilityError: an unknown role, or one that does not fit what stands there: image tokens, and they only, are
            `image`; the answer, and it only, is `answer`.
        InputError: not a role for each position.
    """
    if isinstance(roles, str) or len(roles) != len(visual):
        raise InputError(
            f"{len(roles)} roles and answer_start={start} do not fit {len(visual)} positions: give a list of a role "
            "for each"
        )
    for role in dict.fromkeys(roles):
        need_role(role)
    for what, there in (("image", visual), ("answer", [i >= start for i in range(len(visual))])):
        for i, (role, fits) in enumerate(zip(roles, there, strict=True)):
            if (role == what) != fits:
                found = f"an {what} token" if fits else f"no {what} token"
                raise VisibilityError(
                    f"position {i} has the role {role!r}, and {found} stands there: the role {what!r} is that of all "
                    f"{what} tokens and of nothing else; to hide some of them only, give visible= to score"
                )
